"""Two images of a batch made one, and their labels: mixup, cutmix, label smoothing.

Pure functions on a batch as the DataLoader's worker stacks it: uint8 images and soft labels. What
is drawn (shares, partners, boxes) is drawn outside, by `Augmentation.mix`.
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
        labels: (B,) int64, class indices.
        num_classes: L.
        smoothing: fraction of the probability that is spread evenly over all classes, the right one
            included; 0 gives one-hot labels.

    Returns:
        (B, L) float32, rows sum to 1.

    Raises:
        ValueError: if a label is no index of a class.
    """
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"labels must be 0 to {num_classes - 1} to be mixed, got {labels.min().item()} to "
            f"{labels.max().item()}; leave out images without a label."
        )
    return F.one_hot(labels, num_classes) * (1 - smoothing) + smoothing / num_classes


def mixup(images: Tensor, labels: Tensor, partners: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Blend each image and its label with its partner's (arXiv 1710.09412, Sec. 2).

    Normalization is affine, so blending uint8 images before it is the same but for the rounding.

    Args:
        images: (B, C, H, W) uint8.
        labels: (B, L), rows sum to 1.
        partners: (B,) indices into the batch.
        share: what is kept of the image itself, the paper's lambda, in [0, 1].

    Returns:
        images (B, C, H, W) uint8, and labels (B, L).
    """
    blended = images.float().lerp(images[partners].float(), 1 - share).round_().to(images.dtype)
    return blended, labels.lerp(labels[partners], 1 - share)


def cutmix(
    images: Tensor, labels: Tensor, partners: Tensor, box: tuple[int, int, int, int]
) -> tuple[Tensor, Tensor]:
    """Paste a box of its partner into each image (arXiv 1905.04899, Sec. 3.1).

    Args:
        images: (B, C, H, W) uint8.
        labels: (B, L), rows sum to 1.
        partners: (B,) indices into the batch.
        box: (top, left, height, width) in pixels, within the image.

    Returns:
        images (B, C, H, W) uint8, and labels (B, L), mixed by the areas.
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
    """Draw a box of cutmix: the image's shape, its center anywhere (arXiv 1905.04899, Eq. 2).

    Args:
        height: of the image, pixels.
        width: of the image, pixels.
        share: of the area that is to stay outside, the paper's lambda, in [0, 1].
        rng: source of randomness.

    Returns:
        (top, left, height, width) in pixels, cut off at the border: more may stay outside.
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
    """Draw a partner for every image: the batch in another order (mixup, Sec. 2)."""
    return torch.from_numpy(rng.permutation(batch_size))


__all__ = ["cutmix", "mixup", "random_cut_box", "random_partners", "smooth_labels"]
