"""Augmentations by their names in training.yaml."""

from __future__ import annotations

from .colored_crop import ColoredCrop
from .multi_crop import FocalCrops, MaskedMultiCrop, MultiCrop
from .single_crop import CropAndFlip, MAECrop, MixedCrop

AUGMENTATIONS = {
    "multi_crop": MultiCrop,
    "masked_multi_crop": MaskedMultiCrop,
    "focal_crops": FocalCrops,
    "colored_crop": ColoredCrop,
    "mae_crop": MAECrop,
    "crop_and_flip": CropAndFlip,
    "mixed_crop": MixedCrop,
}


__all__ = ["AUGMENTATIONS"]
