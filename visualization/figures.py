"""Draw figures without pyplot: no global state and no window, safe in any process and thread."""

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
# Images are enlarged by an integer factor until the longer side has at least MIN_PANEL pixels;
# larger images are shrunk to MAX_PANEL pixels.
MIN_PANEL, MAX_PANEL = 200, 512  # pixels
TILE = 112  # longer side of a small panel in pixels: half of a view of ImageNet
GAP = 8  # pixels between panels and around them
HEADER = 34  # height of the titles in pixels


def require_matplotlib() -> None:
    """Check that matplotlib is installed.

    Raises:
        ImportError: If it is not; the message explains how to install it.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'figures need matplotlib; install it with pip install "selfvit[viz]".'
        ) from error


def new_figure(width: int, height: int) -> Figure:
    """Return an empty figure that is drawn with Agg.

    Args:
        width: Width in pixels.
        height: Height in pixels.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / PIXELS_PER_INCH, height / PIXELS_PER_INCH))
    figure.set_dpi(PIXELS_PER_INCH)
    FigureCanvasAgg(figure)
    return figure


def save_png(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as a PNG, completely or not at all.

    Args:
        figure: Figure to write.
        path: PNG file to write; missing parent folders are created.
    """
    with atomic_output(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=PIXELS_PER_INCH)


def check_picture(path: Path, overwrite: bool = False) -> None:
    """Check that a picture can be drawn and written, before any work is done.

    Args:
        path: PNG file to write.
        overwrite: Whether an existing file may be replaced.

    Raises:
        FileExistsError: If the file exists and may not be replaced, or is a folder.
        ImportError: If matplotlib is not installed.
        ValueError: If the extension is not .png.
    """
    if path.suffix.lower() != ".png":
        raise ValueError(
            f"the picture must be a PNG file, but {str(path)!r} does not end in .png; choose a "
            "path that does."
        )
    if path.is_dir():
        raise FileExistsError(f"{str(path)!r} is a folder; choose the path of a new .png file.")
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{str(path)!r} exists; choose a new path, or use --overwrite to replace the picture."
        )
    require_matplotlib()


def heatmap(values: np.ndarray) -> np.ndarray:
    """Color a map from black (smallest value) to light (largest value): (h, w) -> (h, w, 3).

    Args:
        values: Map, (h, w).

    Returns:
        Colors in [0, 1], (h, w, 3).

    Raises:
        ImportError: If matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib

    above = values - values.min()
    return matplotlib.colormaps["magma"](above / (above.max() or 1))[..., :3]


def draw_panels(
    titles: Sequence[str], rows: Sequence[Sequence[np.ndarray]], path: str | os.PathLike[str]
) -> None:
    """Draw a grid of panels as a PNG with column titles.

    All panels are scaled to the size of the first one. Enlarged panels show every pixel as a
    square; only panels that are shrunk are interpolated.

    Args:
        titles: Titles of the columns.
        rows: Rows of panels, one panel per title; each panel (height, width, 3), in [0, 1].
        path: PNG file to write.

    Raises:
        ImportError: If matplotlib is not installed.
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
    """Arrange panels in a small picture without titles; matplotlib is not needed.

    All panels are scaled to the size of the first one: it is enlarged by an integer factor, or
    shrunk, so that its longer side has at most `TILE` pixels.

    Args:
        rows: Rows of equal length; each panel (height, width, 3), in [0, 1].

    Returns:
        Picture, (H, W, 3), uint8, white between the panels.
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
    """Return a panel as uint8 (height, width, 3); enlarged pixels stay squares."""
    image = Image.fromarray((panel * 255).round().astype(np.uint8))
    grows = height >= image.height
    resample = Image.Resampling.NEAREST if grows else Image.Resampling.LANCZOS
    return np.asarray(image.resize((width, height), resample))
