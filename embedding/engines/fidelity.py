"""Measure how close vectors are to those of the same images in float32."""

# N images · E embedding

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

NUM_NEIGHBORS = 10


@dataclass(frozen=True)
class Fidelity:
    """Agreement of vectors with those of the same images in float32.

    Args:
        mean_centered_cosine: Mean of `centered_cosines`.
        smallest_centered_cosine: Smallest of them.
        neighbors_kept: Fraction of the 10 nearest neighbors of an image that are the same, mean.
        num_images: Number of images that it was measured on.
    """

    mean_centered_cosine: float
    smallest_centered_cosine: float
    neighbors_kept: float
    num_images: int

    @classmethod
    def measure(cls, reference: Tensor, other: Tensor) -> Fidelity:
        """Measure vectors.

        Args:
            reference: Vectors in float32, (N, E).
            other: Vectors of the same images, (N, E).

        Raises:
            ValueError: If there are fewer than 12 images; all others would be neighbors.
        """
        cosines = centered_cosines(reference, other)
        return cls(
            mean_centered_cosine=round(cosines.mean().item(), 5),
            smallest_centered_cosine=round(cosines.min().item(), 5),
            neighbors_kept=round(neighbors_kept(reference, other), 4),
            num_images=len(reference),
        )

    def __str__(self) -> str:
        return (
            f"mean centered cosine {self.mean_centered_cosine:.4f} to float32 (smallest "
            f"{self.smallest_centered_cosine:.4f}), {self.neighbors_kept:.1%} of the "
            f"{NUM_NEIGHBORS} nearest neighbors kept, on {self.num_images} held-out images"
        )


def centered_cosines(reference: Tensor, other: Tensor) -> Tensor:
    """Return the cosine of the two vectors of each image, after subtracting the reference mean.

    Vectors of an encoder share a large mean, so plain cosines are close to 1 in any case.

    Args:
        reference: (N, E).
        other: (N, E).

    Returns:
        (N,).

    Raises:
        ValueError: If there are fewer than two images.
    """
    if len(reference) < 2:
        raise ValueError(
            f"images ({len(reference)}) must be at least 2, because their mean is subtracted."
        )
    mean = reference.mean(dim=0)
    return F.cosine_similarity(reference - mean, other - mean, dim=-1)


def neighbors_kept(reference: Tensor, other: Tensor) -> float:
    """Return the fraction of the 10 nearest neighbors by cosine that are the same, mean.

    Args:
        reference: (N, E).
        other: (N, E).

    Raises:
        ValueError: If there are fewer than 12 images; all others would be neighbors.
    """
    if len(reference) < NUM_NEIGHBORS + 2:
        raise ValueError(f"images ({len(reference)}) must be at least {NUM_NEIGHBORS + 2}.")
    near = [_is_neighbor(vectors) for vectors in (reference, other)]
    return (near[0] & near[1]).sum().item() / (NUM_NEIGHBORS * len(reference))


def _is_neighbor(vectors: Tensor) -> Tensor:
    """Return whether each column's image is a nearest neighbor of each row's, (N, N)."""
    directions = F.normalize(vectors.double(), dim=-1)
    similarities = (directions @ directions.T).fill_diagonal_(-torch.inf)
    nearest = similarities.topk(NUM_NEIGHBORS, dim=-1).indices
    return torch.zeros_like(similarities, dtype=torch.bool).scatter_(1, nearest, True)


__all__ = ["NUM_NEIGHBORS", "Fidelity", "centered_cosines", "neighbors_kept"]
