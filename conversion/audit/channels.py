"""Check that the image processor of a checkpoint gives the channels that its model reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .finding import Finding

RGB = 3  # stock processors convert every image to RGB


def check_channels(config: dict[str, Any], processor: Any) -> Iterator[Finding]:
    """Yield a finding if images of the processor do not fit the model.

    Args:
        config: Content of config.json.
        processor: Image processor of the checkpoint.
    """
    wanted, given = _model_channels(config), _processor_channels(processor)
    name = type(processor).__name__
    fix = (
        "write a processor of that many channels: selfvit.build_processor(config, mean=..., "
        "std=...).save_pretrained(FOLDER); `selfvit stats` measures mean and std"
    )
    if wanted != given:
        yield Finding(
            "wrong number of channels",
            f"the model reads {wanted} channels (num_channels), but {name} gives {given}",
            "no image can be embedded: pixel_values do not fit the patch embedding",
            fix,
        )
        return
    for field in ("image_mean", "image_std"):
        values = getattr(processor, field, None)
        if isinstance(values, list | tuple) and len(values) not in (1, given):
            yield Finding(
                "wrong number of channels",
                f"{field} of {name} has {len(values)} values for {given} channels",
                "no image can be normalized",
                fix,
            )


def _model_channels(config: dict[str, Any]) -> int:
    if "model_type" in config and "num_channels" in config:
        return config["num_channels"]
    arguments, stored = config.get("model_args"), config.get("pretrained_cfg", config)
    if isinstance(arguments, dict) and isinstance(arguments.get("in_chans"), int):
        return arguments["in_chans"]
    size = stored.get("input_size") if isinstance(stored, dict) else None
    return size[0] if isinstance(size, list) and len(size) == 3 else RGB


def _processor_channels(processor: Any) -> int:
    data_config = getattr(processor, "data_config", None)  # timm
    if isinstance(data_config, dict) and "input_size" in data_config:
        return data_config["input_size"][0]
    return getattr(processor, "num_channels", None) or RGB


__all__ = ["check_channels"]
