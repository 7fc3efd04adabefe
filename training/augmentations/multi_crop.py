"""Augmentations with several crops of an image, for DINO, DINOv2, MSN and PMSN."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...configuration.configuration_selfvit import SelfViTConfig
from ..options import option
from .base import Augmentation, Crop, count_patches
from .block_masks import random_block_mask
from .functional import (
    blur,
    crop_and_resize,
    flip,
    jitter_color,
    random_crops,
    solarize,
    to_gray,
)


@dataclass(frozen=True)
class ColoredCrops(Augmentation):
    """Base of augmentations with random crops, flips, color jitter, grayscale and blur.

    The defaults are from BYOL (arXiv 2006.07733, Appendix B).
    """

    flip_probability: float = option(
        0.5,
        "Probability of a horizontal flip",
        minimum=0,
        maximum=1,
    )
    color_jitter: list[float] = option(
        [0.4, 0.4, 0.2, 0.1],
        "Strength of color jitter: brightness, contrast, saturation and hue (in turns)",
        minimum=0,
    )
    color_jitter_probability: float = option(
        0.8,
        "Probability of color jitter",
        minimum=0,
        maximum=1,
    )
    grayscale_probability: float = option(
        0.2,
        "Probability of conversion to gray",
        minimum=0,
        maximum=1,
    )
    blur_sigma: list[float] = option(
        [0.1, 2.0],
        "Smallest and largest sigma of the blur, in pixels",
        minimum=0,
    )

    def _view(
        self,
        pixels: np.ndarray,
        crop: Crop,
        blur_probability: float,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Return one view of (H, W, C) pixels, (C, h, w)."""
        view = crop_and_resize(pixels, *crop)
        if rng.random() < self.flip_probability:
            view = flip(view)
        if rng.random() < self.color_jitter_probability:
            view = jitter_color(view, self.color_jitter, rng)
        if rng.random() < self.grayscale_probability:
            view = to_gray(view)
        if rng.random() < blur_probability:
            view = blur(view, rng.uniform(self.blur_sigma[0], self.blur_sigma[1]))
        return view.transpose(2, 0, 1)

    def rgb_only(self) -> dict[str, Any]:
        """Return the fields of saturation, hue and grayscale, with their values without these."""
        return {"color_jitter": [*self.color_jitter[:2], 0.0, 0.0], "grayscale_probability": 0.0}


@dataclass(frozen=True)
class MultiCrop(ColoredCrops):
    """Two large and several small crops, the views of DINO (arXiv 2104.14294, Sec. 3.1 and 3.2).

    Solarization is from BYOL, too. A list of three numbers is for the first global view, the second
    global view and the local views.
    """

    small_crop_field = "local_view_size"

    num_local_views: int = option(
        8,
        "Number of local views (small crops) of an image",
        minimum=0,
    )
    local_view_size: int = option(
        96,
        "Size of a local view in pixels; scales with --image-size if not given",
        minimum=1,
    )
    global_crop_scale: list[float] = option(
        [0.4, 1.0],
        "Smallest and largest area of a global view, as a fraction of the image",
        minimum=0,
        maximum=1,
    )
    local_crop_scale: list[float] = option(
        [0.05, 0.4],
        "Smallest and largest area of a local view, as a fraction of the image",
        minimum=0,
        maximum=1,
    )
    blur_probability: list[float] = option(
        [1.0, 0.1, 0.5],
        "Probability of blur; multi-crop has one for each global view and one for local views",
        minimum=0,
        maximum=1,
    )
    solarize_probability: list[float] = option(
        [0.0, 0.2, 0.0],
        "Probability of solarization: first and second global view, local views",
        minimum=0,
        maximum=1,
    )

    def view_sizes(self, image_size: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the (height, width) of the global and of the local views."""
        local_size = (self.local_view_size, self.local_view_size)
        return [image_size, local_size] if self.num_local_views else [image_size]

    def __call__(
        self,
        image: np.ndarray,
        rng: np.random.Generator,
        image_size: tuple[int, int],
        patch_size: int,
    ) -> dict[str, np.ndarray]:
        """Return "global_views" (2, C, H, W) and, if any, "local_views" (V - 2, C, h, w)."""
        crops = self.crops(image.shape[:2], image_size, rng)
        views = self._solarized_views(image, crops, rng)
        inputs = {"global_views": np.stack(views[:2])}
        if self.num_local_views:
            inputs["local_views"] = np.stack(views[2:])
        return inputs

    def crops(
        self, size: tuple[int, int], image_size: tuple[int, int], rng: np.random.Generator
    ) -> list[Crop]:
        """Draw the boxes of the global views, then of the local views."""
        local_size = (self.local_view_size, self.local_view_size)
        return [
            *random_crops(2, size, self.global_crop_scale, image_size, rng),
            *random_crops(self.num_local_views, size, self.local_crop_scale, local_size, rng),
        ]

    def without_color(self) -> dict[str, Any]:
        """Return the fields of color changes, with the values that other channels get by default.

        Solarization is possible with any channels, but it is only for photos by default.
        """
        return {**self.rgb_only(), "solarize_probability": [0.0, 0.0, 0.0]}

    def _solarized_views(
        self, pixels: np.ndarray, crops: list[Crop], rng: np.random.Generator
    ) -> list[np.ndarray]:
        """Return the views of (H, W, C) pixels, (C, h, w) each, the two global ones first."""
        views = []
        for number, crop in enumerate(crops):
            kind = min(number, 2)
            view = self._view(pixels, crop, self.blur_probability[kind], rng)
            if rng.random() < self.solarize_probability[kind]:
                view = solarize(view)
            views.append(view)
        return views


@dataclass(frozen=True)
class MaskedMultiCrop(MultiCrop):
    """Multi-crop with block masks for the global views, as in DINOv2 (arXiv 2304.07193).

    Defaults are those of DINOv2's ssl_default_config.yaml. The reference draws the masked views of
    a batch together; here each image has its own, so that masks do not depend on the batch. Both
    mask the same fraction of the views, with the same distribution of ratios.
    """

    global_crop_scale: list[float] = option(
        [0.32, 1.0],  # crops.global_crops_scale
        "Smallest and largest area of a global view, as a fraction of the image",
        minimum=0,
        maximum=1,
    )
    local_crop_scale: list[float] = option(
        [0.05, 0.32],  # crops.local_crops_scale
        "Smallest and largest area of a local view, as a fraction of the image",
        minimum=0,
        maximum=1,
    )
    masked_view_ratio: float = option(
        0.5,  # ibot.mask_sample_probability
        "Fraction of the global views in which patches are masked",
        minimum=0,
        maximum=1,
    )
    masked_patch_ratio: list[float] = option(
        [0.1, 0.5],  # ibot.mask_ratio_min_max
        "Smallest and largest fraction of the patches of such a view that are masked",
        minimum=0,
        maximum=1,
    )
    gram_resolution_factor: int = option(
        1,
        "Size of the Gram teacher's views, as a multiple of the global views (DINOv3 uses 2)",
        minimum=1,
    )

    def check_model(self, model: SelfViTConfig) -> None:
        """Check that the fields fit a model.

        Raises:
            ValueError: If they contradict each other.
        """
        super().check_model(model)
        dinov2 = model.dinov2_config
        if dinov2 is None:
            return
        if self.gram_resolution_factor > 1 and dinov2.gram_weight == 0:
            raise ValueError(
                f"gram_resolution_factor ({self.gram_resolution_factor}) is for the Gram teacher, "
                "which gram_weight (0) disables; set --gram-weight above 0, or leave out "
                "--gram-resolution-factor."
            )
        if self.masked_view_ratio == 0 and dinov2.patch_loss_weight > 0:
            raise ValueError(
                f"patch_loss_weight ({dinov2.patch_loss_weight}) needs masked patches, but "
                "masked_view_ratio is 0; set --patch-loss-weight 0, or a --masked-view-ratio above "
                "0."
            )

    def view_sizes(self, image_size: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the (height, width) of the global, the local and the Gram teacher's views."""
        larger = [] if self.gram_resolution_factor == 1 else [self._gram_size(image_size)]
        return [*super().view_sizes(image_size), *larger]

    def source_size(
        self, size: tuple[int, int], image_size: tuple[int, int], rng: np.random.Generator
    ) -> tuple[int, int]:
        """Return the (height, width) that an image needs so that none of its crops is enlarged."""
        return super().source_size(size, self._gram_size(image_size), rng)

    def __call__(
        self,
        image: np.ndarray,
        rng: np.random.Generator,
        image_size: tuple[int, int],
        patch_size: int,
    ) -> dict[str, np.ndarray]:
        """Return the views of multi-crop, and masks of the global views.

        Returns:
            "global_views" (2, C, H, W), "bool_masked_pos" (2, N) bool, if any "local_views"
            (V - 2, C, h, w), and with a factor above 1 "gram_views", which are the global views in
            a higher resolution.
        """
        larger = {}
        if self.gram_resolution_factor > 1:
            same = copy.deepcopy(rng)  # the same crops, flips and colors
            larger["gram_views"] = self._gram_views(image, same, image_size)
        views = super().__call__(image, rng, image_size, patch_size)
        return {**views, **larger, "bool_masked_pos": self._masks(image_size, patch_size, rng)}

    def _masks(
        self, image_size: tuple[int, int], patch_size: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Return the masks of both global views, (2, N) bool."""
        grid = (image_size[0] // patch_size, image_size[1] // patch_size)
        masks = np.zeros((2, count_patches(image_size, patch_size)), dtype=bool)
        num_masked_views = int(2 * self.masked_view_ratio + rng.random())
        least, most = self.masked_patch_ratio
        for index in rng.permutation(2)[:num_masked_views]:
            num_masked = int(masks.shape[1] * rng.uniform(least, most))
            masks[index] = random_block_mask(grid, num_masked, rng).ravel()
        return masks

    def _gram_views(
        self, image: np.ndarray, rng: np.random.Generator, image_size: tuple[int, int]
    ) -> np.ndarray:
        """Return the global views that a generator gives, in the size of the Gram teacher."""
        sigma = [self.gram_resolution_factor * value for value in self.blur_sigma]  # pixels
        crops = self.crops(image.shape[:2], self._gram_size(image_size), rng)
        larger = replace(self, blur_sigma=sigma)
        return np.stack(larger._solarized_views(image, crops[:2], rng))

    def _gram_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        height, width = image_size
        return height * self.gram_resolution_factor, width * self.gram_resolution_factor


@dataclass(frozen=True)
class FocalCrops(ColoredCrops):
    """One target view, random views to be masked and small focal views, as in MSN and PMSN.

    Random and focal views are the anchors (arXiv 2204.07141, Sec. 3 and Appendix A.1). Crop scales
    are from src/data_manager.py of the reference code, and the color strength, half of SimCLR's, is
    from its configs/pretrain/msn_vits16.yaml.
    """

    small_crop_field = "focal_view_size"

    num_random_views: int = option(
        1,
        "Number of random views (large, masked anchors) of an image",
        minimum=1,
    )
    num_focal_views: int = option(
        10,
        "Number of focal views (small anchors) of an image",
        minimum=0,
    )
    focal_view_size: int = option(
        96,
        "Size of a focal view in pixels; scales with --image-size if not given",
        minimum=1,
    )
    random_crop_scale: list[float] = option(
        [0.3, 1.0],
        "Smallest and largest area of a target or random view, as a fraction of the image",
        minimum=0,
        maximum=1,
    )
    focal_crop_scale: list[float] = option(
        [0.05, 0.3],
        "Smallest and largest area of a focal view, as a fraction of the image",
        minimum=0,
        maximum=1,
    )
    color_jitter: list[float] = option(
        [0.4, 0.4, 0.4, 0.1],
        "Strength of color jitter: brightness, contrast, saturation and hue (in turns)",
        minimum=0,
    )
    blur_probability: float = option(
        0.5,
        "Probability of blur; multi-crop has one for each global view and one for local views",
        minimum=0,
        maximum=1,
    )

    def view_sizes(self, image_size: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the (height, width) of the target and random views, and of the focal views."""
        focal_size = (self.focal_view_size, self.focal_view_size)
        return [image_size, focal_size] if self.num_focal_views else [image_size]

    def crops(
        self, size: tuple[int, int], image_size: tuple[int, int], rng: np.random.Generator
    ) -> list[Crop]:
        """Draw the boxes of the target view, then of the random and the focal views."""
        focal_size = (self.focal_view_size, self.focal_view_size)
        num_large = 1 + self.num_random_views
        return [
            *random_crops(num_large, size, self.random_crop_scale, image_size, rng),
            *random_crops(self.num_focal_views, size, self.focal_crop_scale, focal_size, rng),
        ]

    def __call__(
        self,
        image: np.ndarray,
        rng: np.random.Generator,
        image_size: tuple[int, int],
        patch_size: int,
    ) -> dict[str, np.ndarray]:
        """Return the views, and random numbers to make the masks of the random views from.

        Returns:
            "target_view" (C, H, W), "random_views" (R, C, H, W), "noise" (R, N) float32 in 0 to 1
            and, if any, "focal_views" (F, C, h, w).
        """
        crops = self.crops(image.shape[:2], image_size, rng)
        views = [self._view(image, crop, self.blur_probability, rng) for crop in crops]
        num_large = 1 + self.num_random_views
        large = np.stack(views[:num_large])
        num_patches = count_patches(image_size, patch_size)
        noise = rng.random((self.num_random_views, num_patches), dtype=np.float32)
        inputs = {"target_view": large[0], "random_views": large[1:], "noise": noise}
        if self.num_focal_views:
            inputs["focal_views"] = np.stack(views[num_large:])
        return inputs


__all__ = ["FocalCrops", "MaskedMultiCrop", "MultiCrop"]
