"""Masks made of blocks, as in DINOv2 (arXiv 2304.07193) and BEiT (arXiv 2106.08254, Alg. 1)."""

from __future__ import annotations

import math

import numpy as np

MIN_BLOCK = 4  # patches; dinov2/data/masking.py
MIN_ASPECT = 0.3  # height / width; the largest is its inverse (dinov2/data/masking.py)
NUM_TRIES = 10  # places and shapes that are tried for a block (dinov2/data/masking.py)


def random_block_mask(
    grid_size: tuple[int, int], num_masked: int, rng: np.random.Generator
) -> np.ndarray:
    """Return a random mask made of blocks.

    Blocks are added until enough patches are masked, or no block fits in ten tries. A block has at
    most half of all patches, and is smaller than the grid in both directions.

    Args:
        grid_size: (rows, columns) of patches.
        num_masked: Number of patches to mask, which is never exceeded, and is not always reached.
        rng: Random number generator.

    Returns:
        (rows, columns) bool; False is keep, True is mask.
    """
    mask = np.zeros(grid_size, dtype=bool)
    count = 0
    while count < num_masked:
        added = add_block(mask, min(num_masked - count, mask.size // 2), rng)
        if added == 0:
            break
        count += added
    return mask


def add_block(mask: np.ndarray, max_patches: int, rng: np.random.Generator) -> int:
    """Mask a random block, if one is found in ten tries.

    Args:
        mask: (rows, columns) bool; changed in place.
        max_patches: Largest number of patches to add.
        rng: Random number generator.

    Returns:
        Number of added patches; 0 if no block was found.
    """
    rows, columns = mask.shape
    limit = -math.log(MIN_ASPECT)
    for _ in range(NUM_TRIES):
        area = MIN_BLOCK + (max_patches - MIN_BLOCK) * rng.random()
        aspect = math.exp(rng.uniform(-limit, limit))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height >= rows or width >= columns:
            continue
        top, left = rng.integers(rows - height + 1), rng.integers(columns - width + 1)
        block = mask[top : top + height, left : left + width]
        added = block.size - int(block.sum())
        if 0 < added <= max_patches:
            block[:] = True
            return added
    return 0


__all__ = ["add_block", "random_block_mask"]
