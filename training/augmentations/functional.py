"""Transforms of one image: crop, flip, color jitter, blur, solarization, random erasing.

Pixels are (h, w, C) on the scale of eight bits: uint8, or float32 from 0 to 255, which is never
rounded. Crops are resized by torch's antialiased interpolation; color and blur use OpenCV.
"""

# C channels · h, w pixels

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

from ...pixel_scale import GRAY_WEIGHTS
from .base import Crop

try:
    import cv2
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError('augmentations need OpenCV; pip install "selfvit[train]"') from error

WHITE = 255.0  # largest level of float32 pixels
MAX_OPENCV_CHANNELS = 4  # some functions of OpenCV take no more


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
    for draws in rng.random((10, 4)).tolist():  # one call, which takes less time than four
        area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[0])
        ratio = (4 / 3) ** (2 * draws[1] - 1)
        sides = math.sqrt(area / ratio), math.sqrt(area * ratio)
        if sides[0] <= height and sides[1] <= width:  # before rounding: the same for any resolution
            crop_height, crop_width = (max(1, round(side)) for side in sides)
            top = int((height - crop_height + 1) * draws[2])
            left = int((width - crop_width + 1) * draws[3])
            return top, left, crop_height, crop_width
    crop_width = min(width, max(1, round(height * 4 / 3)))
    crop_height = min(height, max(1, round(width * 4 / 3)))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def central_box(size: tuple[int, int], view_size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the largest box in the center of an image that has the proportions of a view.

    Args:
        size: Height and width of the image, pixels.
        view_size: Height and width of the view, pixels.

    Returns:
        (top, left, height, width) in pixels.
    """
    (height, width), (view_height, view_width) = size, view_size
    crop_height = min(height, max(1, round(width * view_height / view_width)))
    crop_width = min(width, max(1, round(height * view_width / view_height)))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def random_crops(
    count: int,
    size: tuple[int, int],
    scale: list[float],
    view_size: tuple[int, int],
    rng: np.random.Generator,
) -> list[Crop]:
    """Draw the boxes of several views.

    Args:
        count: Number of views.
        size: Height and width of the image, pixels.
        scale: Smallest and largest area of a crop, as fractions of the image's area.
        view_size: Height and width of a view, pixels.
        rng: Random number generator.
    """
    return [(random_crop_box(*size, scale, rng), view_size) for _ in range(count)]


def crop_and_resize(
    pixels: np.ndarray, box: tuple[int, int, int, int], size: tuple[int, int]
) -> np.ndarray:
    """Crop (h, w, C) pixels and resize the crop, bicubic and antialiased.

    Args:
        pixels: Image, (h, w, C), uint8 or float32.
        box: (top, left, height, width) of the crop, pixels.
        size: Height and width of the result, pixels.
    """
    top, left, height, width = box
    # A copy with its axes in this order makes torch write the result in the same order.
    crop = np.ascontiguousarray(pixels[top : top + height, left : left + width])
    channels_last = torch.from_numpy(crop).unsqueeze(0).permute(0, 3, 1, 2)  # (1, C, h, w), a view
    resized = F.interpolate(channels_last, size=size, mode="bicubic", antialias=True)
    return limited(np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy()))


def limited(pixels: np.ndarray) -> np.ndarray:
    """Limit float32 pixels to 0 to 255, as uint8 is by its type; return uint8 pixels unchanged."""
    return pixels if pixels.dtype == np.uint8 else np.clip(pixels, 0.0, WHITE, out=pixels)


def with_opencv(function: Callable[[np.ndarray], np.ndarray], pixels: np.ndarray) -> np.ndarray:
    """Apply a function of OpenCV that treats channels alike, to (h, w, C) pixels with any C.

    OpenCV drops the last axis of an image with one channel, and takes at most four in places.
    """
    if pixels.shape[2] <= MAX_OPENCV_CHANNELS:
        return limited(function(pixels).reshape(pixels.shape))
    groups = [
        with_opencv(
            function, np.ascontiguousarray(pixels[..., first : first + MAX_OPENCV_CHANNELS])
        )
        for first in range(0, pixels.shape[2], MAX_OPENCV_CHANNELS)
    ]
    return np.concatenate(groups, axis=2)


def jitter_color(
    pixels: np.ndarray, strengths: list[float], rng: np.random.Generator
) -> np.ndarray:
    """Change brightness, contrast, saturation and hue, in random order.

    Args:
        pixels: Image, (h, w, C), uint8 or float32.
        strengths: Strengths of the four changes. The first three multiply by a factor in
            1 +- strength; the last turns the color circle by up to +- strength turns. Saturation
            and hue are for RGB images; with other channels, their strengths must be 0.
        rng: Random number generator.
    """
    for kind in rng.permutation(4):
        strength = strengths[kind]
        if strength == 0:
            continue
        if kind == 3:
            pixels = _turn_hue(pixels, rng.uniform(-strength, strength))
            continue
        factor = rng.uniform(max(0.0, 1 - strength), 1 + strength)
        if kind == 0:
            pixels = scale_brightness(pixels, factor)
        elif kind == 1:
            pixels = scale_contrast(pixels, factor)
        else:
            pixels = scale_saturation(pixels, factor)
    return pixels


def scale_brightness(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Multiply all levels of (h, w, C) pixels by a factor."""
    return with_opencv(lambda part: cv2.addWeighted(part, factor, part, 0, 0), pixels)


def scale_contrast(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Multiply the distances of (h, w, C) pixels from their mean by a factor.

    With three channels, the mean is that of the gray image. Otherwise it is that of each channel,
    as bands of other instruments differ much in their level, and no gray image is defined.
    """
    if pixels.shape[2] == 3:
        mean = float(np.dot(GRAY_WEIGHTS, cv2.mean(pixels)[:3]))
        return limited(cv2.addWeighted(pixels, factor, pixels, 0, (1 - factor) * mean))
    means = pixels.mean(axis=(0, 1), dtype=np.float64)
    scaled = pixels.astype(np.float32) * np.float32(factor)
    scaled += ((1 - factor) * means).astype(np.float32)
    scaled = np.clip(scaled, 0.0, WHITE, out=scaled)
    return scaled if pixels.dtype != np.uint8 else np.rint(scaled).astype(np.uint8)


def scale_saturation(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Multiply the distances of (h, w, 3) pixels from their gray values by a factor."""
    matrix = np.zeros((3, 4))  # the last column is added; without it, OpenCV rounds down
    matrix[:, :3] = factor * np.eye(3) + (1 - factor) * np.array(GRAY_WEIGHTS)
    return limited(cv2.transform(pixels, matrix))


def _turn_hue(pixels: np.ndarray, turns: float) -> np.ndarray:
    """Turn the color circle of (h, w, 3) pixels by a number of turns."""
    if pixels.dtype == np.uint8:
        hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL)
        # uint8 wraps around, as the color circle does
        hsv[..., 0] += np.uint8(round(turns * 255) % 256)
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
    hsv = cv2.cvtColor(pixels / np.float32(WHITE), cv2.COLOR_RGB2HSV)  # hue in degrees
    hsv[..., 0] = (hsv[..., 0] + np.float32(360 * turns)) % np.float32(360)
    return limited(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * np.float32(WHITE))


def flip(pixels: np.ndarray) -> np.ndarray:
    """Flip (h, w, C) pixels horizontally."""
    return with_opencv(lambda part: cv2.flip(part, 1), pixels)


def to_gray(pixels: np.ndarray) -> np.ndarray:
    """Convert (h, w, 3) pixels to gray, with three equal channels."""
    return cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Blur (h, w, C) pixels by a Gaussian with a sigma in pixels."""
    # GaussianBlur takes twice as long, and is less exact, for eight bits.
    kernel = cv2.getGaussianKernel(round(6 * sigma + 1) | 1, sigma)
    return with_opencv(lambda part: cv2.sepFilter2D(part, -1, kernel, kernel), pixels)


def solarize(pixels: np.ndarray) -> np.ndarray:
    """Invert the levels of the upper half; pixels have any shape."""
    return np.minimum(pixels, 255 - pixels)


def erase_box(
    pixels: np.ndarray, area: list[float], ratio: float, rng: np.random.Generator
) -> np.ndarray:
    """Fill a random box with uniformly random levels (random erasing, arXiv 1708.04896, Alg. 1).

    Args:
        pixels: Image, (h, w, C), uint8 or float32.
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
            erased[top : top + box_height, left : left + box_width] = _random_levels(
                (box_height, box_width, channels), pixels.dtype, rng
            )
            return erased
    return pixels


def _random_levels(shape: tuple[int, ...], dtype: np.dtype, rng: np.random.Generator) -> np.ndarray:
    if dtype == np.uint8:
        return rng.integers(0, 256, shape, dtype=np.uint8)
    return rng.random(shape, dtype=np.float32) * np.float32(WHITE)


__all__ = [
    "central_box",
    "blur",
    "crop_and_resize",
    "erase_box",
    "flip",
    "jitter_color",
    "limited",
    "random_crop_box",
    "random_crops",
    "scale_brightness",
    "scale_contrast",
    "scale_saturation",
    "solarize",
    "to_gray",
    "with_opencv",
]
