"""The image processor of a checkpoint.

It is a stock class of transformers, so `AutoImageProcessor` opens it without selfvit. Its
`save_pretrained` stores the class name without `Pil`, so a checkpoint is the same with and without
torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from transformers import BaseImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import is_torchvision_available

from ..configuration.configuration_selfvit import SelfViTConfig

BICUBIC = 3  # PIL.Image.Resampling.BICUBIC, as preprocessor_config.json stores it


def build_processor(
    config: SelfViTConfig,
    *,
    resize: Literal["shortest_edge", "square"] = "shortest_edge",
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
    crop_ratio: float = 256 / 224,  # DINO's evaluation (its eval_knn.py): resize to 256, crop 224
) -> BaseImageProcessor:
    """Return the processor for images of `config.image_size`.

    Args:
        config: of the model.
        resize: "shortest_edge" scales the shorter side and cuts out the center, so proportions are
            kept and the margins lost; "square" scales both sides, so nothing is lost and the
            proportions are not kept. An `image_size` that is not square always means the latter.
        mean: per channel, of values in [0, 1].
        std: per channel, of values in [0, 1].
        crop_ratio: shorter side before the crop, as a multiple of `image_size`; at least 1.

    Raises:
        ValueError: for another `resize`, or a smaller `crop_ratio`.
    """
    if resize not in ("shortest_edge", "square"):
        raise ValueError(f"resize ({resize!r}) must be 'shortest_edge' or 'square'.")
    if crop_ratio < 1:
        raise ValueError(f"crop_ratio ({crop_ratio}) must be at least 1: a crop fits its image.")
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


def resized_processor(
    processor: BaseImageProcessor, image_size: int | tuple[int, int]
) -> BaseImageProcessor:
    """Return a processor with the same steps and another output size.

    Args:
        processor: Image processor that `build_processor` made; it is not modified.
        image_size: Output size in pixels, one number or (height, width). A size that is not square
            scales both sides and crops nothing, as in `build_processor`.
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
    # Without torchvision the names without `Pil` are placeholders that raise when they are called.
    if is_torchvision_available():
        from transformers import BitImageProcessor, ViTImageProcessor

        return BitImageProcessor if crops else ViTImageProcessor
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    return BitImageProcessorPil if crops else ViTImageProcessorPil


__all__ = ["build_processor", "resized_processor"]
