"""Operations of RandAugment for any number of channels and for more than eight bits.

They are those of `randaugment` that are defined without colors and without levels of eight bits:
nine of the fifteen. Left out are color, equalize, invert, posterize, solarize and solarize_add.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

from .functional import WHITE, limited, scale_brightness, scale_contrast, with_opencv

GRAY = 128  # fills the area that a moved image leaves empty
# Kernel of Pillow's SMOOTH filter, which its sharpness blends with.
SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / 13

Operation = Callable[[np.ndarray, float], np.ndarray]


def _auto_contrast(pixels: np.ndarray, _: float) -> np.ndarray:
    """Stretch the levels of each channel to the full scale."""
    low = pixels.min(axis=(0, 1)).astype(np.float32)
    span = pixels.max(axis=(0, 1)).astype(np.float32) - low
    factor = np.where(span > 0, WHITE / np.maximum(span, 1e-6), 1).astype(np.float32)
    stretched = (pixels.astype(np.float32) - np.where(span > 0, low, 0)) * factor
    return _as_type_of(pixels, stretched)


def _sharpness(pixels: np.ndarray, signed: float) -> np.ndarray:
    factor = 1 + 0.9 * signed

    def blend(part: np.ndarray) -> np.ndarray:
        smooth = cv2.filter2D(part, -1, SMOOTH, borderType=cv2.BORDER_REPLICATE)
        return cv2.addWeighted(part, factor, smooth, 1 - factor, 0)

    return with_opencv(blend, pixels)


def _rotate(pixels: np.ndarray, signed: float) -> np.ndarray:
    height, width = pixels.shape[:2]
    angle = math.radians(30 * signed)
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = (width - 1) / 2, (height - 1) / 2
    return _affine(pixels, cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)


def _affine(pixels: np.ndarray, *matrix: float) -> np.ndarray:
    """Return pixels at the positions that a matrix gives for those of the result."""
    size = (pixels.shape[1], pixels.shape[0])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    values = np.array(matrix, dtype=np.float64).reshape(2, 3)

    def warp(part: np.ndarray) -> np.ndarray:
        fill = (GRAY,) * 4
        return cv2.warpAffine(part, values, size, flags=flags, borderValue=fill)

    return with_opencv(warp, pixels)


def _as_type_of(pixels: np.ndarray, values: np.ndarray) -> np.ndarray:
    values = np.clip(values, 0.0, WHITE)
    return np.rint(values).astype(np.uint8) if pixels.dtype == np.uint8 else values


# Operations by name. Each takes pixels (h, w, C) and a strength, -1 to 1.
ARRAY_OPERATIONS: dict[str, Operation] = {
    "auto_contrast": _auto_contrast,
    "rotate": _rotate,
    "contrast": lambda pixels, signed: scale_contrast(pixels, 1 + 0.9 * signed),
    "brightness": lambda pixels, signed: scale_brightness(pixels, 1 + 0.9 * signed),
    "sharpness": _sharpness,
    "shear_x": lambda pixels, signed: _affine(pixels, 1, 0.3 * signed, 0, 0, 1, 0),
    "shear_y": lambda pixels, signed: _affine(pixels, 1, 0, 0, 0.3 * signed, 1, 0),
    "translate_x": lambda pixels, signed: _affine(
        pixels, 1, 0, 0.45 * signed * pixels.shape[1], 0, 1, 0
    ),
    "translate_y": lambda pixels, signed: _affine(
        pixels, 1, 0, 0, 0, 1, 0.45 * signed * pixels.shape[0]
    ),
}


def apply_to_array(pixels: np.ndarray, name: str, strength: float) -> np.ndarray:
    """Return pixels after one operation.

    Args:
        pixels: Image, (h, w, C), uint8 or float32 from 0 to 255.
        name: Name of the operation, one of `ARRAY_OPERATIONS`.
        strength: Strength in [-1, 1].
    """
    return limited(ARRAY_OPERATIONS[name](pixels, strength))


__all__ = ["ARRAY_OPERATIONS", "apply_to_array"]
