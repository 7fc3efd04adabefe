"""Thumbnails of a collection as sheets of tiles, within a limit of bytes."""

# N rows · T rows with a thumbnail

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

TILES = (160, 128, 96, 64, 48, 32, 24)  # pixels, longer side; the largest that fits is used
PER_LINE = 12  # tiles
PER_SHEET = PER_LINE**2
QUALITY = 78  # of WebP
LIMIT = 34_000_000  # bytes of all sheets; base64 makes 45 MB of them
SAMPLE = 48  # thumbnails by which the size of all is estimated
MARGIN = 1.1  # of the estimate


@dataclass(frozen=True)
class Thumbnails:
    """Sheets of thumbnails.

    Args:
        tile: Side of a tile in pixels.
        sheets: WebP files of `PER_SHEET` tiles each.
        slots: Tile of each row, (N,), int32; -1 for none.
        sizes: Width and height of each thumbnail in pixels, (N, 2), uint8.
    """

    tile: int
    sheets: Sequence[bytes]
    slots: np.ndarray
    sizes: np.ndarray

    @property
    def count(self) -> int:
        """Number of rows that have a thumbnail."""
        return int((self.slots >= 0).sum())

    def to_dict(self) -> dict[str, Any]:
        """Return the layout as the page reads it; the sheets are apart."""
        return {
            "tile": self.tile,
            "perLine": PER_LINE,
            "perSheet": PER_SHEET,
            "slots": encode(self.slots),
            "sizes": encode(self.sizes),
        }


def encode(values: np.ndarray | bytes) -> str:
    """Return numbers as base64 of their little-endian bytes.

    Args:
        values: Numbers, or bytes.
    """
    if isinstance(values, np.ndarray):
        values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes()
    return base64.b64encode(values).decode()


def draw_thumbnails(
    open_thumbnail: Callable[[int, int], Image.Image], count: int, limit: int = LIMIT
) -> Thumbnails:
    """Draw thumbnails as large as the limit allows.

    If even the smallest are too large together, a part of the rows, evenly spaced, has thumbnails.

    Args:
        open_thumbnail: Function of row and size in pixels that returns the shrunk image.
        count: Number of rows.
        limit: Number of bytes of all sheets.
    """
    tile, fitting = _choose(open_thumbnail, count, limit)
    rows: np.ndarray = np.unique(np.linspace(0, count - 1, fitting).round().astype(int))
    slots = np.full(count, -1, dtype=np.int32)
    slots[rows] = np.arange(len(rows), dtype=np.int32)
    sizes = np.zeros((count, 2), dtype=np.uint8)
    sheets = []
    for start in range(0, len(rows), PER_SHEET):
        pictures = []
        for row in rows[start : start + PER_SHEET]:
            pictures.append(open_thumbnail(int(row), tile))
            sizes[row] = pictures[-1].size
        sheets.append(_sheet(pictures, tile))
    return Thumbnails(tile, sheets, slots, sizes)


def _choose(
    open_thumbnail: Callable[[int, int], Image.Image], count: int, limit: int
) -> tuple[int, int]:
    """Return the size of a tile, and how many of them fit into the limit."""
    if not count:
        return TILES[-1], 0
    rows = np.random.default_rng(0).permutation(count)[:SAMPLE]
    pictures = [open_thumbnail(int(row), TILES[0]) for row in rows]
    largest = max(max(picture.size) for picture in pictures)
    fitting = 0
    for tile in TILES:
        # tiles larger than the images would be empty space
        if tile > largest and tile != TILES[-1]:
            continue
        for picture in pictures:
            picture.thumbnail((tile, tile))
        size = len(_sheet(pictures, tile)) / len(pictures) * MARGIN
        fitting = int(limit / size)
        if fitting >= count:
            return tile, count
    return TILES[-1], fitting


def _sheet(pictures: Sequence[Image.Image], tile: int) -> bytes:
    lines = -(-len(pictures) // PER_LINE)
    sheet = Image.new("RGB", (PER_LINE * tile, lines * tile))
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % PER_LINE * tile, number // PER_LINE * tile))
    file = io.BytesIO()
    sheet.save(file, "WEBP", quality=QUALITY)
    return file.getvalue()


__all__ = ["Thumbnails", "draw_thumbnails", "encode"]
