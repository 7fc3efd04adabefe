"""Preprocessing of eight-bit RGB images as a stock processor does it, with less work per image.

Images are resized and cropped in eight bits one by one, and normalized as a batch. Beside the same
resizing, a call of a stock processor copies the image four times and checks its settings, which
takes three times as long for an image of 500 x 375 pixels.
"""

# B batch · H, W pixels of an image · h, w pixels of the output

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BaseImageProcessor
from transformers.image_utils import SizeDict

from ..modeling.image_processing_selfvit import is_extreme, resized_size

# Classes of transformers with this geometry. `Pil` resizes with Pillow, whose values differ by at
# most one level of 255 from those here; the others give the same bits.
STOCK_CLASSES = ("BitImageProcessor", "ViTImageProcessor")
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # by number of Pillow's resampling


@dataclass(frozen=True)
class EightBitPreprocessing:
    """Geometry and normalization of a stock processor.

    Args:
        size: Size to resize to, as in the processor; None for no resizing.
        crop: (h, w) of the center to crop; None for no crop.
        mode: Interpolation: "bilinear" or "bicubic".
        offset: Value per channel that is subtracted, on the scale of 0 to 255.
        scale: Value per channel that the difference is divided by, on the same scale.
    """

    size: Mapping[str, int] | None
    crop: tuple[int, int] | None
    mode: str
    offset: tuple[float, ...]
    scale: tuple[float, ...]

    @classmethod
    def of(cls, processor: BaseImageProcessor) -> EightBitPreprocessing | None:
        """Return the preprocessing of a processor; None if it is not of this kind."""
        kind, settings = type(processor), _settings_of(processor)
        is_stock = kind.__module__.startswith("transformers.models.")
        if not is_stock or kind.__name__.removesuffix("Pil") not in STOCK_CLASSES:
            return None
        mode = INTERPOLATIONS.get(int(3 if settings.resample is None else settings.resample))
        is_plain = settings.do_rescale and settings.do_normalize and not settings.do_pad
        if mode is None or not is_plain or not (mode == "bicubic" or _has_fast_bilinear()):
            return None
        size = _present(settings.size) if settings.do_resize else None
        if size is not None and set(size) not in ({"shortest_edge"}, {"height", "width"}):
            return None
        crop = _present(settings.crop_size) if settings.do_center_crop else None
        # as the processors compute it, so that the results have the same bits
        factor = 1.0 / settings.rescale_factor
        offset, scale = (
            torch.tensor(values).expand(3) * factor
            for values in (settings.image_mean, settings.image_std)
        )
        return cls(
            size,
            None if crop is None else (crop["height"], crop["width"]),
            mode,
            tuple(offset.tolist()),
            tuple(scale.tolist()),
        )

    def resize_and_crop(self, pixels: np.ndarray) -> Tensor | None:
        """Resize and crop one image.

        Args:
            pixels: (H, W, 3), uint8.

        Returns:
            (3, h, w), uint8; None if the crop is larger than the resized image, or so much smaller
            that the resized image would take too much memory.
        """
        height, width = pixels.shape[:2]
        resized = (height, width)
        if self.size is not None:
            resized = resized_size(height, width, SizeDict(**self.size))
        h, w = resized if self.crop is None else self.crop
        if h > resized[0] or w > resized[1]:
            return None
        if is_extreme(resized[0], h) or is_extreme(resized[1], w):
            return None
        if resized != (height, width):
            pixels = _resize(pixels, resized, self.mode)
        top, left = (resized[0] - h) // 2, (resized[1] - w) // 2
        cropped = pixels[top : top + h, left : left + w]
        return torch.from_numpy(np.ascontiguousarray(cropped.transpose(2, 0, 1)))

    def normalize(self, pixels: Tensor) -> Tensor:
        """Normalize a batch on its device, (B, 3, h, w), uint8 -> float32."""
        offset, scale = (
            torch.tensor(values, device=pixels.device).view(-1, 1, 1)
            for values in (self.offset, self.scale)
        )
        return pixels.to(torch.float32).sub_(offset).div_(scale)


def _resize(pixels: np.ndarray, size: tuple[int, int], mode: str) -> np.ndarray:
    height, width = pixels.shape[:2]
    # With this stride of the batch, torch takes the kernel for pixels whose channels are adjacent
    # (https://github.com/pytorch/pytorch/issues/68430).
    strides = (height * width * 3, 1, width * 3, 3)
    image = torch.from_numpy(pixels).as_strided((1, 3, height, width), strides)
    options: Any = {"mode": mode, "antialias": True, "align_corners": False}
    return nn.functional.interpolate(image, size, **options)[0].permute(1, 2, 0).numpy()


def _settings_of(processor: BaseImageProcessor) -> Any:
    """Return the processor as an object whose settings have no declared types."""
    return processor


def _present(size: Any) -> dict[str, int]:
    return {name: int(value) for name, value in dict(size).items() if value is not None}


def _has_fast_bilinear() -> bool:
    # Elsewhere torchvision resizes floats, which gives other values than eight bits.
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


__all__ = ["EightBitPreprocessing"]
