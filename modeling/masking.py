"""Random masking of patches, as a function of noise that the caller draws.

A mask depends on its noise only, not on the device, the batch or the number of processes.
"""

# B batch · N patches · K patches kept

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class PatchSplit(NamedTuple):
    """Indices of kept and removed patches.

    Args:
        ids_keep: (B, K) indices of the kept patches, sorted by increasing noise.
        ids_removed: (B, N - K) indices of the removed patches, sorted by increasing noise.
        ids_restore: (B, N) inverse permutation; gathering `cat([kept, removed], dim=1)` with it
            restores the order of the image.
        mask: (B, N) float32 in the order of the image; 0 is keep, 1 is remove.
    """

    ids_keep: Tensor
    ids_removed: Tensor
    ids_restore: Tensor
    mask: Tensor


def num_to_keep(num_patches: int, removed_ratio: float) -> int:
    """Return the number of patches that are kept if a fraction of them is removed.

    It is rounded down, as in the code of MAE and MSN, but tolerates floating-point errors: a tenth
    of 10 patches is 1, whereas `int(10 * (1 - 0.9))` is 0.

    Args:
        num_patches: Number of patches (N), at least 1.
        removed_ratio: Fraction of the patches to remove, 0 to 1.
    """
    return int(num_patches * (1 - removed_ratio) + 1e-6)


def ids_to_keep(noise: Tensor, num_keep: int) -> PatchSplit:
    """Keep the patches with the smallest noise.

    See MAE (arXiv 2111.06377), Sec. 3, "Simple implementation".

    Args:
        noise: (B, N) random numbers; ties are resolved by position in the image.
        num_keep: Number of patches to keep (K), 0 to N.

    Raises:
        ValueError: If the noise is not (B, N), or N is smaller than `num_keep`.
    """
    if noise.dim() != 2 or not 0 <= num_keep <= noise.shape[1]:
        raise ValueError(
            f"noise must be (batch, patches) with at least the {num_keep} patches to keep, "
            f"got {tuple(noise.shape)}; pass one random number per patch."
        )
    order = noise.argsort(dim=1, stable=True)
    places = torch.arange(noise.shape[1], device=noise.device).expand_as(order)
    ids_restore = torch.empty_like(order).scatter_(1, order, places)  # the inverse permutation
    return PatchSplit(
        ids_keep=order[:, :num_keep],
        ids_removed=order[:, num_keep:],
        ids_restore=ids_restore,
        mask=(ids_restore >= num_keep).float(),
    )


def gather_patches(patches: Tensor, ids: Tensor) -> Tensor:
    """Select patches by index: (B, N, D) and (B, K) -> (B, K, D)."""
    return patches.gather(1, ids.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))


__all__ = ["PatchSplit", "gather_patches", "ids_to_keep", "num_to_keep"]
