"""Augmentations on uint8 images, for the workers of a DataLoader.

An augmentation is a frozen dataclass of its numbers; called with an image and a random generator,
it returns what the model's `forward` takes of that image, by name: its views, and the random
numbers of their masks, so that these too are a function of the draw.
"""

# V views · C channels · h, w pixels

from __future__ import annotations

import math
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from .image_changes import (
    blur,
    crop_and_resize,
    erase_box,
    flip,
    jitter_color,
    random_crop_box,
    to_grey,
)
from .mixing import cutmix, mixup, random_cut_box, random_partners, smooth_labels
from .randaugment import rand_augment


def count_patches(image_size: tuple[int, int], patch_size: int) -> int:
    """Return how many patches an image of (height, width) pixels has."""
    return (image_size[0] // patch_size) * (image_size[1] // patch_size)


def option(default: Any, text: str) -> Any:
    """Return a dataclass field with a default, lists copied, and a text for `--help`."""
    if isinstance(default, (list, tuple)):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


ABOVE_0 = 1e-12  # as a least


def check_limits(entry: Field[Any], value: Any, least: float, most: float) -> None:
    """Check a field of numbers; two of them are a range above 0.

    Raises:
        ValueError: with the rule, the value and what the field means.
    """
    text = entry.metadata["help"]
    numbers = value if isinstance(value, list) else [value]
    if isinstance(value, list) and len(value) != (count := len(entry.default_factory())):  # type: ignore[operator,misc]
        raise ValueError(f"{entry.name} ({value}) must be {count} numbers: {text}.")
    if not all(least <= number <= most for number in numbers):
        rule = "above 0" if least == ABOVE_0 else f"at least {least:g}"
        if most < math.inf:
            rule = f"between {least:g} and {most:g}" if least == 0 else f"{rule}, at most {most:g}"
        raise ValueError(f"{entry.name} ({value}) must be {rule}: {text}.")
    if len(numbers) == 2 and not 0 < numbers[0] <= numbers[1]:
        raise ValueError(f"{entry.name} ({value}) must be above 0, the least first: {text}.")


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
        """Return a labelled batch with images combined, for augmentations that do so.

        Args:
            batch: as `collate` stacks it; "labels" are (B,) class indices.
            rng: source of randomness, of this batch.
            num_classes: of the data.
        """
        return batch


@dataclass(frozen=True)
class ColoredCrops(Augmentation):
    """Random crops, flipped, with changed colours, some of them blurred.

    The numbers are BYOL's (arXiv 2006.07733, Appendix B).
    """

    flip_probability: float = option(0.5, "of a flip, left to right")
    color_jitter: list[float] = option(
        [0.4, 0.4, 0.2, 0.1], "strength of brightness, contrast, saturation, hue (turns)"
    )
    color_jitter_probability: float = option(0.8, "of such a change")
    grayscale_probability: float = option(0.2, "of grey")
    blur_sigma: list[float] = option([0.1, 2.0], "least and largest sigma of a blur, pixels")

    def _view(
        self,
        pixels: np.ndarray,
        size: tuple[int, int],
        scale: list[float],
        blur_probability: float,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Return one view of (H, W, 3) uint8 pixels, (3, h, w)."""
        box = random_crop_box(pixels.shape[0], pixels.shape[1], scale, rng)
        view = crop_and_resize(pixels, box, size)
        if rng.random() < self.flip_probability:
            view = flip(view)
        if rng.random() < self.color_jitter_probability:
            view = jitter_color(view, self.color_jitter, rng)
        if rng.random() < self.grayscale_probability:
            view = to_grey(view)
        if rng.random() < blur_probability:
            view = blur(view, rng.uniform(self.blur_sigma[0], self.blur_sigma[1]))
        return view.transpose(2, 0, 1)


@dataclass(frozen=True)
class MultiCrop(ColoredCrops):
    """DINO's views: two large crops and several small ones (arXiv 2104.14294, Sec. 3.1, 3.2).

    Solarisation is BYOL's, too. Lists of three hold a number for the first global view, the second,
    and the local ones.
    """

    small_crop_field = "local_view_size"

    num_local_views: int = option(8, "small crops an image")
    local_view_size: int = option(
        96, "pixels of a small crop; with another image_size in proportion, if not given"
    )
    global_crop_scale: list[float] = option(
        [0.4, 1.0], "least and largest fraction of the area in a global view"
    )
    local_crop_scale: list[float] = option(
        [0.05, 0.4], "least and largest fraction of the area in a local view"
    )
    blur_probability: list[float] = option(
        [1.0, 0.1, 0.5], "of a blur: first and second global view, local views"
    )
    solarize_probability: list[float] = option(
        [0.0, 0.2, 0.0], "of solarisation: first and second global view, local views"
    )

    def view_sizes(self, image_size: tuple[int, int]) -> list[tuple[int, int]]:
        """Sizes of the global and local views."""
        local_size = (self.local_view_size, self.local_view_size)
        return [image_size, local_size] if self.num_local_views else [image_size]

    def __call__(
        self,
        image: Image.Image,
        rng: np.random.Generator,
        image_size: tuple[int, int],
        patch_size: int,
    ) -> dict[str, np.ndarray]:
        """Return "global_views" (2, 3, H, W) and "local_views" (V - 2, 3, h, w), if any."""
        pixels = np.array(image)
        global_views = [
            self._solarized_view(pixels, kind, image_size, self.global_crop_scale, rng)
            for kind in (0, 1)
        ]
        views = {"global_views": np.stack(global_views)}
        if self.num_local_views:
            local_size = (self.local_view_size, self.local_view_size)
            local_views = [
                self._solarized_view(pixels, 2, local_size, self.local_crop_scale, rng)
                for _ in range(self.num_local_views)
            ]
            views["local_views"] = np.stack(local_views)
        return views

    def _solarized_view(
        self,
        pixels: np.ndarray,
        kind: int,
        size: tuple[int, int],
        scale: list[float],
        rng: np.random.Generator,
    ) -> np.ndarray:
        view = self._view(pixels, size, scale, self.blur_probability[kind], rng)
        if rng.random() < self.solarize_probability[kind]:
            view = np.where(view < 128, view, 255 - view)
        return view


@dataclass(frozen=True)
class FocalCrops(ColoredCrops):
    """MSN's views: a target, and as anchors large crops to be masked and small, focal ones.

    (arXiv 2204.07141, Sec. 3 and Appendix A.1; scales: src/data_manager.py of the reference, color
    strength: 0.5 of SimCLR's, its configs/pretrain/msn_vits16.yaml.)
    """

    small_crop_field = "focal_view_size"

    num_random_views: int = option(1, "large anchor crops an image")
    num_focal_views: int = option(10, "small anchor crops an image")
    focal_view_size: int = option(
        96, "pixels of a small crop; with another image_size in proportion, if not given"
    )
    random_crop_scale: list[float] = option(
        [0.3, 1.0], "least and largest fraction of the area in a target or a large anchor"
    )
    focal_crop_scale: list[float] = option(
        [0.05, 0.3], "least and largest fraction of the area in a small anchor"
    )
    color_jitter: list[float] = option(
        [0.4, 0.4, 0.4, 0.1], "strength of brightness, contrast, saturation, hue (turns)"
    )
    blur_probability: float = option(0.5, "of a blur")

    def view_sizes(self, image_size: tuple[int, int]) -> list[tuple[int, int]]:
        """Sizes of the target and random views, and of the focal ones."""
        focal_size = (self.focal_view_size, self.focal_view_size)
        return [image_size, focal_size] if self.num_focal_views else [image_size]

    def __call__(
        self,
        image: Image.Image,
        rng: np.random.Generator,
        image_size: tuple[int, int],
        patch_size: int,
    ) -> dict[str, np.ndarray]:
        """Return the views, and the numbers that the random views' masks are made from.

        Returns:
            "target_view" (3, H, W), "random_views" (R, 3, H, W), "noise" (R, N) float32 in 0 to 1,
            and "focal_views" (F, 3, h, w), if any.
        """
        pixels = np.array(image)

        def crops(num_views: int, size: tuple[int, int], scale: list[float]) -> np.ndarray:
            views = [
                self._view(pixels, size, scale, self.blur_probability, rng)
                for _ in range(num_views)
            ]
            return np.stack(views)

        large = crops(1 + self.num_random_views, image_size, self.random_crop_scale)
        num_patches = count_patches(image_size, patch_size)
        noise = rng.random((self.num_random_views, num_patches), dtype=np.float32)
        views = {"target_view": large[0], "random_views": large[1:], "noise": noise}
        if self.num_focal_views:
            focal_size = (self.focal_view_size, self.focal_view_size)
            views["focal_views"] = crops(self.num_focal_views, focal_size, self.focal_crop_scale)
        return views


@dataclass(frozen=True)
class CropAndFlip(Augmentation):
    """One random crop, flipped half of the time: the plain augmentation of supervised training."""

    crop_scale: list[float] = option(
        [0.25, 1.0], "least and largest fraction of the area in the crop"
    )
    flip_probability: float = option(0.5, "of a flip, left to right")
    color_jitter: list[float] = option(
        [0.0, 0.0, 0.0, 0.0], "strength of brightness, contrast, saturation, hue (turns)"
    )

    def view_sizes(self, image_size: tuple[int, int]) -> list[tuple[int, int]]:
        """Size of the crop."""
        return [image_size]

    def __call__(
        self,
        image: Image.Image,
        rng: np.random.Generator,
        image_size: tuple[int, int],
        patch_size: int,
    ) -> dict[str, np.ndarray]:
        """Return "pixel_values" (3, H, W)."""
        pixels = np.array(image)
        box = random_crop_box(pixels.shape[0], pixels.shape[1], self.crop_scale, rng)
        view = crop_and_resize(pixels, box, image_size)
        if rng.random() < self.flip_probability:
            view = flip(view)
        view = jitter_color(view, self.color_jitter, rng)
        return {"pixel_values": np.ascontiguousarray(view.transpose(2, 0, 1))}


@dataclass(frozen=True)
class MAECrop(CropAndFlip):
    """MAE's view: a crop, flipped half of the time, no colour (arXiv 2111.06377, Table 1e)."""

    crop_scale: list[float] = option(
        [0.2, 1.0],  # main_pretrain.py
        "least and largest fraction of the area in the crop",
    )

    def __call__(
        self,
        image: Image.Image,
        rng: np.random.Generator,
        image_size: tuple[int, int],
        patch_size: int,
    ) -> dict[str, np.ndarray]:
        """Return "pixel_values" (3, H, W), and "noise" (N,), which decides what is masked."""
        num_patches = count_patches(image_size, patch_size)
        view = super().__call__(image, rng, image_size, patch_size)
        return {**view, "noise": rng.random(num_patches, dtype=np.float32)}


@dataclass(frozen=True)
class MixedCrop(CropAndFlip):
    """A random crop changed more strongly, and mixed with another of its batch; all off by default.

    RandAugment and random erasing change an image. Mixup or cutmix, each half of the time where
    both are on, then combines every image of a batch with another, and their labels: these become
    soft, (B, L) float32.
    """

    rand_augment_magnitude: float = option(0.0, "of RandAugment, 0 to 10; 0 for none")
    rand_augment_deviation: float = option(0.5, "of the magnitude, from change to change")
    random_erasing_probability: float = option(0.0, "that a box is erased")
    erased_area: list[float] = option(
        [0.02, 0.33], "least and largest fraction of the area that a box takes"
    )
    erased_ratio: float = option(0.3, "least height of a box over its width; 1 over it the most")
    mixup_alpha: float = option(0.0, "of mixup's Beta; 0 for none")
    cutmix_alpha: float = option(0.0, "of cutmix's Beta; 0 for none")
    label_smoothing: float = option(0.0, "share of a label that goes to all classes evenly")

    def __call__(
        self,
        image: Image.Image,
        rng: np.random.Generator,
        image_size: tuple[int, int],
        patch_size: int,
    ) -> dict[str, np.ndarray]:
        """Return "pixel_values" (3, H, W)."""
        crop = super().__call__(image, rng, image_size, patch_size)["pixel_values"]
        view = np.ascontiguousarray(crop.transpose(1, 2, 0))
        if self.rand_augment_magnitude > 0:
            view = rand_augment(view, self.rand_augment_magnitude, self.rand_augment_deviation, rng)
        if rng.random() < self.random_erasing_probability:
            view = erase_box(view, self.erased_area, self.erased_ratio, rng)
        return {"pixel_values": np.ascontiguousarray(view.transpose(2, 0, 1))}

    def mix(
        self, batch: dict[str, Any], rng: np.random.Generator, num_classes: int
    ) -> dict[str, Any]:
        """Return the batch with "pixel_values" mixed and "labels" (B, L) float32."""
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


AUGMENTATIONS = {
    "multi_crop": MultiCrop,
    "focal_crops": FocalCrops,
    "mae_crop": MAECrop,
    "crop_and_flip": CropAndFlip,
    "mixed_crop": MixedCrop,
}

__all__ = [
    "AUGMENTATIONS",
    "Augmentation",
    "CropAndFlip",
    "FocalCrops",
    "MAECrop",
    "MixedCrop",
    "MultiCrop",
    "option",
]
