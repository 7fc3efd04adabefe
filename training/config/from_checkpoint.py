"""Read the settings that a run takes from the checkpoint it starts from."""

from __future__ import annotations

from typing import Any

from PIL.Image import Resampling
from transformers import AutoConfig, AutoImageProcessor

from ...configuration.configuration_selfvit import SelfViTConfig
from ...embedding.preprocessing import pixel_format_of
from ...modeling.checkpoints.resolve import resolve_checkpoint


def read_config(checkpoint: str) -> SelfViTConfig:
    """Return the configuration of a selfvit checkpoint.

    Raises:
        ValueError: If there is no checkpoint, or it is of another model type.
    """
    try:
        config = AutoConfig.from_pretrained(resolve_checkpoint(checkpoint))
    except OSError as error:
        raise ValueError(f"{checkpoint} is not a checkpoint: {error}") from error
    if not isinstance(config, SelfViTConfig):
        raise ValueError(
            f"--init-from needs a selfvit checkpoint, but {checkpoint} is a "
            f"{config.model_type!r} checkpoint; convert it first, with selfvit convert."
        )
    return config


def read_preprocessing(checkpoint: str) -> dict[str, Any]:
    """Return the fields of `PreprocessingConfig` that a checkpoint's image processor determines.

    A run that starts from a checkpoint keeps its preprocessing. Without an image processor, the
    result is empty.
    """
    try:
        processor = AutoImageProcessor.from_pretrained(resolve_checkpoint(checkpoint))
    except OSError:
        return {}
    pixel_range = pixel_format_of(processor).pixel_range
    crops = bool(getattr(processor, "do_center_crop", False))
    taken: dict[str, Any] = {}
    if processor.resample is not None:
        taken["resample"] = Resampling(processor.resample).name.lower()
    if pixel_range is not None:
        taken["pixel_range"] = list(pixel_range)
    if crops and "shortest_edge" in processor.size:
        taken["crop_ratio"] = processor.size["shortest_edge"] / processor.crop_size["height"]
    return {
        **taken,
        "image_mean": list(processor.image_mean),
        "image_std": list(processor.image_std),
        "resize": "shortest_edge" if crops else "square",
    }


__all__ = ["read_config", "read_preprocessing"]
