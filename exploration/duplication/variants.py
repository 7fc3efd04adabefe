"""Make the variants of an image that count as its near duplicates."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

QUALITY = (30, 95)  # of JPEG
SCALE = (0.5, 1.5)  # of the side
LEAST_SHARE = 0.95  # of width and of height that a crop keeps
BRIGHTNESS = (0.85, 1.15)  # factor of the pixels


def reencode(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the image after JPEG compression of a random quality."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=int(rng.integers(QUALITY[0], QUALITY[1] + 1)))
    return Image.open(buffer).convert("RGB")


def resize(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the image in a random size; the aspect ratio stays the same."""
    scale = rng.uniform(*SCALE)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def crop(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return a random crop that keeps almost the entire image."""
    size = [max(1, round(side * rng.uniform(LEAST_SHARE, 1))) for side in picture.size]
    left, top = (
        int(rng.integers(0, whole - part + 1))
        for whole, part in zip(picture.size, size, strict=True)
    )
    return picture.crop((left, top, left + size[0], top + size[1]))


def brighten(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the image with all pixels multiplied by a random factor."""
    pixels = np.asarray(picture, dtype=np.float32) * rng.uniform(*BRIGHTNESS)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


VARIANTS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "re-encoded": reencode,
    "resized": resize,
    "cropped": crop,
    "brightness": brighten,
}

__all__ = ["LEAST_SHARE", "VARIANTS", "brighten", "crop", "reencode", "resize"]
