"""Figures without pyplot: no global state and no window, safe in any process or thread."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..atomic_output import atomic_output

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PIXELS_PER_INCH = 100
# A panel shows its image enlarged by a whole number, so that its longer side has at least
# MIN_PANEL pixels; larger images are shrunk to MAX_PANEL.
MIN_PANEL, MAX_PANEL = 200, 512  # pixels
TILE = 112  # pixels, of a small picture; half of a view of ImageNet
GAP = 8  # pixels between panels, and around them
HEADER = 34  # pixels


def require_matplotlib() -> None:
    """Say how to install matplotlib where it is missing.

    Raises:
        ImportError: without matplotlib.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'pictures need matplotlib; install it with pip install "selfvit[viz]".'
        ) from error


def new_figure(width: int, height: int) -> Figure:
    """Return an empty figure of (width, height) pixels that draws with Agg.

    Raises:
        ImportError: without matplotlib.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / PIXELS_PER_INCH, height / PIXELS_PER_INCH))
    figure.set_dpi(PIXELS_PER_INCH)
    FigureCanvasAgg(figure)
    return figure


def save_png(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG, whole or not at all; the folder is made where it is missing."""
    with atomic_output(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=PIXELS_PER_INCH)


def check_picture(path: Path, overwrite: bool = False) -> None:
    """Check that a picture can be drawn and written, before any work is done.

    Args:
        path: of the PNG.
        overwrite: whether a file there may be replaced.

    Raises:
        FileExistsError: if there is a file already, or a folder.
        ImportError: without matplotlib.
        ValueError: for another extension than .png.
    """
    if path.suffix.lower() != ".png":
        raise ValueError(f"the picture is a PNG, and {str(path)!r} does not end in .png.")
    if path.is_dir():
        raise FileExistsError(f"{str(path)!r} is a folder; give the path of a new .png file.")
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{str(path)!r} exists; give a new path, or --overwrite to replace the picture."
        )
    require_matplotlib()


def heat(values: np.ndarray) -> np.ndarray:
    """Color a map from its smallest value, black, to its largest, light: (h, w) -> (h, w, 3).

    Raises:
        ImportError: without matplotlib.
    """
    require_matplotlib()
    import matplotlib

    above = values - values.min()
    return matplotlib.colormaps["magma"](above / (above.max() or 1))[..., :3]


def draw_panels(
    titles: Sequence[str], rows: Sequence[Sequence[np.ndarray]], path: str | os.PathLike[str]
) -> None:
    """Draw a grid of panels as a PNG, each column under its title.

    All panels get the size of the first, pixel by pixel: nothing is interpolated unless images are
    larger than a panel may be.

    Args:
        titles: of the columns.
        rows: of panels, a panel a title; each (height, width, 3), in [0, 1].
        path: of the PNG.

    Raises:
        ImportError: without matplotlib.
    """
    panel_height, panel_width = _panel_size(*rows[0][0].shape[:2])
    width = GAP + len(titles) * (panel_width + GAP)
    height = HEADER + len(rows) * (panel_height + GAP)
    figure = new_figure(width, height)
    for column, title in enumerate(titles):
        left = GAP + column * (panel_width + GAP)
        center, baseline = left + panel_width / 2, height - 0.7 * HEADER
        figure.text(center / width, baseline / height, title, ha="center", fontsize=11)
        for row, panels in enumerate(rows):
            bottom = height - HEADER - row * (panel_height + GAP) - panel_height
            pixels = _resized(panels[column], panel_height, panel_width)
            figure.figimage(pixels, left, bottom, origin="upper")
    save_png(figure, path)


def tile_panels(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Lay panels out as a small picture, without titles and without matplotlib.

    Args:
        rows: of equally many panels; each (height, width, 3), in [0, 1]. All get the size of the
            first: enlarged by a whole number, or shrunk, to a longer side of TILE pixels at most.

    Returns:
        (H, W, 3), uint8, white between the panels.
    """
    height, width = _tile_size(*rows[0][0].shape[:2])
    size = (len(rows) * (height + GAP) - GAP, len(rows[0]) * (width + GAP) - GAP, 3)
    picture = np.full(size, 255, dtype=np.uint8)
    for row, panels in enumerate(rows):
        for column, panel in enumerate(panels):
            top, left = row * (height + GAP), column * (width + GAP)
            picture[top : top + height, left : left + width] = _resized(panel, height, width)
    return picture


def _panel_size(height: int, width: int) -> tuple[int, int]:
    longest = max(height, width)
    if longest > MAX_PANEL:
        return _shrunk(height, width, MAX_PANEL)
    factor = math.ceil(MIN_PANEL / longest)
    return height * factor, width * factor


def _tile_size(height: int, width: int) -> tuple[int, int]:
    factor = TILE // max(height, width)
    return (height * factor, width * factor) if factor else _shrunk(height, width, TILE)


def _shrunk(height: int, width: int, longest: int) -> tuple[int, int]:
    scale = longest / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _resized(panel: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a panel as eight-bit (height, width, 3); pixels stay squares where it grows."""
    image = Image.fromarray((panel * 255).round().astype(np.uint8))
    grows = height >= image.height
    resample = Image.Resampling.NEAREST if grows else Image.Resampling.LANCZOS
    return np.asarray(image.resize((width, height), resample))
