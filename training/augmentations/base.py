"""Augmentations on uint8 images, for the workers of a DataLoader.

An augmentation is a frozen dataclass of its numbers; called with an image and a random generator,
it returns what the model's `forward` takes of that image, by name: its views, and the random
numbers of their masks, so that these too are a function of the draw.
"""

# V views · C channels · h, w pixels

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from ..options import ABOVE_0, check_limits


def count_patches(image_size: tuple[int, int], patch_size: int) -> int:
    """Return how many patches an image of (height, width) pixels has."""
    return (image_size[0] // patch_size) * (image_size[1] // patch_size)


# Least and most of every field of an augmentation, and of each number where it has several.
LIMITS: dict[str, tuple[float, float]] = {
    "num_local_views": (0, math.inf), "num_focal_views": (0, math.inf),
    "num_random_views": (1, math.inf),
    "local_view_size": (1, math.inf), "focal_view_size": (1, math.inf),
    "crop_scale": (0, 1), "global_crop_scale": (0, 1), "local_crop_scale": (0, 1),
    "random_crop_scale": (0, 1), "focal_crop_scale": (0, 1), "erased_area": (0, 1),
    "blur_sigma": (0, math.inf), "color_jitter": (0, math.inf), "erased_ratio": (ABOVE_0, 1),
    "flip_probability": (0, 1), "color_jitter_probability": (0, 1), "blur_probability": (0, 1),
    "grayscale_probability": (0, 1), "solarize_probability": (0, 1),
    "random_erasing_probability": (0, 1), "label_smoothing": (0, 1),
    "rand_augment_magnitude": (0, 10), "rand_augment_deviation": (0, math.inf),
    "mixup_alpha": (0, math.inf), "cutmix_alpha": (0, math.inf),
}  # fmt: skip


@dataclass(frozen=True)
class Augmentation:
    """What the data set asks of an augmentation; its fields are the numbers.

    Raises:
        ValueError: if one is outside of LIMITS, or a list has not as many as its default.
    """

    small_crop_field: ClassVar[str | None] = None  # which holds their size, pixels

    def __post_init__(self) -> None:
        for entry in fields(self):
            check_limits(entry, getattr(self, entry.name), *LIMITS[entry.name])

    def __call__(
        self,
        image: Image.Image,
        rng: np.random.Generator,
        image_size: tuple[int, int],
        patch_size: int,
    ) -> dict[str, np.ndarray]:
        """Return the inputs of the model for one image, by name.

        Args:
            image: RGB.
            rng: source of randomness.
            image_size: (height, width) of the model's images, pixels.
            patch_size: of the model, pixels.

        Returns:
            views in uint8, (V, C, h, w) for several and (C, h, w) for one; numbers of their patches
            in float32, (V, N) or (N,).
        """
        raise NotImplementedError

    def view_sizes(self, image_size: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the (height, width) of the views, for checks against the patch size."""
        raise NotImplementedError

    def for_images(
        self, then: tuple[int, int], now: tuple[int, int], patch_size: int
    ) -> Augmentation:
        """Return it for a model of other images: small crops keep their share of them.

        Args:
            then: (height, width) of the images that its numbers are for, pixels.
            now: (height, width) of the model's images, pixels.
            patch_size: of the model, pixels; the size of small crops becomes a multiple of it.
        """
        if self.small_crop_field is None:
            return self
        size = getattr(self, self.small_crop_field) * min(now) / min(then)
        size = max(1, round(size / patch_size)) * patch_size
        return replace(self, **{self.small_crop_field: size})

    def mix(
        self, batch: dict[str, Any], rng: np.random.Generator, num_classes: int
    ) -> dict[str, Any]:
        """Return a labeled batch with images combined, for augmentations that do so.

        Args:
            batch: as `collate` stacks it; "labels" are (B,) class indices.
            rng: source of randomness, of this batch.
            num_classes: of the data.
        """
        return batch


__all__ = ["Augmentation"]
