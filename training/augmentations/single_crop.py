"""Augmentations with one crop of an image, for MAE and supervised training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..options import option
from .base import Augmentation, Crop, count_patches
from .functional import (
    central_box,
    crop_and_resize,
    erase_box,
    flip,
    jitter_color,
    random_crops,
)
from .mixup import cutmix, mixup, random_cut_box, random_partners, smooth_labels
from .randaugment import rand_augment
from .randaugment_arrays import ARRAY_OPERATIONS


@dataclass(frozen=True)
class CropAndFlip(Augmentation):
    """One random crop and a horizontal flip: the plain augmentation of supervised training."""

    crop_scale: list[float] = option(
        [0.25, 1.0],
        "Smallest and largest area of the crop, as a fraction of the image",
        minimum=0,
        maximum=1,
    )
    flip_probability: float = option(
        0.5,
        "Probability of a horizontal flip",
        minimum=0,
        maximum=1,
    )
    color_jitter: list[float] = option(
        [0.0, 0.0, 0.0, 0.0],
        "Strength of color jitter: brightness, contrast, saturation and hue (in turns)",
        minimum=0,
    )

    def view_sizes(self, image_size: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the (height, width) of the crop."""
        return [image_size]

    def crops(
        self, size: tuple[int, int], image_size: tuple[int, int], rng: np.random.Generator
    ) -> list[Crop]:
        """Draw the box of the crop; for the whole area, the largest undistorted central one."""
        if min(self.crop_scale) == 1:
            return [(central_box(size, image_size), image_size)]
        return random_crops(1, size, self.crop_scale, image_size, rng)

    def rgb_only(self) -> dict[str, Any]:
        """Return the field of saturation and hue, with its value without these."""
        return {"color_jitter": [*self.color_jitter[:2], 0.0, 0.0]}

    def __call__(
        self,
        image: np.ndarray,
        rng: np.random.Generator,
        image_size: tuple[int, int],
        patch_size: int,
    ) -> dict[str, np.ndarray]:
        """Return "pixel_values" (C, H, W)."""
        view = self._view(image, rng, image_size)
        return {"pixel_values": np.ascontiguousarray(view.transpose(2, 0, 1))}

    def _view(
        self, image: np.ndarray, rng: np.random.Generator, image_size: tuple[int, int]
    ) -> np.ndarray:
        """Return the view, (h, w, C)."""
        (crop,) = self.crops(image.shape[:2], image_size, rng)
        view = crop_and_resize(image, *crop)
        if rng.random() < self.flip_probability:
            view = flip(view)
        return jitter_color(view, self.color_jitter, rng)


@dataclass(frozen=True)
class MAECrop(CropAndFlip):
    """One random crop and a flip, without color changes (MAE, arXiv 2111.06377, Table 1e)."""

    crop_scale: list[float] = option(
        [0.2, 1.0],  # main_pretrain.py
        "Smallest and largest area of the crop, as a fraction of the image",
        minimum=0,
        maximum=1,
    )

    def __call__(
        self,
        image: np.ndarray,
        rng: np.random.Generator,
        image_size: tuple[int, int],
        patch_size: int,
    ) -> dict[str, np.ndarray]:
        """Return "pixel_values" (C, H, W), and "noise" (N,) float32, which makes the mask."""
        num_patches = count_patches(image_size, patch_size)
        view = super().__call__(image, rng, image_size, patch_size)
        return {**view, "noise": rng.random(num_patches, dtype=np.float32)}


@dataclass(frozen=True)
class MixedCrop(CropAndFlip):
    """One random crop with strong regularization, all of it off by default.

    RandAugment and random erasing change single images. For channels other than RGB, or more than
    eight bits, RandAugment has only the operations that are defined there. Mixup or cutmix then
    combines each image of a batch and its label with another one; if both are on, each is used for
    half of the batches. Labels become soft, (B, L) float32.
    """

    rand_augment_magnitude: float = option(
        0.0,
        "Magnitude of RandAugment, 0 to 10; 0 means none",
        minimum=0,
        maximum=10,
    )
    rand_augment_std: float = option(
        0.5,
        "Std of the magnitude of RandAugment",
        minimum=0,
    )
    random_erasing_probability: float = option(
        0.0,
        "Probability of random erasing",
        minimum=0,
        maximum=1,
    )
    erased_area: list[float] = option(
        [0.02, 0.33],
        "Smallest and largest area of an erased box, as a fraction of the image",
        minimum=0,
        maximum=1,
    )
    erased_ratio: float = option(
        0.3,
        "Smallest aspect ratio of an erased box (height / width); the largest is its inverse",
        above=0,
        maximum=1,
    )
    mixup_alpha: float = option(
        0.0,
        "Alpha of the Beta distribution of mixup; 0 means no mixup",
        minimum=0,
    )
    cutmix_alpha: float = option(
        0.0,
        "Alpha of the Beta distribution of cutmix; 0 means no cutmix",
        minimum=0,
    )
    label_smoothing: float = option(
        0.0,
        "Fraction of the label's probability that is spread evenly over all classes",
        minimum=0,
        maximum=1,
    )

    def _view(
        self, image: np.ndarray, rng: np.random.Generator, image_size: tuple[int, int]
    ) -> np.ndarray:
        """Return the view, (h, w, C)."""
        view = super()._view(image, rng, image_size)
        if self.rand_augment_magnitude > 0:
            view = rand_augment(view, self.rand_augment_magnitude, self.rand_augment_std, rng)
        if rng.random() < self.random_erasing_probability:
            view = erase_box(view, self.erased_area, self.erased_ratio, rng)
        return view

    def describe_color(self) -> str:
        """Return the values of the fields of color changes, and the operations of RandAugment."""
        text = super().describe_color()
        if self.rand_augment_magnitude > 0:
            text += f", RandAugment without color: {', '.join(ARRAY_OPERATIONS)}"
        return text

    def mix(
        self, batch: dict[str, Any], rng: np.random.Generator, num_classes: int
    ) -> dict[str, Any]:
        """Return the batch with mixed "pixel_values" and soft "labels" (B, L) float32."""
        images = batch["pixel_values"]
        labels = smooth_labels(batch["labels"], num_classes, self.label_smoothing)
        partners = random_partners(len(images), rng)
        alphas = {"mixup": self.mixup_alpha, "cutmix": self.cutmix_alpha}
        methods = [name for name, alpha in alphas.items() if alpha > 0]
        if methods:
            method = methods[rng.integers(len(methods))]
            share = rng.beta(alphas[method], alphas[method])
            if method == "mixup":
                images, labels = mixup(images, labels, partners, share)
            else:
                box = random_cut_box(images.shape[2], images.shape[3], share, rng)
                images, labels = cutmix(images, labels, partners, box)
        return {**batch, "pixel_values": images, "labels": labels}


__all__ = ["CropAndFlip", "MAECrop", "MixedCrop"]
