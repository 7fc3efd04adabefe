"""Read the settings that a run takes from the checkpoint it starts from."""

from __future__ import annotations

from typing import Any

from PIL.Image import Resampling
from transformers import AutoConfig, AutoImageProcessor

from ...configuration.configuration_selfvit import SelfViTConfig
from ...embedding.preprocessing import output_size, pixel_format_of
from ...modeling.checkpoints.resolve import resolve_checkpoint
from .run_config import RunConfig


def read_config(checkpoint: str) -> SelfViTConfig:
    """Return the configuration of a selfvit checkpoint.

    Raises:
        FileNotFoundError: As in `resolve_checkpoint`.
        ValueError: If there is no checkpoint, or it is of another model type.
    """
    location = resolve_checkpoint(checkpoint)
    try:
        config = AutoConfig.from_pretrained(location)
    except OSError as error:
        raise ValueError(f"{checkpoint} is not a checkpoint: {error}") from error
    if not isinstance(config, SelfViTConfig):
        raise ValueError(
            f"--init-from needs a selfvit checkpoint, but {checkpoint} is a "
            f"{config.model_type!r} checkpoint; convert it first, with selfvit convert."
        )
    return config


def read_preprocessing(checkpoint: str, patch_size: int) -> dict[str, Any]:
    """Return the image size and the fields of `PreprocessingConfig` of a checkpoint's processor.

    A run that starts from a checkpoint keeps its preprocessing. The image size may differ from that
    of the position embeddings: DINOv2 has positions for 518 pixels, and its processor gives 224.
    It is left out if it is not a multiple of the patch size. Without an image processor, the result
    is empty.
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
    size = output_size(processor)
    if size is not None and not any(side % patch_size for side in size):
        height, width = size
        taken["image_size"] = height if height == width else [height, width]
    if crops and "shortest_edge" in processor.size:
        taken["crop_ratio"] = processor.size["shortest_edge"] / processor.crop_size["height"]
    return {
        **taken,
        "image_mean": list(processor.image_mean),
        "image_std": list(processor.image_std),
        "resize": "shortest_edge" if crops else "square",
    }


def image_size_line(run: RunConfig) -> str | None:
    """Return the line on an image size that differs from that of the checkpoint, or None."""
    if run.start.init_from is None:
        return None
    stored, wanted = read_config(run.start.init_from), run.model
    if stored.image_height_width == wanted.image_height_width:
        return None
    sizes = [" x ".join(map(str, c.image_height_width)) for c in (wanted, stored)]
    resized = "" if wanted.position_embedding_type == "rotary" else ", and are resized"
    return (
        f"image size: {sizes[0]}; the positions of {run.start.init_from} are for {sizes[1]}"
        f"{resized}"
    )


__all__ = ["image_size_line", "read_config", "read_preprocessing"]
