"""Read the settings that a checkpoint decides for a run that starts from it."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoImageProcessor

from ...configuration.configuration_selfvit import SelfViTConfig
from ...modeling.checkpoints.hub_revision import resolve_checkpoint


def read_config(checkpoint: str) -> SelfViTConfig:
    """Return the configuration of a selfvit checkpoint.

    Raises:
        ValueError: if there is none, or it is of another type of model.
    """
    try:
        config = AutoConfig.from_pretrained(resolve_checkpoint(checkpoint))
    except OSError as error:
        raise ValueError(f"{checkpoint} is not a checkpoint: {error}") from error
    if not isinstance(config, SelfViTConfig):
        raise ValueError(
            f"{checkpoint} is a {config.model_type!r} checkpoint; training starts from one "
            "of selfvit's own."
        )
    return config


def read_preprocessing(checkpoint: str) -> dict[str, Any]:
    """Return the fields of `TrainingConfig` that a checkpoint's image processor decides.

    Weights go on being trained on what they were trained on. Empty for a checkpoint without one.
    """
    try:
        processor = AutoImageProcessor.from_pretrained(resolve_checkpoint(checkpoint))
    except OSError:
        return {}
    return {
        "image_mean": list(processor.image_mean),
        "image_std": list(processor.image_std),
        "resize": "shortest_edge" if getattr(processor, "do_center_crop", False) else "square",
    }


__all__ = ["read_config", "read_preprocessing"]
