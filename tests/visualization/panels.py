"""Read the panels of a picture."""

from __future__ import annotations

import numpy as np
from PIL import Image

from selfvit.visualization.figures import GAP, HEADER


def panel_of(
    picture: Image.Image, row: int, column: int, size: tuple[int, int] = (224, 224)
) -> np.ndarray:
    """Return the pixels of one panel, (height, width, 3), with values from 0 to 255.

    Args:
        picture: Picture written by `draw_panels`.
        row: Index of the row, from 0 at the top.
        column: Index of the column, from 0 at the left.
        size: Height and width of a panel in pixels; a 32 x 32 image is enlarged to 224 x 224.
    """
    height, width = size
    top, left = HEADER + row * (height + GAP), GAP + column * (width + GAP)
    box = (left, top, left + width, top + height)
    return np.asarray(picture.convert("RGB").crop(box)).astype(int)


def num_rows(picture: Image.Image, height: int = 224) -> int:
    return (picture.height - HEADER) // (height + GAP)
