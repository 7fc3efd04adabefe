"""Mixup, cutmix and label smoothing, on batches of images with any number of channels.

Mixing itself is deterministic: `Augmentation.mix` draws the shares, partners and boxes. It runs in
the workers of the DataLoader, before normalization.
"""

# B batch · C channels · H, W pixels · L classes

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def smooth_labels(labels: Tensor, num_classes: int, smoothing: float = 0.0) -> Tensor:
    """Turn class indices into probabilities (label smoothing, arXiv 1512.00567, Sec. 7).

    Args:
        labels: Class indices, (B,) int64.
        num_classes: Number of classes, L.
        smoothing: Fraction of the probability that is spread evenly over all classes, including the
            correct one; 0 gives one-hot labels.

    Returns:
        (B, L) float32, rows sum to 1.

    Raises:
        ValueError: If a label is not a class index.
    """
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"labels must be class indices from 0 to {num_classes - 1}, got {labels.min().item()} "
            f"to {labels.max().item()}; leave out images without a label."
        )
    return F.one_hot(labels, num_classes) * (1 - smoothing) + smoothing / num_classes


def mixup(images: Tensor, labels: Tensor, partners: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Blend each image and its label with those of its partner (mixup, arXiv 1710.09412, Sec. 2).

    The images are blended before normalization. As normalization is affine, the result differs from
    blending normalized images only by rounding.

    Args:
        images: (B, C, H, W), uint8 or float32.
        labels: (B, L), rows sum to 1.
        partners: Index of each image's partner in the batch, (B,).
        share: Weight of the image itself, the paper's lambda, in [0, 1].

    Returns:
        Images (B, C, H, W) of the same type and labels (B, L).
    """
    blended = images.float().lerp(images[partners].float(), 1 - share)
    if not images.is_floating_point():
        blended = blended.round_().to(images.dtype)
    return blended, labels.lerp(labels[partners], 1 - share)


def cutmix(
    images: Tensor, labels: Tensor, partners: Tensor, box: tuple[int, int, int, int]
) -> tuple[Tensor, Tensor]:
    """Paste a box of its partner into each image (cutmix, arXiv 1905.04899, Sec. 3.1).

    Args:
        images: (B, C, H, W), uint8 or float32.
        labels: (B, L), rows sum to 1.
        partners: Index of each image's partner in the batch, (B,).
        box: (top, left, height, width) in pixels, within the image.

    Returns:
        Images (B, C, H, W) of the same type and labels (B, L), mixed in proportion to the areas.
    """
    top, left, height, width = box
    rows, columns = slice(top, top + height), slice(left, left + width)
    mixed = images.clone()
    mixed[:, :, rows, columns] = images[partners][:, :, rows, columns]
    pasted_share = height * width / (images.shape[2] * images.shape[3])
    return mixed, labels.lerp(labels[partners], pasted_share)


def random_cut_box(
    height: int, width: int, share: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw a box for cutmix (arXiv 1905.04899, Eq. 2).

    The box has the aspect ratio of the image, and its center is uniform over the image.

    Args:
        height: Height of the image, pixels.
        width: Width of the image, pixels.
        share: Fraction of the area outside the box, the paper's lambda, in [0, 1].
        rng: Random number generator.

    Returns:
        (top, left, height, width) in pixels. The box is clipped at the border, so the fraction
        outside may be larger.
    """
    ratio = math.sqrt(1 - share)
    center = rng.integers(height), rng.integers(width)
    spans = []
    for middle, size in zip(center, (height, width), strict=True):
        side = round(size * ratio)
        first = max(0, int(middle) - side // 2)
        spans.append((first, min(size, int(middle) - side // 2 + side) - first))
    (top, box_height), (left, box_width) = spans
    return top, left, box_height, box_width


def random_partners(batch_size: int, rng: np.random.Generator) -> Tensor:
    """Draw a partner for each image, as a permutation of the batch (mixup, Sec. 2).

    Args:
        batch_size: Number of images, B.
        rng: Random number generator.

    Returns:
        Index of each image's partner, (B,) int64.
    """
    return torch.from_numpy(rng.permutation(batch_size))


__all__ = ["cutmix", "mixup", "random_cut_box", "random_partners", "smooth_labels"]
