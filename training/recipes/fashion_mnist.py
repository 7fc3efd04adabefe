"""Preprocessing of the demo recipes, whose images are those of Fashion-MNIST."""

from __future__ import annotations

from ..config.training_config import PreprocessingConfig


def fashion_mnist_preprocessing() -> PreprocessingConfig:
    """Return the preprocessing with mean and std of the 60,000 training images."""
    return PreprocessingConfig(image_mean=[0.2860] * 3, image_std=[0.3530] * 3, resize="square")


__all__ = ["fashion_mnist_preprocessing"]
