"""Position embeddings for a grid of patches: added to the tokens, or rotary.

Rotary positions (arXiv 2104.09864) turn pairs of channels of queries and keys by angles that grow
with the position, so that attention depends on relative positions. DINOv3 (arXiv 2508.10104, Sec.
3.2) has them in two dimensions, with coordinates from -1 to 1 on an image of any size.
"""

# B batch · A attention heads · T tokens (P prefix: class, registers; then N patches, or K kept)
# D hidden · E width of a head · H rows · W columns

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ..configuration.configuration_selfvit import SelfViTConfig

POSITIONS = "position_embeddings"  # end of their names, in encoders and decoders
Rotation = tuple[Tensor, Tensor]  # cosines and sines, each (1 or B, 1, T, E)


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
    position_embeddings: Tensor,
    stored_grid: tuple[int, int],
    grid: tuple[int, int],
    antialias: bool = False,
) -> Tensor:
    """Resize the embeddings of the patches to another grid (bicubic, by size, in float32).

    Args:
        position_embeddings: (1, 1 + rows * columns, D); the first embedding belongs to the class
            token and is not changed.
        stored_grid: (rows, columns) of `position_embeddings`.
        grid: (rows, columns) of the result.
        antialias: Whether to smooth before the grid gets smaller.

    Returns:
        (1, 1 + rows * columns of `grid`, D), same dtype.
    """
    if grid == stored_grid:
        return position_embeddings
    class_position, patches = position_embeddings[:, :1], position_embeddings[:, 1:]
    patches = patches.unflatten(1, stored_grid).permute(0, 3, 1, 2)  # (1, D, H, W)
    resized = F.interpolate(
        patches.float(), size=grid, mode="bicubic", align_corners=False, antialias=antialias
    )
    resized = resized.to(position_embeddings.dtype).flatten(2).transpose(1, 2)
    return torch.cat([class_position, resized], dim=1)  # (1, 1 + H*W, D)


def resize_positions(
    weights: dict[str, Tensor],
    stored_grid: tuple[int, int],
    grid: tuple[int, int],
    antialias: bool = False,
) -> dict[str, Tensor]:
    """Return weights in which all position embeddings have the size of another grid.

    Args:
        weights: Tensors of a model by name.
        stored_grid: (rows, columns) of its position embeddings.
        grid: (rows, columns) of the result.
        antialias: Whether to smooth before the grid gets smaller.
    """
    return {
        name: interpolate_position_embeddings(tensor, stored_grid, grid, antialias)
        if name.endswith(POSITIONS)
        else tensor
        for name, tensor in weights.items()
    }


def patch_coordinates(grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Return the centers of the patches, with each axis of the image from -1 to 1.

    Args:
        grid: (rows, columns) of patches.
        device: Device of the result.

    Returns:
        (N, 2) rows (y, x), float32, row by row from the top left.
    """
    axes = [
        (2 * torch.arange(size, device=device, dtype=torch.float32) + 1) / size - 1 for size in grid
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)


def augment_coordinates(
    coordinates: Tensor, shift: float | None, jitter: float | None, rescale: float | None
) -> Tensor:
    """Move and scale coordinates at random, as DINOv3 does in training (Sec. 3.2).

    Factors are log-uniform, so that enlarging and shrinking are equally likely.

    Args:
        coordinates: (N, 2).
        shift: Largest shift of an axis, in units of half an image; None for no shift.
        jitter: Largest factor of an axis, at least 1; None for no jitter.
        rescale: Largest factor of both axes together, at least 1; None for no rescaling.

    Returns:
        (N, 2).
    """
    if shift is not None:
        coordinates = coordinates + coordinates.new_empty(2).uniform_(-shift, shift)
    for largest, num_factors in ((jitter, 2), (rescale, 1)):
        if largest is not None:
            limit = math.log(largest)
            coordinates = (
                coordinates * coordinates.new_empty(num_factors).uniform_(-limit, limit).exp()
            )
    return coordinates


def rotary_tables(coordinates: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of the angles by which the channels of a head are turned.

    Pair j of an axis turns by 2 pi coordinate / base^(4 j / E), with j from 0 to E/4 - 1. The first
    E/4 angles are those of y, the next those of x; the second half repeats the first.

    Args:
        coordinates: (N, 2) rows (y, x), float32.
        head_dim: Width of a head (E), a multiple of 4.
        base: Base of the periods.

    Returns:
        Cosines and sines, each (N, E), float32.
    """
    num_pairs = head_dim // 4
    exponents = torch.arange(num_pairs, device=coordinates.device, dtype=torch.float32) / num_pairs
    angles = 2 * math.pi * coordinates.unsqueeze(-1) / base**exponents  # (N, 2, E/4)
    angles = angles.flatten(1).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(heads: Tensor, rotation: Rotation) -> Tensor:
    """Turn the channels of queries or keys: channel d together with channel d + E/2.

    Args:
        heads: (B, A, T, E).
        rotation: Cosines and sines, each (1 or B, 1, at least T, E), for the same first tokens.

    Returns:
        (B, A, T, E), same dtype.
    """
    cosines, sines = [table[:, :, : heads.shape[2]] for table in rotation]
    first, second = heads.chunk(2, dim=-1)
    quarter_turn = torch.cat([-second, first], dim=-1)
    return (heads * cosines + quarter_turn * sines).to(heads.dtype)


class RotaryPositions(nn.Module):
    """Rotary positions of the tokens of an image. Class token and registers are not turned."""

    def __init__(self, config: SelfViTConfig):
        super().__init__()
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.base = float(config.rope_theta)
        self.num_prefix_tokens = config.num_prefix_tokens
        self.augmentation = (
            config.pos_embed_shift,
            config.pos_embed_jitter,
            config.pos_embed_rescale,
        )

    def forward(
        self, tokens: Tensor, grid: tuple[int, int], ids_keep: Tensor | None = None
    ) -> Rotation:
        """Return cosines and sines, each (1, 1, T, E), or (B, 1, T, E) with `ids_keep`.

        In training, one random augmentation of the coordinates applies to all images of the batch.

        Args:
            tokens: (B, T, D), for its dtype and device.
            grid: (rows, columns) of patches.
            ids_keep: (B, K) indices of the patches that are kept, or None for all.
        """
        coordinates = patch_coordinates(grid, tokens.device)
        if self.training:
            coordinates = augment_coordinates(coordinates, *self.augmentation)
        cosines, sines = rotary_tables(coordinates, self.head_dim, self.base)  # (N, E)
        if ids_keep is None:
            cosines, sines = cosines.unsqueeze(0), sines.unsqueeze(0)
        else:
            cosines, sines = cosines[ids_keep], sines[ids_keep]  # (B, K, E)
        prefix = (0, 0, self.num_prefix_tokens, 0)
        cosines, sines = F.pad(cosines, prefix, value=1.0), F.pad(sines, prefix)
        return cosines.unsqueeze(1).to(tokens.dtype), sines.unsqueeze(1).to(tokens.dtype)


__all__ = [
    "RotaryPositions",
    "Rotation",
    "augment_coordinates",
    "interpolate_position_embeddings",
    "patch_coordinates",
    "resize_positions",
    "rotary_tables",
    "rotate",
    "sincos_position_embeddings",
]
