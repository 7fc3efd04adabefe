"""Augmentation with one crop of an image and changes of color, for distillation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..options import option
from .base import Crop
from .functional import random_crops
from .multi_crop import ColoredCrops


@dataclass(frozen=True)
class ColoredCrop(ColoredCrops):
    """One random crop with changes of color, and random numbers from which the model mixes images.

    The defaults are those of LightlyTrain's distillation, without its blur, whose sigma of at most
    0.1 pixels changes nothing.
    """

    crop_scale: list[float] = option(
        [0.14, 1.0],
        "Smallest and largest area of the crop, as a fraction of the image",
        minimum=0,
        maximum=1,
    )
    blur_probability: float = option(
        0.0,
        "Probability of blur; multi-crop has one for each global view and one for local views",
        minimum=0,
        maximum=1,
    )

    def view_sizes(self, image_size: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the (height, width) of the crop."""
        return [image_size]

    def crops(
        self, size: tuple[int, int], image_size: tuple[int, int], rng: np.random.Generator
    ) -> list[Crop]:
        """Draw the box of the crop."""
        return random_crops(1, size, self.crop_scale, image_size, rng)

    def __call__(
        self,
        image: np.ndarray,
        rng: np.random.Generator,
        image_size: tuple[int, int],
        patch_size: int,
    ) -> dict[str, np.ndarray]:
        """Return "pixel_values" (C, H, W), and "mixing" (2,) float32 in 0 to 1."""
        (crop,) = self.crops(image.shape[:2], image_size, rng)
        view = self._view(image, crop, self.blur_probability, rng)
        return {
            "pixel_values": np.ascontiguousarray(view),
            "mixing": rng.random(2, dtype=np.float32),
        }


__all__ = ["ColoredCrop"]
