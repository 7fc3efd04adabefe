"""Read JPEG files with simplejpeg, which gives the pixels of Pillow in less time.

Both use libjpeg-turbo; Pillow then packs and copies the pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

try:
    import simplejpeg
except ImportError:  # pragma: no cover - depends on the installation
    simplejpeg = None  # Pillow decodes

JPEG_FORMATS = ("JPEG", "MPO")  # an MPO file is several JPEG files; the first one is read
COLOR_SPACES = {("RGB", "RGB"): "RGB", ("L", "RGB"): "RGB", ("L", "L"): "GRAY"}


def read_jpeg(opened: Image.Image, mode: str) -> np.ndarray | None:
    """Decode a JPEG file whose header Pillow has read and checked.

    Args:
        opened: File, opened and not loaded, at the size that its `draft` chose; neither loaded
            afterwards.
        mode: Mode of the pixels.

    Returns:
        Pixels (H, W, C) without the orientation; None for Pillow to decode the file: if simplejpeg
        is not installed, for other formats, color spaces and modes, and for a damaged file.
    """
    color_space = COLOR_SPACES.get((opened.mode, mode))
    if simplejpeg is None or opened.format not in JPEG_FORMATS or color_space is None:
        return None
    file: Any = getattr(opened, "fp", None)
    if file is None or not getattr(opened, "tile", None):
        return None
    file.seek(0)
    width, height = opened.size
    try:
        pixels = simplejpeg.decode_jpeg(
            file.read(), color_space, min_height=height, min_width=width
        )
    except ValueError:  # for anything unusual, too: Pillow tells what can be read
        return None
    return pixels if pixels.shape[:2] == (height, width) else None


__all__ = ["JPEG_FORMATS", "read_jpeg"]
