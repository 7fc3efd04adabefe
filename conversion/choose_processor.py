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
from ..embedding.preprocessing import GEOMETRY, build_processor
from ..errors import one_line
from ..modeling.image_processing_selfvit import SelfViTImageProcessor
from .infer_grid import GUESS
from .weight_format import STATISTICS, Draft

Statistics = tuple[Sequence[float], Sequence[float]]  # mean and std, one value per channel
HALF = 0.5  # mean and std if nothing is known: pixel values from -1 to 1

TRIED_SIDES = ((200, 300), (300, 200))


def choose_processor(draft: Draft, config: SelfViTConfig) -> tuple[BaseImageProcessor, str]:
    """Return the image processor of the source or of its format's convention, and its origin.

    Mean and std of the options replace those of the source; its size and interpolation are kept.

    Args:
        draft: Matched draft. A guess of mean and std is recorded in it.
        config: Configuration of the converted model.

    Raises:
        ValueError: If the processor of the source cannot be used, or mean and std do not have one
            value per channel.
    """
    folder = draft.file.folder
    file = None if folder is None else folder / IMAGE_PROCESSOR_NAME
    stored = file if file is not None and file.is_file() else None
    source = f"{IMAGE_PROCESSOR_NAME} of the source"
    given, origin = _given_statistics(draft, config.num_channels)
    if given is not None and stored is not None:
        return _open_stored(stored, config, given), f"{origin}; {source}"
    if given is not None:
        return _build(draft, config, *given), origin
    if config.num_channels != 3:
        return _choose_for_channels(draft, config, stored)
    if stored is not None:
        return _open_stored(stored, config), source
    wanted = draft.preprocessing
    if wanted.origin.startswith("convention"):
        draft.add_guess(
            "image_mean, image_std",
            "the source does not hold them; give --image-mean and --image-std, or --statistics, if "
            "it was trained with others than its format usually is",
        )
    return _build(draft, config, wanted.mean, wanted.std), wanted.origin


def _given_statistics(draft: Draft, num_channels: int) -> tuple[Statistics | None, str]:
    """Return mean and std of the options, or None, and their origin."""
    options = draft.options
    if options.image_mean is not None and options.image_std is not None:
        for name, values in (("image_mean", options.image_mean), ("image_std", options.image_std)):
            _check_length(name, values, num_channels)
        return (options.image_mean, options.image_std), "option: image_mean"
    if options.statistics is None:
        return None, ""
    mean, std = STATISTICS[options.statistics]
    if options.statistics == "half":
        mean = std = [HALF] * num_channels
    _check_length(f"statistics {options.statistics}", mean, num_channels)
    return (mean, std), "option: statistics"


def _choose_for_channels(
    draft: Draft, config: SelfViTConfig, stored: Path | None
) -> tuple[BaseImageProcessor, str]:
    """Return a processor for other numbers of channels than 3, which have no usual statistics."""
    channels = config.num_channels
    if stored is not None:
        values = _read_settings(stored)
        is_own = values.get("image_processor_type") == SelfViTImageProcessor.__name__
        mean, std = values.get("image_mean") or (), values.get("image_std") or ()
        if is_own or (_is_per_channel(mean, channels) and _is_per_channel(std, channels)):
            return _open_stored(stored, config), f"{IMAGE_PROCESSOR_NAME} of the source"
    wanted = draft.preprocessing
    if len(wanted.mean) == channels and len(wanted.std) == channels:  # timm's pretrained_cfg
        return _build(draft, config, wanted.mean, wanted.std), wanted.origin
    draft.add_guess(
        "image_mean, image_std",
        f"{HALF} for each of the {channels} channels, as the source has no values for them; give "
        "--image-mean and --image-std, which `selfvit stats` measures on the training images",
    )
    half = (HALF,) * channels
    processor = (
        _build(draft, config, half, half)
        if stored is None
        else _open_stored(stored, config, (half, half))
    )
    return processor, f"{GUESS}: mean and std {HALF} for every channel"


def _build(
    draft: Draft, config: SelfViTConfig, mean: Sequence[float], std: Sequence[float]
) -> BaseImageProcessor:
    wanted = draft.preprocessing
    if wanted.guess:
        draft.add_guess("size, resample", wanted.guess)
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


def _open_stored(
    file: Path, config: SelfViTConfig, statistics: Statistics | None = None
) -> BaseImageProcessor:
    """Return the processor of the source, after a check of the pixels that it gives.

    Args:
        file: File of the processor.
        config: Configuration of the converted model.
        statistics: Mean and std that replace those of the file, or None.
    """
    values = _read_settings(file)
    is_own = values.get("image_processor_type") == SelfViTImageProcessor.__name__
    advice = "Correct it, or remove the file to use the convention of the format."
    try:
        processor: Any = (
            SelfViTImageProcessor.from_pretrained(file.parent)
            if is_own
            else AutoImageProcessor.from_pretrained(file.parent, trust_remote_code=False)
        )
        if statistics is not None:
            mean, std = map(list, statistics)
            changed = {"image_mean": mean, "image_std": std, "do_normalize": True}
            processor = processor.from_dict({**processor.to_dict(), **changed})
        if not is_own and config.num_channels != 3:  # stock classes take RGB
            settings = {name: getattr(processor, name, None) for name in GEOMETRY}
            processor = SelfViTImageProcessor(num_channels=config.num_channels, **settings)
        channels = getattr(processor, "num_channels", None) or 3
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
