"""Position embeddings for a grid of patches."""

# D hidden · H rows · W columns

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def sincos_position_embeddings(hidden_size: int, grid_size: tuple[int, int]) -> Tensor:
    """Return the fixed two-dimensional sine-cosine embeddings of MAE (arXiv 2111.06377).

    The first half of the channels encodes the column, the second half the row. Within a half, sines
    come before cosines, over hidden_size / 4 frequencies from 1 down to 1 / 10000.

    Args:
        hidden_size: Width of the tokens; a multiple of 4.
        grid_size: (rows, columns) of patches.

    Returns:
        (1, 1 + rows * columns, hidden_size) in torch's default dtype, like parameters; zero for the
        class token.
    """
    rows, columns = grid_size
    exponents = torch.arange(hidden_size // 4, dtype=torch.float64) / (hidden_size / 4)
    frequencies = 1.0 / 10000**exponents  # (D/4,)
    row = torch.arange(rows, dtype=torch.float64).repeat_interleave(columns)
    column = torch.arange(columns, dtype=torch.float64).repeat(rows)
    halves = []
    for position in (column, row):
        angles = torch.outer(position, frequencies)  # (H*W, D/4)
        halves += [angles.sin(), angles.cos()]
    patches = torch.cat(halves, dim=1)  # (H*W, D)
    return F.pad(patches, (0, 0, 1, 0)).unsqueeze(0).to(torch.get_default_dtype())


def interpolate_position_embeddings(
    position_embeddings: Tensor, stored_grid: tuple[int, int], grid: tuple[int, int]
) -> Tensor:
    """Resize the embeddings of the patches to another grid (bicubic, by size, in float32).

    Args:
        position_embeddings: (1, 1 + rows * columns, D); the first embedding belongs to the class
            token and is not changed.
        stored_grid: (rows, columns) of `position_embeddings`.
        grid: (rows, columns) of the result.

    Returns:
        (1, 1 + rows * columns of `grid`, D), same dtype.
    """
    if grid == stored_grid:
        return position_embeddings
    class_position, patches = position_embeddings[:, :1], position_embeddings[:, 1:]
    patches = patches.unflatten(1, stored_grid).permute(0, 3, 1, 2)  # (1, D, H, W)
    resized = F.interpolate(patches.float(), size=grid, mode="bicubic", align_corners=False)
    resized = resized.to(position_embeddings.dtype).flatten(2).transpose(1, 2)
    return torch.cat([class_position, resized], dim=1)  # (1, 1 + H*W, D)


__all__ = ["interpolate_position_embeddings", "sincos_position_embeddings"]
