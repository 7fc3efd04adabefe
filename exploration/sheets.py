"""Contact sheets: rows of thumbnails with captions, as one PNG."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..atomic_output import atomic_output

TILE = 144  # pixels, longer side of a thumbnail
GAP, CAPTION, TITLE = 8, 30, 26  # pixels: between tiles, below a tile, above a row
FONT_SIZE = 12
MAX_ROWS = 200  # of a sheet


@dataclass(frozen=True)
class Tile:
    """Thumbnail with a caption.

    Args:
        picture: Image of any size.
        caption: Lines below it.
        is_marked: Whether it has a frame.
    """

    picture: Image.Image
    caption: str = ""
    is_marked: bool = False


@dataclass(frozen=True)
class SheetRow:
    """Row of a sheet.

    Args:
        tiles: Thumbnails.
        title: Line above them; "" for none.
    """

    tiles: Sequence[Tile]
    title: str = ""


def draw_sheet(rows: Iterable[SheetRow], path: str | os.PathLike[str], per_line: int = 10) -> None:
    """Write rows of thumbnails as a PNG, completely or not at all.

    Args:
        rows: Rows; at most `MAX_ROWS` are drawn, and no more are asked for.
        path: PNG file to write.
        per_line: Number of thumbnails after which a row goes on in the next line.
    """
    sheet = compose_sheet(rows, per_line)
    with atomic_output(Path(path)) as unfinished:
        sheet.save(unfinished, format="PNG")


def remark_on_rows(num_rows: int, noun: str) -> str:
    """Return how many rows a sheet shows if it does not show all; "" otherwise.

    Args:
        num_rows: Number of rows.
        noun: Plural noun for them.
    """
    return f" (first {MAX_ROWS} of {num_rows:,} {noun})" if num_rows > MAX_ROWS else ""


def compose_sheet(rows: Iterable[SheetRow], per_line: int = 10) -> Image.Image:
    """Return rows of thumbnails as one image.

    Args:
        rows: Rows, as in `draw_sheet`.
        per_line: Number of thumbnails per line, as in `draw_sheet`.
    """
    rows = list(islice(rows, MAX_ROWS))
    lines = [
        (row.title if start == 0 else "", row.tiles[start : start + per_line])
        for row in rows
        for start in range(0, max(1, len(row.tiles)), per_line)
    ]
    columns = max((len(tiles) for _, tiles in lines), default=1)
    heights = [(TITLE if title else 0) + TILE + CAPTION + GAP for title, _ in lines]
    width = GAP + max(1, columns) * (TILE + GAP)
    sheet = Image.new("RGB", (width, GAP + sum(heights)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    top = GAP
    for (title, tiles), height in zip(lines, heights, strict=True):
        below = top
        if title:
            draw.text((GAP, top + 4), _fitting(title, font, width - 2 * GAP), "black", font)
            below += TITLE
        for number, tile in enumerate(tiles):
            _draw_tile(sheet, draw, font, tile, GAP + number * (TILE + GAP), below)
        top += height
    return sheet


def _draw_tile(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    tile: Tile,
    left: int,
    top: int,
) -> None:
    picture = tile.picture.convert("RGB")
    scale = TILE / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    # pixels of small images stay squares
    resample = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    picture = picture.resize((width, height), resample)
    place = left + (TILE - picture.width) // 2, top + (TILE - picture.height) // 2
    sheet.paste(picture, place)
    if tile.is_marked:
        box = left - 2, top - 2, left + TILE + 1, top + TILE + 1
        draw.rectangle(box, outline=(0, 120, 215), width=3)
    for number, line in enumerate(tile.caption.splitlines()[:2]):
        draw.text((left, top + TILE + 2 + 14 * number), _fitting(line, font, TILE), "black", font)


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Return a text, or its end after "..." if it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength("..." + text) > width:
        text = text[1:]
    return "..." + text


__all__ = ["SheetRow", "Tile", "compose_sheet", "draw_sheet", "remark_on_rows"]
