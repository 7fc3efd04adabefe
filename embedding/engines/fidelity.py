"""Measure how close vectors are to those of the same images in float32."""

# N images · E embedding

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F  # noqa: N812


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


__all__ = ["centered_cosines"]
