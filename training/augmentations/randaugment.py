"""RandAugment: two random changes of one strength (arXiv 1909.13719).

The changes and their ranges are those that ViTs are fine-tuned with ("rand-m9-mstd0.5-inc1" of
timm: a higher magnitude is a stronger change for every kind), not the paper's own fourteen, of
which some weaken as the magnitude grows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

GRAY = (128, 128, 128)  # where a shifted image leaves nothing


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    kind, bilinear = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    return image.transform(image.size, kind, matrix, bilinear, fillcolor=GRAY)


def _solarize_add(image: Image.Image, strength: float) -> Image.Image:
    added = round(strength * 110)
    return image.point(lambda level: min(255, level + added) if level < 128 else level)


def _enhance(kind: Callable) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, signed: kind(image).enhance(1 + 0.9 * signed)


# A change takes an image and a strength: 0 to 1, and with a random sign for those of `SIGNED`.
UNSIGNED: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "auto_contrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "invert": lambda image, _: ImageOps.invert(image),
    "posterize": lambda image, strength: ImageOps.posterize(image, max(1, 4 - int(strength * 4))),
    "solarize": lambda image, strength: ImageOps.solarize(image, 256 - int(strength * 256)),
    "solarize_add": _solarize_add,
}
SIGNED: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "rotate": lambda image, signed: image.rotate(
        30 * signed, Image.Resampling.BILINEAR, fillcolor=GRAY
    ),
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": lambda image, signed: _affine(image, 1, 0.3 * signed, 0, 0, 1, 0),
    "shear_y": lambda image, signed: _affine(image, 1, 0, 0, 0.3 * signed, 1, 0),
    "translate_x": lambda image, signed: _affine(image, 1, 0, 0.45 * signed * image.width, 0, 1, 0),
    "translate_y": lambda image, signed: _affine(
        image, 1, 0, 0, 0, 1, 0.45 * signed * image.height
    ),
}
KINDS = [*UNSIGNED, *SIGNED]


def change(image: Image.Image, kind: str, strength: float) -> Image.Image:
    """Apply one change; the strength is in [0, 1], in [-1, 1] for a kind of `SIGNED`."""
    return (SIGNED.get(kind) or UNSIGNED[kind])(image, strength)


def rand_augment(
    pixels: np.ndarray, magnitude: float, deviation: float, rng: np.random.Generator
) -> np.ndarray:
    """Change (h, w, 3) uint8 pixels twice, each time by a random kind and half of the time.

    Args:
        pixels: RGB.
        magnitude: mean strength, 0 to 10.
        deviation: of the strength, which is normal and cut off at 0 and 10.
        rng: source of randomness.
    """
    image = Image.fromarray(pixels)
    for kind in rng.choice(KINDS, size=2):
        strength = min(max(rng.normal(magnitude, deviation), 0.0), 10.0) / 10
        sign = rng.choice([-1.0, 1.0]) if kind in SIGNED else 1.0
        if rng.random() < 0.5:
            image = change(image, str(kind), float(sign * strength))
    return np.array(image)


__all__ = ["KINDS", "SIGNED", "UNSIGNED", "change", "rand_augment"]
