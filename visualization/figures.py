"""Figures without pyplot: no global state and no window, safe in any process or thread."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..atomic_output import atomic_output

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
    with atomic_output(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=PIXELS_PER_INCH)
