"""Figures without pyplot: no global state and no window, safe in any process or thread."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PIXELS_PER_INCH = 100


def new_figure(width: int, height: int) -> Figure:
    """Return an empty figure of (width, height) pixels that draws with Agg.

    Raises:
        ImportError: without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'pictures need matplotlib; install it with pip install "selfvit[viz]".'
        ) from error
    figure = Figure(figsize=(width / PIXELS_PER_INCH, height / PIXELS_PER_INCH))
    figure.set_dpi(PIXELS_PER_INCH)
    FigureCanvasAgg(figure)
    return figure


def save_png(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG, whole or not at all; the folder is made where it is missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # beside its destination: renaming is atomic only within one file system
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        drawn = Path(folder) / "figure.png"
        figure.savefig(drawn, format="png", dpi=PIXELS_PER_INCH)
        os.replace(drawn, path)
