"""Infer the grid of patches from the position embeddings of a source.

The number of positions says how many patches there are, not how many rows: a square is a guess.
Sine-cosine positions, config.json, the arguments of the source and --image-size say it.
"""

# D hidden · N patches

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ..errors import shorten
from ..modeling.position_embeddings import sincos_position_embeddings
from .weight_format import Draft

# Tolerance for stored sine-cosine positions, by precision.
SINCOS_TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3}
# Arguments of training scripts that hold the image size: timm, MAE, DeiT.
SIZE_ARGUMENTS = ("img_size", "input_size", "image_size")
GUESS = "guess"
POSITIONS = "embeddings.position_embeddings"
REGISTERS = "embeddings.register_tokens"


@dataclass(frozen=True)
class PositionGrid:
    """Grid of the patches that a source stores positions for.

    Args:
        rows: Number of rows of patches.
        columns: Number of columns of patches.
        layout: Tokens that the positions cover, one of `WeightFormat.position_layouts`.
        is_sincos: Whether they are the fixed sine-cosine positions of this grid.
        origin: Origin of the grid, as for a configuration field.
    """

    rows: int
    columns: int
    layout: str
    is_sincos: bool
    origin: str


def infer_grid(draft: Draft, name: str, num_registers: int, stored: dict[str, Any]) -> PositionGrid:
    """Return the grid of the position embeddings, and record a guess.

    Args:
        draft: Draft with the patch size.
        name: Target name of the position embeddings, (1, positions, D).
        num_registers: Number of register tokens.
        stored: Fields that config.json holds.

    Raises:
        ValueError: If the size that the source or the user states does not fit, or no size is
            stated and no square fits.
    """
    positions = draft.weights[name]
    prefix = {"class": 1, "prefix": 1 + num_registers, "patches": 0}
    num_patches = {
        layout: positions.shape[1] - prefix[layout]
        for layout in draft.format.position_layouts
        if (layout != "prefix" or num_registers) and positions.shape[1] > prefix[layout]
    }
    sincos = _find_sincos_grid(positions, num_patches)
    source, total = draft.source_name(name), positions.shape[1]
    stated = _stated_grid(draft, source, total, num_patches, stored)
    if sincos is None:
        known = stated or _suggested_grid(draft, num_patches, stored)
        return known or _guess_grid(draft, name, total, num_patches, num_registers)
    if stated is not None and (stated.rows, stated.columns) != (sincos.rows, sincos.columns):
        size = _image_size(draft, (sincos.rows, sincos.columns))
        raise ValueError(
            f"{source} holds the sine-cosine positions of {sincos.rows} x "
            f"{sincos.columns} patches, not of {stated.rows} x {stated.columns} (from: "
            f"{stated.origin}). Give --image-size {size}."
        )
    return sincos


def _find_sincos_grid(positions: Tensor, num_patches: dict[str, int]) -> PositionGrid | None:
    """Return the grid whose sine-cosine positions are stored, or None if these are others."""
    width = positions.shape[2]
    if width % 4:
        return None
    tolerance = SINCOS_TOLERANCE.get(positions.dtype, 1e-5)
    for layout in num_patches.keys() & {"class", "patches"}:
        full = F.pad(positions, (0, 0, 1, 0)) if layout == "patches" else positions
        for rows, columns in factor_pairs(num_patches[layout]):
            expected = sincos_position_embeddings(width, (rows, columns))
            if torch.allclose(full.float(), expected.float(), rtol=0, atol=tolerance):
                return PositionGrid(rows, columns, layout, is_sincos=True, origin="weights")
    return None


def factor_pairs(number: int) -> list[tuple[int, int]]:
    """Return all (rows, columns) whose product is `number`, the most square ones first."""
    sides = [side for side in range(1, math.isqrt(number) + 1) if number % side == 0]
    pairs = []
    for side in reversed(sides):
        pairs += [(side, number // side), (number // side, side)]
    return list(dict.fromkeys(pairs))


def _stated_grid(
    draft: Draft, source: str, total: int, num_patches: dict[str, int], stored: dict[str, Any]
) -> PositionGrid | None:
    """Return the grid of --image-size or config.json, or None if neither states a size."""
    size, origin = draft.options.image_size, "option"
    if size is None:
        size, origin = read_size(stored.get("image_size")), "config.json"
        if size is None and stored.get("image_size") is not None:
            raise ValueError(_invalid_size(stored["image_size"]))
    if size is None:
        return None
    patch_size = draft.fields["patch_size"]
    if origin == "option" and any(side % patch_size for side in size):
        raise ValueError(
            f"image_size ({size[0]} x {size[1]}) must be a multiple of the patch size "
            f"({patch_size}). Give the correct size with --image-size HEIGHT WIDTH."
        )
    grid = _fitting_grid(draft, size, num_patches, origin)
    if grid is not None:
        return grid
    raise ValueError(
        f"{source} holds {total} positions, which do not match the {size[0] // patch_size} x "
        f"{size[1] // patch_size} patches of an image of {size[0]} x {size[1]} pixels (from: "
        f"{origin}). Give the correct size with --image-size HEIGHT WIDTH."
    )


def state_image_size(draft: Draft, stored: dict[str, Any]) -> tuple[tuple[int, int], str]:
    """Return the image size of a source without stored positions, (height, width), and its origin.

    Args:
        draft: Draft.
        stored: Fields that config.json holds.

    Raises:
        ValueError: If the size in config.json is invalid, or no size is stated.
    """
    suggestions = [
        (draft.options.image_size, "option"),
        (stored.get("image_size"), "config.json"),
        (stored.get("input_size"), "config.json, pretrained_cfg"),
        (draft.format.usual_image_size, f"convention of {draft.format.name}"),
    ]
    for value, origin in suggestions:
        size = read_size(value)
        if size is not None:
            return size, origin
        if value is not None:
            raise ValueError(_invalid_size(value))
    raise ValueError("the image size is not stored. Give --image-size HEIGHT WIDTH.")


def _invalid_size(value: Any) -> str:
    return (
        f"image_size ({value!r}) in config.json must be one number or (height, width). Correct it, "
        "or give --image-size HEIGHT WIDTH."
    )


def _suggested_grid(
    draft: Draft, num_patches: dict[str, int], stored: dict[str, Any]
) -> PositionGrid | None:
    """Return the grid of a size that the source has for another purpose, if it fits.

    timm's `pretrained_cfg` states the size of the published weights, and the arguments of a
    training script that of its images.
    """
    suggestions = [(stored.get("input_size"), "config.json, pretrained_cfg")]
    suggestions += [
        (draft.file.arguments.get(name), f"arguments of the source, {name}")
        for name in SIZE_ARGUMENTS
    ]
    suggestions.append((draft.format.usual_image_size, f"convention of {draft.format.name}"))
    for value, origin in suggestions:
        size = read_size(value)
        grid = None if size is None else _fitting_grid(draft, size, num_patches, origin)
        if grid is not None:
            return grid
    return None


def _fitting_grid(
    draft: Draft, size: tuple[int, int], num_patches: dict[str, int], origin: str
) -> PositionGrid | None:
    patch_size = draft.fields["patch_size"]
    rows, columns = size[0] // patch_size, size[1] // patch_size
    for layout, number in num_patches.items():
        if number == rows * columns:
            return PositionGrid(rows, columns, layout, is_sincos=False, origin=origin)
    return None


def _guess_grid(
    draft: Draft, name: str, total: int, num_patches: dict[str, int], num_registers: int
) -> PositionGrid:
    """Return the square that fits, as a guess if other grids fit, too."""
    source = draft.source_name(name)
    sides = {
        layout: math.isqrt(number)
        for layout, number in num_patches.items()
        if math.isqrt(number) ** 2 == number
    }
    if len(sides) == 1:
        ((layout, side),) = sides.items()
        if side == 1:
            return PositionGrid(1, 1, layout, is_sincos=False, origin="weights")
        pairs = [pair for number in num_patches.values() for pair in factor_pairs(number)]
        pairs.sort(key=lambda pair: abs(math.log(pair[0] / pair[1])))  # the most square ones first
        others = [
            f"{rows} x {columns}" for rows, columns in pairs if (rows, columns) != (side, side)
        ]
        draft.add_guess(
            "image_size",
            f"{side**2} patches are taken for {side} x {side}; {shorten(others, 3)} fit as well. "
            "If the images were not square, give --image-size HEIGHT WIDTH",
        )
        return PositionGrid(side, side, layout, is_sincos=False, origin=GUESS)
    if sides:
        fitting = " or ".join(f"{side} x {side} patches" for side in sides.values())
        raise ValueError(
            f"{source} fits {fitting} with a class token and {num_registers} registers. Give "
            "--image-size HEIGHT WIDTH."
        )
    grids = [
        f"{rows} x {columns} patches (--image-size {_image_size(draft, (rows, columns))})"
        for number in dict.fromkeys(num_patches.values())
        for rows, columns in factor_pairs(number)
        if min(rows, columns) > 1 or number < 4
    ]
    registers = draft.source_name(name.removesuffix(POSITIONS) + REGISTERS)
    missing = "" if num_registers else f", unless {registers} is missing in the source"
    raise ValueError(
        f"{source} holds {total} positions, which do not form a square with a class token and "
        f"{num_registers} registers. Give the image size. Possible are "
        f"{shorten(grids, 6) or 'rows or columns of single patches only'}{missing}."
    )


def _image_size(draft: Draft, grid: tuple[int, int]) -> str:
    """Return the value of --image-size for a grid."""
    return " ".join(str(side * draft.fields["patch_size"]) for side in grid)


def read_size(value: Any) -> tuple[int, int] | None:
    """Return (height, width) of a number, a pair, or timm's (channels, height, width)."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value, value) if value > 0 else None
    if not isinstance(value, Sequence) or len(value) not in (2, 3):
        return None
    height, width = value[-2:]
    if not all(isinstance(side, int) and side > 0 for side in (height, width)):
        return None
    return height, width


__all__ = [
    "GUESS",
    "POSITIONS",
    "REGISTERS",
    "PositionGrid",
    "factor_pairs",
    "infer_grid",
    "read_size",
    "state_image_size",
]
