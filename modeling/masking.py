"""Masks from random numbers: which patches of an image are kept."""

# B batch · N patches · K patches kept

from __future__ import annotations

from torch import Tensor


def keep_smallest(noise: Tensor, num_keep: int) -> Tensor:
    """Choose the patches of the smallest numbers: at random, if the numbers are.

    Args:
        noise: (B, N), a number a patch.
        num_keep: patches to keep (K), 1 to N.

    Returns:
        ids_keep (B, K), int64, smallest number first; of equal numbers the earlier patch.

    Raises:
        ValueError: if `num_keep` is not in 1 to N.
    """
    num_patches = noise.shape[1]
    if not 1 <= num_keep <= num_patches:
        raise ValueError(f"num_keep ({num_keep}) must be 1 to the {num_patches} patches there are.")
    return noise.argsort(dim=1, stable=True)[:, :num_keep]


__all__ = ["keep_smallest"]
