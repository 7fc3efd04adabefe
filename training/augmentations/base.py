"""Base class of the augmentations: functions of an image and a random generator.

An image is an array (H, W, C) on the scale of eight bits: uint8, or float32 from 0 to 255. Its
views have the same type. An augmentation is a frozen dataclass of its settings. It runs in the
workers of the DataLoader and returns the arguments of the model's `forward` for one image, by name:
the views, and the random numbers from which the model makes its masks. Masks therefore depend only
on the generator.
"""

# V views · C channels · h, w pixels

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ...configuration.configuration_selfvit import SelfViTConfig
from ..options import check_fields

# (top, left, height, width) of a crop in its image, and (height, width) of its view, in pixels.
Crop = tuple[tuple[int, int, int, int], tuple[int, int]]


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
        image: np.ndarray,
        rng: np.random.Generator,
        image_size: tuple[int, int],
        patch_size: int,
    ) -> dict[str, np.ndarray]:
        """Return the inputs of the model for one image, by name.

        Args:
            image: Image, (H, W, C), uint8 or float32 from 0 to 255.
            rng: Random number generator.
            image_size: Height and width of the model's images, pixels.
            patch_size: Side of the model's patches, pixels.

        Returns:
            Views of the type of the image, (V, C, h, w) for several and (C, h, w) for one; random
            numbers for their patches as float32, (V, N) or (N,).
        """
        raise NotImplementedError

    def view_sizes(self, image_size: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the (height, width) of the views, to check them against the patch size."""
        raise NotImplementedError

    def crops(
        self, size: tuple[int, int], image_size: tuple[int, int], rng: np.random.Generator
    ) -> list[Crop]:
        """Draw the boxes of the views, relative to the size of the image, and before all else.

        By default there are none, so that no image is reduced while it is decoded.

        Args:
            size: Height and width of the image, pixels.
            image_size: Height and width of the model's images, pixels.
            rng: Random number generator.
        """
        return []

    def source_size(
        self, size: tuple[int, int], image_size: tuple[int, int], rng: np.random.Generator
    ) -> tuple[int, int]:
        """Return the (height, width) that an image needs so that none of its crops is enlarged.

        Args:
            size: Height and width of the image, pixels.
            image_size: Height and width of the model's images, pixels.
            rng: Random number generator, in the state in which the augmentation will get it.
        """
        crops = self.crops(size, image_size, rng)
        ratios = [max(h / box[2], w / box[3]) for box, (h, w) in crops] or [1.0]
        return math.ceil(size[0] * max(ratios)), math.ceil(size[1] * max(ratios))

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

    def rgb_only(self) -> dict[str, Any]:
        """Return the fields that need three channels, with the values that need none."""
        return {}

    def without_color(self) -> dict[str, Any]:
        """Return the fields of color changes, with the values that other channels get by default.

        Brightness and contrast stay, as they are defined for any channels.
        """
        return self.rgb_only()

    def for_num_channels(self, num_channels: int, chosen: Collection[str] = ()) -> Augmentation:
        """Return the augmentation for a number of channels, without color changes unless it is 3.

        Args:
            num_channels: Number of channels of the model's images.
            chosen: Names of fields that were asked for, which keep their values.
        """
        if num_channels == 3:
            return self
        plain = {name: v for name, v in self.without_color().items() if name not in chosen}
        return replace(self, **plain)

    def check_model(self, model: SelfViTConfig) -> None:
        """Check that the fields fit a model.

        Raises:
            ValueError: If they contradict each other.
        """
        self.check_channels(model.num_channels)

    def check_channels(self, num_channels: int) -> None:
        """Check that no field asks for a color change that the channels do not allow.

        Raises:
            ValueError: If a field needs three channels, and there is another number.
        """
        for name, allowed in self.rgb_only().items():
            value = getattr(self, name)
            if num_channels != 3 and value != allowed:
                raise ValueError(
                    f"{name} ({_shown(value)}) changes colors, which needs 3 channels, but "
                    f"num_channels is {num_channels}; set --{name.replace('_', '-')} "
                    f"{_shown(allowed)}, or leave it out."
                )

    def describe_color(self) -> str:
        """Return the values of the fields of color changes, in words."""
        values = {name: getattr(self, name) for name in self.without_color()}
        return ", ".join(f"{name} {_shown(value)}" for name, value in values.items())

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


def _shown(value: float | list[float]) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


__all__ = ["Augmentation", "Crop"]
