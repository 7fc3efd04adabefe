"""Augmentations on uint8 images, for the workers of a DataLoader.

An augmentation is a frozen dataclass of its numbers; called with an image and a random generator,
it returns what the model's `forward` takes of that image, by name: its views, and the random
numbers of their masks, so that these too are a function of the draw.
"""

# V views · C channels · h, w pixels

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from ..options import check_fields


def count_patches(image_size: tuple[int, int], patch_size: int) -> int:
    """Return how many patches an image of (height, width) pixels has."""
    return (image_size[0] // patch_size) * (image_size[1] // patch_size)


@dataclass(frozen=True)
class Augmentation:
    """What the data set asks of an augmentation; its fields are the numbers.

    Raises:
        ValueError: If a number is out of range, or a list is not as long as its default.
    """

    small_crop_field: ClassVar[str | None] = None  # which holds their size, pixels

    def __post_init__(self) -> None:
        check_fields(self)

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
