"""Build the image processor of a checkpoint.

The processor is a class of transformers, so `AutoImageProcessor` opens it without selfvit. Its
`save_pretrained` stores the class name without `Pil`, so the saved file does not depend on whether
torchvision is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from transformers import BaseImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import is_torchvision_available

from ..configuration.configuration_selfvit import SelfViTConfig
from ..data.pixel_format import PixelFormat

BICUBIC = 3  # PIL.Image.Resampling.BICUBIC, stored as a number in preprocessor_config.json


def build_processor(
    config: SelfViTConfig,
    *,
    resize: Literal["shortest_edge", "square"] = "shortest_edge",
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
    crop_ratio: float = 256 / 224,  # DINO (eval_knn.py): resize to 256, crop 224
) -> BaseImageProcessor:
    """Return an image processor whose output has the size `config.image_size`.

    Args:
        config: Configuration of the model.
        resize: "shortest_edge" scales the shorter side and crops the center, which keeps the aspect
            ratio but loses the margins; "square" scales both sides, which keeps the margins but not
            the aspect ratio. If `image_size` is not square, both sides are always scaled.
        mean: Mean per channel, for pixel values in [0, 1].
        std: Std per channel, for pixel values in [0, 1].
        crop_ratio: Shorter side before the crop, as a multiple of `image_size`; at least 1.

    Raises:
        ValueError: If `resize` is not one of these values, or `crop_ratio` is below 1.
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
    return _processor_class(crops)(
        do_resize=True,
        size=size if crops else {"height": height, "width": width},
        resample=BICUBIC,
        do_center_crop=crops,
        crop_size={"height": height, "width": width} if crops else None,
        do_rescale=True,
        do_normalize=True,
        image_mean=list(mean),
        image_std=list(std),
        do_convert_rgb=True,
    )


def pixel_format_of(
    processor: BaseImageProcessor, pixel_range: tuple[float, float] | None = None
) -> PixelFormat:
    """Return the pixels that a processor takes: 3 channels without a range for a stock class.

    Args:
        processor: Any image processor.
        pixel_range: Range that replaces the one of the processor, or None.
    """
    fields: Any = processor
    stored = getattr(fields, "pixel_range", None)
    return PixelFormat(
        num_channels=getattr(fields, "num_channels", None) or 3,
        pixel_range=stored if pixel_range is None else pixel_range,
    )


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


__all__ = ["build_processor", "pixel_format_of", "resized_processor"]
