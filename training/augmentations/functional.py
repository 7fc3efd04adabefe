"""Transforms of one image, on uint8 pixels: crop, flip, color jitter, blur, random erasing.

Crops are resized by torch's antialiased interpolation; color and blur use OpenCV.
"""

# C channels · h, w pixels

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

try:
    import cv2
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError('augmentations need OpenCV; pip install "selfvit[train]"') from error


def random_crop_box(
    height: int, width: int, scale: list[float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw a crop of random area and aspect ratio (Inception, arXiv 1409.4842, Sec. 6).

    Args:
        height: Height of the image, pixels.
        width: Width of the image, pixels.
        scale: Smallest and largest area of the crop, as fractions of the image's area.
        rng: Random number generator.

    Returns:
        (top, left, height, width) in pixels. Aspect ratios are log-uniform in 3/4 to 4/3. If ten
        draws do not fit into the image, the largest central crop of an allowed ratio.
    """
    log_ratio = math.log(4 / 3)
    for _ in range(10):
        area = height * width * rng.uniform(scale[0], scale[1])
        ratio = math.exp(rng.uniform(-log_ratio, log_ratio))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(0, height - crop_height + 1))
            left = int(rng.integers(0, width - crop_width + 1))
            return top, left, crop_height, crop_width
    crop_width = min(width, max(1, round(height * 4 / 3)))
    crop_height = min(height, max(1, round(width * 4 / 3)))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def crop_and_resize(
    pixels: np.ndarray, box: tuple[int, int, int, int], size: tuple[int, int]
) -> np.ndarray:
    """Crop (h, w, C) uint8 pixels and resize the crop, bicubic and antialiased.

    Args:
        pixels: Image, (h, w, C) uint8.
        box: (top, left, height, width) of the crop, pixels.
        size: Height and width of the result, pixels.
    """
    top, left, height, width = box
    crop = pixels[top : top + height, left : left + width]
    channels_last = torch.from_numpy(crop).permute(2, 0, 1).unsqueeze(0)  # (1, C, h, w), a view
    resized = F.interpolate(channels_last, size=size, mode="bicubic", antialias=True)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def jitter_color(
    pixels: np.ndarray, strengths: list[float], rng: np.random.Generator
) -> np.ndarray:
    """Change brightness, contrast, saturation and hue, in random order.

    Args:
        pixels: RGB image, (h, w, 3) uint8.
        strengths: Strengths of the four changes. The first three multiply by a factor in
            1 +- strength; the last turns the color circle by up to +- strength turns.
        rng: Random number generator.
    """
    for kind in rng.permutation(4):
        strength = strengths[kind]
        if strength == 0:
            continue
        if kind == 3:
            hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL)
            # uint8 wraps around, as the color circle does
            hsv[..., 0] += np.uint8(round(rng.uniform(-strength, strength) * 255) % 256)
            pixels = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
            continue
        factor = rng.uniform(max(0.0, 1 - strength), 1 + strength)
        if kind == 0:
            pixels = cv2.addWeighted(pixels, factor, pixels, 0, 0)
            continue
        gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        if kind == 1:
            pixels = cv2.addWeighted(pixels, factor, pixels, 0, (1 - factor) * cv2.mean(gray)[0])
        else:
            gray = cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB)
            pixels = cv2.addWeighted(pixels, factor, gray, 1 - factor, 0)
    return pixels


def flip(pixels: np.ndarray) -> np.ndarray:
    """Flip (h, w, 3) uint8 pixels horizontally."""
    return cv2.flip(pixels, 1)


def to_gray(pixels: np.ndarray) -> np.ndarray:
    """Convert (h, w, 3) uint8 pixels to gray, with three equal channels."""
    return cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Blur (h, w, 3) uint8 pixels by a Gaussian with a sigma in pixels."""
    return cv2.GaussianBlur(pixels, (0, 0), sigma)


def erase_box(
    pixels: np.ndarray, area: list[float], ratio: float, rng: np.random.Generator
) -> np.ndarray:
    """Fill a random box with uniformly random levels (random erasing, arXiv 1708.04896, Alg. 1).

    Args:
        pixels: Image, (h, w, C) uint8.
        area: Smallest and largest area of the box, as fractions of the image's area.
        ratio: Smallest aspect ratio of the box (height / width), at most 1; the largest is its
            inverse.
        rng: Random number generator.

    Returns:
        A changed copy, or the image itself if ten draws do not fit into it.
    """
    height, width, channels = pixels.shape
    for _ in range(10):
        box_area = height * width * rng.uniform(area[0], area[1])
        box_ratio = math.exp(rng.uniform(math.log(ratio), -math.log(ratio)))
        box_height = round(math.sqrt(box_area * box_ratio))
        box_width = round(math.sqrt(box_area / box_ratio))
        if 0 < box_height < height and 0 < box_width < width:
            top = rng.integers(0, height - box_height + 1)
            left = rng.integers(0, width - box_width + 1)
            erased = pixels.copy()
            erased[top : top + box_height, left : left + box_width] = rng.integers(
                0, 256, (box_height, box_width, channels), dtype=np.uint8
            )
            return erased
    return pixels


__all__ = [
    "blur",
    "crop_and_resize",
    "erase_box",
    "flip",
    "jitter_color",
    "random_crop_box",
    "to_gray",
]
