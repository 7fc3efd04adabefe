"""Which patches an encoder sees: a function of random numbers that the caller draws.

So a mask is as reproducible as its noise, whatever the device, the batch and the processes.
"""

# B batch · N patches · K patches kept

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class PatchSplit(NamedTuple):
    """Patches kept and removed.

    Args:
        ids_keep: (B, K) indices of the patches kept, by rising noise.
        ids_removed: (B, N - K) indices of the others, by rising noise.
        ids_restore: (B, N); gathering `cat([kept, removed], dim=1)` by it gives the order of the
            image back.
        mask: (B, N) float32 in the order of the image; 0 is keep, 1 is remove.
    """

    ids_keep: Tensor
    ids_removed: Tensor
    ids_restore: Tensor
    mask: Tensor


def num_to_keep(num_patches: int, removed_ratio: float) -> int:
    """Return how many patches stay when a fraction of them is removed.

    Rounded down, as the authors of MAE and MSN do, but after forgiving the error of floating point:
    a tenth of 10 patches is 1 here, where `int(10 * (1 - 0.9))` is 0.

    Args:
        num_patches: N, at least 1.
        removed_ratio: fraction, 0 to 1.
    """
    return int(num_patches * (1 - removed_ratio) + 1e-6)


def ids_to_keep(noise: Tensor, num_keep: int) -> PatchSplit:
    """Keep the patches of smallest noise (MAE, arXiv 2111.06377, Sec. 3, "Simple implementation").

    Args:
        noise: (B, N) random numbers; equal ones are told apart by their place in the image.
        num_keep: K, 0 to N.

    Raises:
        ValueError: if the noise is not (B, N), or has fewer patches than are to be kept.
    """
    if noise.dim() != 2 or not 0 <= num_keep <= noise.shape[1]:
        raise ValueError(
            f"noise must be (batch, patches) with at least the {num_keep} patches to keep, "
            f"got {tuple(noise.shape)}."
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
    """Pick patches by index: (B, N, D) and (B, K) to (B, K, D)."""
    return patches.gather(1, ids.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))


__all__ = ["PatchSplit", "gather_patches", "ids_to_keep", "num_to_keep"]
