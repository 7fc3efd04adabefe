"""Choose the image processor of a converted model: image size, mean and std of its images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoImageProcessor, BaseImageProcessor
from transformers.utils import IMAGE_PROCESSOR_NAME

from ..configuration.configuration_selfvit import SelfViTConfig
from ..embedding.preprocessing import build_processor
from ..errors import one_line
from ..modeling.image_processing_selfvit import SelfViTImageProcessor
from .infer_grid import GUESS
from .weight_format import STATISTICS, Draft

HALF = 0.5  # mean and std if nothing is known: pixel values from -1 to 1

TRIED_SIDES = ((200, 300), (300, 200))


def choose_processor(draft: Draft, config: SelfViTConfig) -> tuple[BaseImageProcessor, str]:
    """Return the image processor of the source or of its format's convention, and its origin.

    Args:
        draft: Matched draft. A guess of mean and std is recorded in it.
        config: Configuration of the converted model.

    Raises:
        ValueError: If the processor of the source cannot be used, or mean and std do not have one
            value per channel.
    """
    options, folder = draft.options, draft.file.folder
    file = None if folder is None else folder / IMAGE_PROCESSOR_NAME
    stored = file if file is not None and file.is_file() else None
    if options.image_mean is not None and options.image_std is not None:
        for name, values in (("image_mean", options.image_mean), ("image_std", options.image_std)):
            _check_length(name, values, config.num_channels)
        return _build(draft, config, options.image_mean, options.image_std), "option: image_mean"
    if options.statistics is not None:
        mean, std = STATISTICS[options.statistics]
        if options.statistics == "half":
            mean = std = [HALF] * config.num_channels
        _check_length(f"statistics {options.statistics}", mean, config.num_channels)
        return _build(draft, config, mean, std), "option: statistics"
    if config.num_channels != 3:
        return _choose_for_channels(draft, config, stored)
    if stored is not None:
        return _open_stored(stored, config), f"{IMAGE_PROCESSOR_NAME} of the source"
    wanted = draft.preprocessing
    if wanted.origin.startswith("convention"):
        draft.add_guess(
            "image_mean, image_std",
            "the source does not hold them; give --image-mean and --image-std, or --statistics, if "
            "it was trained with others than its format usually is",
        )
    return _build(draft, config, wanted.mean, wanted.std), wanted.origin


def _choose_for_channels(
    draft: Draft, config: SelfViTConfig, stored: Path | None
) -> tuple[BaseImageProcessor, str]:
    """Return a processor for other numbers of channels than 3, which have no usual statistics."""
    channels = config.num_channels
    if stored is not None:
        values = _read_settings(stored)
        if values.get("image_processor_type") == SelfViTImageProcessor.__name__:
            return _open_stored(stored, config), f"{IMAGE_PROCESSOR_NAME} of the source"
        mean, std = values.get("image_mean") or (), values.get("image_std") or ()
        if _is_per_channel(mean, channels) and _is_per_channel(std, channels):
            return _build(draft, config, mean, std), f"{IMAGE_PROCESSOR_NAME} of the source"
    wanted = draft.preprocessing
    if len(wanted.mean) == channels and len(wanted.std) == channels:  # timm's pretrained_cfg
        return _build(draft, config, wanted.mean, wanted.std), wanted.origin
    draft.add_guess(
        "image_mean, image_std",
        f"{HALF} for each of the {channels} channels, as the source has no values for them; give "
        "--image-mean and --image-std, which `selfvit stats` measures on the training images",
    )
    half = (HALF,) * channels
    return _build(draft, config, half, half), f"{GUESS}: mean and std {HALF} for every channel"


def _build(
    draft: Draft, config: SelfViTConfig, mean: Sequence[float], std: Sequence[float]
) -> BaseImageProcessor:
    wanted = draft.preprocessing
    return build_processor(
        config,
        resize=wanted.resize,
        mean=mean,
        std=std,
        crop_ratio=wanted.crop_ratio,
        resample=wanted.resample,
    )


def _check_length(name: str, values: Sequence[float], num_channels: int) -> None:
    if len(values) != num_channels:
        raise ValueError(
            f"{name} ({len(values)} values) must have one value for each of the {num_channels} "
            "channels of the model. Give --image-mean and --image-std with as many values."
        )


def _is_per_channel(values: Any, num_channels: int) -> bool:
    return isinstance(values, list) and len(values) == num_channels


def _read_settings(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(file)!r} is not valid JSON: {one_line(error)}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{str(file)!r} must hold a JSON object. Copy or download it again.")
    return values


def _open_stored(file: Path, config: SelfViTConfig) -> BaseImageProcessor:
    """Return the processor of the source, after a check of the pixels that it gives."""
    is_own = _read_settings(file).get("image_processor_type") == SelfViTImageProcessor.__name__
    advice = "Correct it, or remove the file to use the convention of the format."
    try:
        processor: Any = (
            SelfViTImageProcessor.from_pretrained(file.parent)
            if is_own
            else AutoImageProcessor.from_pretrained(file.parent, trust_remote_code=False)
        )
        channels = processor.num_channels if is_own else 3  # stock classes take RGB
        shapes = []
        for sides in TRIED_SIDES:
            image = np.zeros((*sides, channels), dtype=np.uint8)
            shapes.append(tuple(processor(image, return_tensors="pt")["pixel_values"].shape[1:]))
    except (
        ImportError,  # DINOv3's processor needs torchvision
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RuntimeError,
    ) as error:
        raise ValueError(
            f"{IMAGE_PROCESSOR_NAME} of the source cannot be used: {one_line(error)[:200]}. "
            f"{advice}"
        ) from error
    if shapes[0] != shapes[1]:
        found = " and ".join(
            f"{height} x {width} pixels from {sides[0]} x {sides[1]}"
            for sides, (_, height, width) in zip(TRIED_SIDES, shapes, strict=True)
        )
        raise ValueError(
            f"{IMAGE_PROCESSOR_NAME} of the source must give images of one size, but it gives "
            f"{found}. Set do_center_crop and crop_size in it, or remove the file to use the "
            "convention of the format."
        )
    channels, height, width = shapes[0]
    if height % config.patch_size or width % config.patch_size:
        raise ValueError(
            f"{IMAGE_PROCESSOR_NAME} of the source must give images whose sides are multiples of "
            f"the patch size ({config.patch_size}), but it gives {height} x {width} pixels. "
            "Correct its size, or remove the file to use the convention of the format."
        )
    if channels != config.num_channels:
        raise ValueError(
            f"{IMAGE_PROCESSOR_NAME} of the source gives {channels} channels, but the model reads "
            f"{config.num_channels}. {advice}"
        )
    return processor


__all__ = ["choose_processor"]
