"""RandAugment: apply two random operations of similar strength (arXiv 1909.13719).

The operations and their ranges are those used to fine-tune ViTs ("rand-m9-mstd0.5-inc1" of timm):
for every operation, a higher magnitude is a stronger change. They are not the fourteen of the
paper, as some of those get weaker with a higher magnitude.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from .randaugment_arrays import ARRAY_OPERATIONS, apply_to_array

GRAY = (128, 128, 128)  # fills the area that a moved image leaves empty


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    kind, bilinear = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    return image.transform(image.size, kind, matrix, bilinear, fillcolor=GRAY)


def _solarize_add(image: Image.Image, strength: float) -> Image.Image:
    added = round(strength * 110)
    return image.point(lambda level: min(255, level + added) if level < 128 else level)


def _enhance(kind: Callable) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, signed: kind(image).enhance(1 + 0.9 * signed)


# Operations by name. Each takes an image and a strength: 0 to 1, or -1 to 1 in SIGNED.
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
OPERATIONS = [*UNSIGNED, *SIGNED]


def apply(image: Image.Image, name: str, strength: float) -> Image.Image:
    """Return the image after one operation.

    Args:
        image: RGB image.
        name: Name of the operation, one of `OPERATIONS`.
        strength: Strength in [0, 1], or in [-1, 1] for an operation in `SIGNED`.
    """
    return (SIGNED.get(name) or UNSIGNED[name])(image, strength)


def rand_augment(
    pixels: np.ndarray, magnitude: float, std: float, rng: np.random.Generator
) -> np.ndarray:
    """Draw two operations and apply each with probability 0.5.

    Args:
        pixels: Image, (h, w, C), uint8 or float32 from 0 to 255. For an RGB image of eight bits,
            operations are drawn from `OPERATIONS`, else from `ARRAY_OPERATIONS`.
        magnitude: Mean of the magnitude, 0 to 10.
        std: Std of the magnitude, which is normally distributed and clipped to 0 to 10.
        rng: Random number generator.

    Returns:
        The changed image, of the same shape and type.
    """
    if pixels.dtype != np.uint8 or pixels.shape[2] != 3:
        for name, strength in _draws(list(ARRAY_OPERATIONS), magnitude, std, rng):
            pixels = apply_to_array(pixels, name, strength)
        return pixels
    image = Image.fromarray(pixels)
    for name, strength in _draws(OPERATIONS, magnitude, std, rng):
        image = apply(image, name, strength)
    return np.array(image)


def _draws(
    names: list[str], magnitude: float, std: float, rng: np.random.Generator
) -> Iterator[tuple[str, float]]:
    """Yield the operations to apply, at most two, and their strengths."""
    for name in rng.choice(names, size=2):
        strength = min(max(rng.normal(magnitude, std), 0.0), 10.0) / 10
        sign = rng.choice([-1.0, 1.0]) if name in SIGNED else 1.0
        if rng.random() < 0.5:
            yield str(name), float(sign * strength)


__all__ = ["OPERATIONS", "SIGNED", "UNSIGNED", "apply", "rand_augment"]
