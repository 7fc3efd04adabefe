"""Build the image processor of a checkpoint.

For RGB images of eight bits, the processor is a class of transformers, so `AutoImageProcessor`
opens it without selfvit. Its `save_pretrained` stores the class name without `Pil`, so the saved
file does not depend on whether torchvision is installed. For other numbers of channels, or if the
range of the pixels is declared, it is `SelfViTImageProcessor`, whose code is saved beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import is_torchvision_available

from ..configuration.configuration_selfvit import SelfViTConfig
from ..data.decoding import UnreadableImageError
from ..data.pixel_format import DecodedPixels, PixelFormat
from ..errors import one_line
from ..modeling.image_processing_selfvit import SelfViTImageProcessor, is_extreme, resized_size
from .eight_bit import EightBitPreprocessing

BICUBIC = 3  # PIL.Image.Resampling.BICUBIC, stored as a number in preprocessor_config.json
# Settings of a stock processor that determine its output.
GEOMETRY = (
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
)
ONLY_STOCK = ("do_pad", "crop_pct")  # further settings of the geometry of some stock processors


def build_processor(
    config: SelfViTConfig,
    *,
    resize: Literal["shortest_edge", "square"] = "shortest_edge",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    crop_ratio: float = 256 / 224,  # DINO (eval_knn.py): resize to 256, crop 224
    resample: int = BICUBIC,
    pixel_range: tuple[float, float] | None = None,
) -> BaseImageProcessor:
    """Return an image processor whose output has the size `config.image_size`.

    Args:
        config: Configuration of the model.
        resize: "shortest_edge" scales the shorter side and crops the center, which keeps the aspect
            ratio but loses the margins; "square" scales both sides, which keeps the margins but not
            the aspect ratio. If `image_size` is not square, both sides are always scaled.
        mean: Mean per channel, for pixel values in [0, 1]; None for the mean of ImageNet for 3
            channels, and 0.5 for other numbers.
        std: Std per channel, for pixel values in [0, 1]; None for the std of ImageNet for 3
            channels, and 0.5 for other numbers.
        crop_ratio: Shorter side before the crop, as a multiple of `image_size`; at least 1.
        resample: Interpolation, a number of `PIL.Image.Resampling`.
        pixel_range: Values of black and white in images of more than eight bits; None for the
            smallest and the largest value of the type of the file.

    Raises:
        ValueError: If `resize` is not one of these values, `crop_ratio` is below 1, mean or std do
            not have one value per channel, or `pixel_range` is not in ascending order.
    """
    if resize not in ("shortest_edge", "square"):
        raise ValueError(f"resize ({resize!r}) must be 'shortest_edge' or 'square'.")
    if crop_ratio < 1:
        raise ValueError(
            f"crop_ratio ({crop_ratio}) must be at least 1, because a crop cannot be larger than "
            "its image."
        )
    height, width = config.image_height_width
    crops = resize == "shortest_edge" and height == width
    size = {"shortest_edge": round(crop_ratio * height)}
    settings: dict[str, Any] = {"do_convert_rgb": True}
    processor_class = _processor_class(crops)
    if config.num_channels != 3 or pixel_range is not None:
        settings = {"num_channels": config.num_channels, "pixel_range": pixel_range}
        processor_class = SelfViTImageProcessor
    return processor_class(
        do_resize=True,
        size=size if crops else {"height": height, "width": width},
        resample=resample,
        do_center_crop=crops,
        crop_size={"height": height, "width": width} if crops else None,
        do_rescale=True,
        do_normalize=True,
        image_mean=_per_channel("mean", mean, config.num_channels, IMAGENET_DEFAULT_MEAN),
        image_std=_per_channel("std", std, config.num_channels, IMAGENET_DEFAULT_STD),
        **settings,
    )


def _per_channel(
    name: str, values: Sequence[float] | None, num_channels: int, rgb: Sequence[float]
) -> list[float]:
    if values is None:
        return list(rgb) if num_channels == 3 else [0.5] * num_channels
    if len(values) not in (1, num_channels):  # one value serves all channels
        raise ValueError(
            f"{name} ({', '.join(map(str, values))}) must have one value for each of the "
            f"{num_channels} channels (num_channels)."
        )
    return list(values)


def pixel_format_of(
    processor: BaseImageProcessor, pixel_range: tuple[float, float] | None = None
) -> PixelFormat:
    """Return the pixels that a processor takes: 3 channels without a range for a stock class.

    A transparent color becomes white if the processor would do that in a pipeline.

    Args:
        processor: Any image processor.
        pixel_range: Range that replaces the one of the processor, or None.
    """
    fields: Any = processor
    stored = getattr(fields, "pixel_range", None)
    return PixelFormat(
        num_channels=getattr(fields, "num_channels", None) or 3,
        pixel_range=stored if pixel_range is None else pixel_range,
        fills_transparent_color=bool(getattr(fields, "do_convert_rgb", False)),
    )


def pixel_values_of(decoded: DecodedPixels, processor: BaseImageProcessor) -> Tensor:
    """Preprocess decoded pixels.

    The pixels of an RGB image of eight bits equal those of a stock processor. All other pixels are
    floats that are resized and normalized in the same geometry, without rounding.

    Args:
        decoded: Pixels in the format of the processor, see `pixel_format_of`.
        processor: Image processor.

    Returns:
        Normalized pixels, (C, H, W), float32.
    """
    eight_bit = EightBitPreprocessing.of(processor)
    return normalize_pixels(crop_pixels(decoded, processor, eight_bit)[None], eight_bit)[0]


def crop_pixels(
    decoded: DecodedPixels,
    processor: BaseImageProcessor,
    eight_bit: EightBitPreprocessing | None,
) -> Tensor:
    """Preprocess decoded pixels, except that a batch of eight bits is normalized later.

    Args:
        decoded: Pixels in the format of the processor, see `pixel_format_of`.
        processor: Image processor.
        eight_bit: Result of `EightBitPreprocessing.of` for the processor.

    Returns:
        Pixels for `normalize_pixels`, (C, H, W): uint8, or normalized as float32.

    Raises:
        UnreadableImageError: If the processor resizes in a way that only eight bits have.
    """
    pixels, settings = decoded.pixels, cast(Any, processor)
    if isinstance(processor, SelfViTImageProcessor):
        return processor.preprocess_scaled(pixels)
    is_eight_bit = pixels.dtype == np.uint8
    if is_eight_bit and eight_bit is not None:
        cropped = eight_bit.resize_and_crop(pixels)
        if cropped is not None:
            return cropped
    if is_eight_bit and not _is_extreme(pixels.shape[:2], settings):
        return processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
    try:
        floats = _float_processor(settings, pixels.shape[2])
        return floats.preprocess_scaled(pixels, rounded=is_eight_bit)
    except ValueError as error:
        kind = "of extreme sides" if is_eight_bit else "of more than eight bits"
        raise UnreadableImageError(
            f"an image {kind} cannot be resized by this processor: {one_line(error)}"
        ) from error


def _float_processor(settings: Any, num_channels: int) -> SelfViTImageProcessor:
    """Return a processor with the geometry of a stock one that keeps values as floats.

    Raises:
        ValueError: If only the stock one has this geometry.
    """
    for name in ONLY_STOCK:
        if value := getattr(settings, name, None):
            raise ValueError(
                f"{name} ({value}) is supported for eight bits and usual sides only; convert the "
                f"image, or use a processor without {name}"
            )
    stored = {name: getattr(settings, name, None) for name in GEOMETRY}
    return SelfViTImageProcessor(num_channels=num_channels, **stored)


def stack_pixels(images: Sequence[Tensor], eight_bit: EightBitPreprocessing | None) -> Tensor:
    """Return the results of `crop_pixels` as a batch, (B, C, H, W), for `normalize_pixels`."""
    if len({image.dtype for image in images}) > 1:
        images = [normalize_pixels(image[None], eight_bit)[0] for image in images]
    return torch.stack(list(images))


def normalize_pixels(pixels: Tensor, eight_bit: EightBitPreprocessing | None) -> Tensor:
    """Normalize a batch on its device; normalized pixels remain the same.

    Args:
        pixels: Result of `stack_pixels`, (B, C, H, W).
        eight_bit: As in `crop_pixels`.

    Returns:
        Normalized pixels, (B, C, H, W), float32.
    """
    if pixels.dtype != torch.uint8:
        return pixels
    assert eight_bit is not None
    return eight_bit.normalize(pixels)


def needed_size(processor: BaseImageProcessor) -> tuple[int, int] | None:
    """Return (height, width) that an image needs at least, None if it is not resized."""
    settings: Any = processor
    size = dict(getattr(settings, "size", None) or {})
    if not getattr(settings, "do_resize", False):
        return None
    if size.get("shortest_edge"):
        return size["shortest_edge"], size["shortest_edge"]
    return (size["height"], size["width"]) if size.get("height") and size.get("width") else None


def output_size(processor: BaseImageProcessor) -> tuple[int, int] | None:
    """Return (height, width) of all images that a processor returns, None if it depends on them."""
    settings: Any = processor
    crops = getattr(settings, "do_center_crop", False)
    size = dict((settings.crop_size if crops else settings.size) or {})
    return (size["height"], size["width"]) if size.get("height") and size.get("width") else None


def _is_extreme(shape: Sequence[int], settings: Any) -> bool:
    """Return whether a stock processor would resize far more than it crops."""
    size = dict(getattr(settings, "size", None) or {})
    crops = getattr(settings, "do_resize", False) and getattr(settings, "do_center_crop", False)
    if not crops or not size.get("shortest_edge") or size.get("longest_edge"):
        return False
    crop = settings.crop_size["height"], settings.crop_size["width"]
    resized = resized_size(shape[0], shape[1], settings.size)
    return any(is_extreme(*sides) for sides in zip(resized, crop, strict=True))


def resized_processor(
    processor: BaseImageProcessor, image_size: int | tuple[int, int]
) -> BaseImageProcessor:
    """Return a copy of a processor with another output size.

    Args:
        processor: Image processor made by `build_processor`; it is not changed.
        image_size: Size of the output in pixels, one number or (height, width). A size that is not
            square scales both sides and crops nothing, as in `build_processor`.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    values: Any = processor.to_dict()
    sides = {"height": height, "width": width}
    if not values.get("do_center_crop"):
        return processor.from_dict(values, size=sides)
    if height != width:
        return processor.from_dict(values, size=sides, do_center_crop=False, crop_size=None)
    crop_ratio = values["size"]["shortest_edge"] / values["crop_size"]["height"]
    size = {"shortest_edge": round(crop_ratio * height)}
    return processor.from_dict(values, size=size, crop_size=sides)


def _processor_class(crops: bool) -> type[BaseImageProcessor]:
    # Without torchvision, the classes without `Pil` are placeholders that raise when called.
    if is_torchvision_available():
        from transformers import BitImageProcessor, ViTImageProcessor

        return BitImageProcessor if crops else ViTImageProcessor
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    return BitImageProcessorPil if crops else ViTImageProcessorPil


__all__ = [
    "build_processor",
    "crop_pixels",
    "needed_size",
    "normalize_pixels",
    "output_size",
    "pixel_format_of",
    "pixel_values_of",
    "resized_processor",
    "stack_pixels",
]
