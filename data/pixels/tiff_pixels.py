"""Read the values of TIFF files that Pillow would not keep: deep, signed, floats, many bands."""

# H height · W width · B bands in the file

from __future__ import annotations

import io
import logging
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from .deep_pixels import high_and_low_bytes
from .raw_pixels import MAX_RAW_BYTES, PixelsError, RawPixels, check_size, numbers, range_of

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2  # photometric interpretation (TIFF 6.0, Sec. 8)
UNSPECIFIED, MULTIPLIED_ALPHA, PLAIN_ALPHA = 0, 1, 2  # ExtraSamples (TIFF 6.0, Sec. 18)
REDUCED, MASK = 1, 4  # bits of the tag NewSubfileType (TIFF 6.0, Sec. 8)
STRIP_COPIES = 2  # of the values of a compressed strip or tile, beside the whole image


def read_tiff(image: bytes | str | Path, num_channels: int) -> RawPixels | None:
    """Read a TIFF file whose values Pillow would not keep: deep, signed, floats, many bands.

    Returns:
        Pixels; None if Pillow reads the file as it is (eight bits, colors of print, palettes).

    Raises:
        PixelsError: If the file is too large, or compressed in a way that needs
            imagecodecs.
        ValueError: If the file is damaged, as other errors of the reader.
    """
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # its errors become reasons
    source: Any = io.BytesIO(image) if isinstance(image, bytes) else image
    with tifffile.TiffFile(source) as file:
        page: Any = file.pages.first
        is_deep = max(numbers(page.bitspersample)) > 8 or page.dtype != np.uint8
        has_values = page.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB)
        if page.bitspersample == 1 or not has_values or page.dtype is None:
            return None
        if not is_deep and num_channels in (1, 3) and _pillow_knows(page):
            return None
        check_size((page.imagelength, page.imagewidth, page.samplesperpixel), page.dtype.itemsize)
        tag = page.tags.get(274)
        orientation = 1 if tag is None else tag.value
        try:
            _check_strips(page)
            values = _bands_last(file, page, num_channels)
        except (ValueError, NotImplementedError) as error:  # the second one for packed bits
            if "imagecodecs" not in str(error):
                raise
            if _pillow_decodes(image, page, is_deep):
                return None
            is_color = page.photometric == RGB and page.dtype == np.uint16
            found = _tiff_colors(image) if is_color else None
            if found is None:
                raise PixelsError(_needs_imagecodecs(page)) from error
            values, orientation = found, 1  # Pillow has turned them
        return RawPixels(
            values,
            range_of(values.dtype, page.bitspersample),
            has_alpha=_has_alpha(page),
            is_transparency=_last_extra(page) != UNSPECIFIED,
            white_is_zero=page.photometric == WHITE_IS_ZERO,
            orientation=orientation,
        )


def has_more_pages(image: bytes | str | Path) -> bool:
    """Return whether a TIFF file has a second page that is no smaller version of the first one.

    Args:
        image: File that `read_tiff` can open.
    """
    import tifffile

    source: Any = io.BytesIO(image) if isinstance(image, bytes) else image
    with tifffile.TiffFile(source) as file:
        try:
            second: Any = file.pages[1]
        except IndexError:
            return False
        return not second.subfiletype & (REDUCED | MASK)


def _pillow_decodes(image: bytes | str | Path, page: Any, is_deep: bool) -> bool:
    """Return whether Pillow keeps the values of a page that tifffile cannot decode."""
    if page.samplesperpixel > 1 and (is_deep or page.samplesperpixel > 4):
        return False
    if page.samplesperpixel == 1 and page.bitspersample % 8 == 0:
        return True  # `raw_pillow` knows the types
    try:
        Image.open(io.BytesIO(image) if isinstance(image, bytes) else image).close()
    except UnidentifiedImageError:
        return False
    return True


def _needs_imagecodecs(page: Any) -> str:
    compression = getattr(page.compression, "name", page.compression)
    how = f"compressed ({compression})"
    if max(numbers(page.bitspersample)) % 8:
        how = f"packed ({page.bitspersample} bits per value)"
    return f"{how} in a way that needs the package imagecodecs: pip install imagecodecs"


def _check_strips(page: Any) -> None:
    """Check the memory for the largest compressed strip or tile, which is decoded as a whole.

    Raises:
        PixelsError: If it takes too much beside the image.
    """
    if page.is_contiguous:
        return
    num_values = math.prod((page.imagelength, page.imagewidth, page.samplesperpixel))
    of_strip = min(num_values, math.prod(page.chunks))
    num_bytes = (num_values + STRIP_COPIES * of_strip) * page.dtype.itemsize
    num_bytes += max(page.databytecounts, default=0)
    if num_bytes > MAX_RAW_BYTES:
        raise PixelsError(
            f"too large: {page.imagewidth} x {page.imagelength} pixels and strips or tiles of "
            f"{of_strip * page.dtype.itemsize:,} bytes take {num_bytes:,} bytes to decode, and "
            f"the limit is {MAX_RAW_BYTES:,}; smaller strips take less"
        )


def _pillow_knows(page: Any) -> bool:
    """Return whether Pillow reads the bands of a page of eight bits, without or with an extra one.

    Of an extra band, it knows none in a plane of its own, and beside grays only alpha that the
    colors are not multiplied by, and only where small values are dark.
    """
    if page.photometric == RGB:
        return page.samplesperpixel == 3 or (page.samplesperpixel == 4 and page.planarconfig == 1)
    is_plain_alpha = page.photometric == BLACK_IS_ZERO and _last_extra(page) == PLAIN_ALPHA
    return page.samplesperpixel == 1 or (
        page.samplesperpixel == 2 and page.planarconfig == 1 and is_plain_alpha
    )


def _has_alpha(page: Any) -> bool:
    is_color = page.photometric == RGB and page.samplesperpixel == 4
    return is_color or _last_extra(page) in (MULTIPLIED_ALPHA, PLAIN_ALPHA)


def _last_extra(page: Any) -> int | None:
    """Return what the last band holds besides colors; None if the file does not say it."""
    return int(page.extrasamples[-1]) if page.extrasamples else None


def _bands_last(file: Any, page: Any, num_channels: int) -> np.ndarray:
    """Return (H, W, B); a stack of as many gray pages as the model has channels is one image."""
    height, width = page.imagelength, page.imagewidth
    series = file.series[0]
    is_stack = num_channels not in (1, 3) and page.samplesperpixel == 1
    if is_stack and series.shape == (num_channels, height, width):
        check_size((height, width, num_channels), page.dtype.itemsize)
        return np.moveaxis(series.asarray(maxworkers=1), 0, -1)
    values = page.asarray(maxworkers=1)
    if page.planarconfig == 2 and page.samplesperpixel > 1:
        values = np.moveaxis(values.reshape(page.samplesperpixel, height, width), 0, -1)
    return values.reshape(height, width, page.samplesperpixel)


def _tiff_colors(image: bytes | str | Path) -> np.ndarray | None:
    """Read colors of 16 bits from a TIFF file of a compression that only Pillow knows, or None."""
    content = image if isinstance(image, bytes) else Path(image).read_bytes()
    with Image.open(io.BytesIO(content)) as opened:
        tiles: Any = opened.tile  # type: ignore[attr-defined]
        modes = {tile.args[0] for tile in tiles if tile.codec_name == "libtiff"}
    if len(modes) != 1 or not modes <= {"RGB;16N", "RGBA;16N"}:
        return None
    bands = modes.pop().partition(";")[0]
    order = "LB" if sys.byteorder == "little" else "BL"  # libtiff swaps the bytes to this order
    return high_and_low_bytes(content, (f"{bands};16{order[0]}", f"{bands};16{order[1]}"))


__all__ = ["UNSPECIFIED", "has_more_pages", "read_tiff"]
