"""Base class of the augmentations: functions of a uint8 image and a random generator.

An augmentation is a frozen dataclass of its settings. It runs in the workers of the DataLoader and
returns the arguments of the model's `forward` for one image, by name: the views, and the random
numbers from which the model makes its masks. Masks therefore depend only on the generator.
"""

# V views · C channels · h, w pixels

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from ..options import check_fields


def count_patches(image_size: tuple[int, int], patch_size: int) -> int:
    """Return the number of patches of an image.

    Args:
        image_size: Height and width of the image, pixels.
        patch_size: Side of a patch, pixels.
    """
    return (image_size[0] // patch_size) * (image_size[1] // patch_size)


@dataclass(frozen=True)
class Augmentation:
    """Base class of augmentations, which the dataset calls; the fields are the settings.

    Attributes:
        small_crop_field: Name of the field with the size of small crops, None if there are none.

    Raises:
        ValueError: If a number is out of range, or a list is not as long as its default.
    """

    small_crop_field: ClassVar[str | None] = None

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
            image: RGB image.
            rng: Random number generator.
            image_size: Height and width of the model's images, pixels.
            patch_size: Side of the model's patches, pixels.

        Returns:
            Views as uint8, (V, C, h, w) for several and (C, h, w) for one; random numbers for their
            patches as float32, (V, N) or (N,).
        """
        raise NotImplementedError

    def view_sizes(self, image_size: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the (height, width) of the views, to check them against the patch size."""
        raise NotImplementedError

    def for_image_size(
        self, old_size: tuple[int, int], new_size: tuple[int, int], patch_size: int
    ) -> Augmentation:
        """Return the augmentation for another image size, with its small crops scaled alike.

        Args:
            old_size: Height and width of the images that the settings are for, pixels.
            new_size: Height and width of the model's images, pixels.
            patch_size: Side of the model's patches, pixels. The size of small crops is rounded to a
                multiple of it.
        """
        if self.small_crop_field is None:
            return self
        size = getattr(self, self.small_crop_field) * min(new_size) / min(old_size)
        size = max(1, round(size / patch_size)) * patch_size
        return replace(self, **{self.small_crop_field: size})

    def mix(
        self, batch: dict[str, Any], rng: np.random.Generator, num_classes: int
    ) -> dict[str, Any]:
        """Return a labeled batch with its images combined; by default, the batch unchanged.

        Args:
            batch: Batch from `collate`; "labels" are (B,) class indices.
            rng: Random number generator of this batch.
            num_classes: Number of classes of the data.
        """
        return batch


__all__ = ["Augmentation"]
