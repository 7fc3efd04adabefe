"""Read the values of image files that Pillow would reduce to eight bits: TIFF, PNG, NumPy arrays.

Each reader returns `RawPixels`: the values with the type of the file, and what they mean. They are
brought to the scale of eight bits in blocks of rows, so that no whole image is copied as floats
that the output does not need.
"""

# H height · W width · B bands in the file · C channels that the model reads

from __future__ import annotations

import io
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...pixel_scale import GRAY_WEIGHTS, WHITE, range_of_type, to_eight_bit_scale
from ..pixel_format import DecodedPixels, PixelFormat

NPY_START = b"\x93NUMPY"
BLOCK_VALUES = 1 << 21  # values that are scaled at a time
MAX_RAW_BYTES = 1 << 30  # 1 GiB, the largest array that is decoded
SAMPLE_FORMAT, BITS_PER_SAMPLE, PHOTOMETRIC = 339, 258, 262  # TIFF 6.0, Sec. 8 and 19
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2  # photometric interpretation of a TIFF file
PNG_DEEP = {  # color type: Pillow's raw modes of the high and of the low bytes
    2: ("RGB;16B", "RGB;16L"),
    6: ("RGBA;16B", "RGBA;16L"),
}


class PixelsError(ValueError):
    """Image that cannot be used; the message is the reason without the name of the image."""


@dataclass(frozen=True)
class RawPixels:
    """Values of an image as its file stores them.

    Args:
        values: (H, W, B), numbers of any type.
        type_range: Smallest and largest value of the type; None for eight-bit values.
        has_alpha: Whether the last band holds no color, and a model for gray or RGB ignores it.
        white_is_zero: Whether small values are bright.
        orientation: Exif orientation, 1 to 8.
    """

    values: np.ndarray
    type_range: tuple[float, float] | None
    has_alpha: bool = False
    white_is_zero: bool = False
    orientation: int = 1


def raw_array(array: np.ndarray, num_channels: int) -> RawPixels:
    """Return the pixels of an array (H, W), (H, W, B) or (B, H, W).

    The channels are the axis whose size is `num_channels`, and the last axis if both fit.

    Args:
        array: Integers, floats or booleans. One channel also serves a model for RGB, three also
            serve a model for gray.
        num_channels: Number of channels of the model.

    Raises:
        PixelsError: If the array is no image.
    """
    shape = " x ".join(map(str, array.shape))
    if array.ndim not in (2, 3):
        raise PixelsError(
            f"an array of {array.ndim} axes ({shape}), but an image has height, width and at most "
            "one axis of channels"
        )
    if array.size == 0:
        raise PixelsError(f"an array without pixels ({shape})")
    if array.dtype.kind not in "buif":
        raise PixelsError(
            f"an array of the type {array.dtype}, but pixels are integers, floats or booleans"
        )
    if array.ndim == 2:
        array = array[..., None]
    else:
        array = np.moveaxis(array, _channel_axis(array.shape, num_channels), -1)
    _check_size(array.shape, array.dtype.itemsize)
    if array.dtype == bool:
        return RawPixels(array.view(np.uint8) * np.uint8(WHITE), None)
    return RawPixels(array, _range_of(array.dtype))


def _channel_axis(shape: tuple[int, ...], num_channels: int) -> int:
    accepted = [num_channels, {1: 3, 3: 1}.get(num_channels, num_channels)]
    for count in accepted:
        for axis in (-1, 0):
            if shape[axis] == count:
                return axis
    text = " x ".join(map(str, shape))
    raise PixelsError(
        f"an array of {text}, but the model reads {num_channels} channels, which neither the "
        "first nor the last axis has"
    )


def read_npy(image: bytes | str | Path, num_channels: int) -> RawPixels:
    """Read a `.npy` file; a file on disk is mapped, not copied.

    Raises:
        PixelsError: If the array is no image, or holds Python objects.
        ValueError: If the file is damaged.
    """
    if isinstance(image, bytes):
        array = np.load(io.BytesIO(image), allow_pickle=False)
    else:
        array = np.load(image, mmap_mode="r", allow_pickle=False)
    return raw_array(array, num_channels)


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
        is_deep = max(_numbers(page.bitspersample)) > 8 or page.dtype != np.uint8
        has_values = page.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB)
        if page.bitspersample == 1 or not has_values or page.dtype is None:
            return None
        if not is_deep and num_channels in (1, 3) and _pillow_knows(page):
            return None
        _check_size((page.imagelength, page.imagewidth, page.samplesperpixel), page.dtype.itemsize)
        try:
            values = _bands_last(file, page, num_channels)
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            if page.samplesperpixel == 1 or (not is_deep and page.samplesperpixel <= 4):
                return None  # Pillow reads it, and `raw_pillow` knows its types
            is_color = page.photometric == RGB and page.dtype == np.uint16
            found = _tiff_colors(image) if is_color else None
            if found is None:
                raise PixelsError(
                    f"compressed ({getattr(page.compression, 'name', page.compression)}) in a way "
                    "that needs the package imagecodecs: pip install imagecodecs"
                ) from error
            values = found
        tag = page.tags.get(274)
        return RawPixels(
            values,
            _range_of(values.dtype, page.bitspersample),
            has_alpha=_has_alpha(page),
            white_is_zero=page.photometric == WHITE_IS_ZERO,
            orientation=1 if tag is None else tag.value,
        )


def _pillow_knows(page: Any) -> bool:
    """Return whether Pillow reads the bands of a page of eight bits, without or with alpha."""
    count, colors = page.samplesperpixel, 3 if page.photometric == RGB else 1
    return count == colors or (count == colors + 1 and (colors == 3 or page.planarconfig == 1))


def _has_alpha(page: Any) -> bool:
    last = [int(extra) for extra in page.extrasamples[-1:]]  # 1 and 2 are kinds of alpha
    return (page.photometric == RGB and page.samplesperpixel == 4) or last in ([1], [2])


def _bands_last(file: Any, page: Any, num_channels: int) -> np.ndarray:
    """Return (H, W, B); a stack of as many gray pages as the model has channels is one image."""
    height, width = page.imagelength, page.imagewidth
    series = file.series[0]
    is_stack = num_channels not in (1, 3) and page.samplesperpixel == 1
    if is_stack and series.shape == (num_channels, height, width):
        _check_size((height, width, num_channels), page.dtype.itemsize)
        return np.moveaxis(series.asarray(maxworkers=1), 0, -1)
    values = page.asarray(maxworkers=1)
    if page.planarconfig == 2 and page.samplesperpixel > 1:
        values = np.moveaxis(values.reshape(page.samplesperpixel, height, width), 0, -1)
    return values.reshape(height, width, page.samplesperpixel)


def read_png(opened: Image.Image, color_type: int) -> RawPixels:
    """Read colors of 16 bits from a PNG file, which Pillow's own mode would cut to eight bits.

    Pillow decodes the file twice: the raw mode for the other byte order gives the low bytes.

    Args:
        opened: File, opened and not loaded.
        color_type: 2 for RGB, 6 for RGB with alpha.

    Raises:
        PixelsError: If the file is too large.
        OSError: If the file is damaged.
    """
    place = opened.fp  # type: ignore[attr-defined]
    content = place.seek(0) or place.read()
    values = _high_and_low_bytes(content, PNG_DEEP[color_type])
    return RawPixels(values, range_of_type("u", 16), has_alpha=color_type == 6)


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
    return _high_and_low_bytes(content, (f"{bands};16{order[0]}", f"{bands};16{order[1]}"))


def _high_and_low_bytes(content: bytes, raw_modes: tuple[str, str]) -> np.ndarray:
    """Decode a file twice with Pillow, (H, W, B), uint16.

    Args:
        content: File of colors of 16 bits.
        raw_modes: Pillow's raw modes that keep the high and the low byte of each value.
    """
    values: np.ndarray | None = None
    for raw_mode, factor in zip(raw_modes, (256, 1), strict=True):
        with Image.open(io.BytesIO(content)) as copy:
            width, height = copy.size
            num_bands = len(copy.getbands())
            _check_size((height, width, num_bands), 4)  # both images and the values
            if values is None:
                values = np.zeros((height, width, num_bands), np.uint16)
            copy.tile = [  # type: ignore[attr-defined]
                tile._replace(
                    args=(raw_mode, *tile.args[1:]) if isinstance(tile.args, tuple) else raw_mode
                )
                for tile in copy.tile  # type: ignore[attr-defined]
            ]
            copy.load()
            rows = max(1, BLOCK_VALUES // (width * num_bands))
            for top in range(0, height, rows):
                bottom = min(height, top + rows)
                block = np.asarray(copy.crop((0, top, width, bottom)), dtype=np.uint16)
                values[top:bottom] += block * np.uint16(factor)
    assert values is not None
    return values


def raw_pillow(image: Image.Image, maxval: int | None = None) -> RawPixels:
    """Return the values of a loaded Pillow image with one of the modes I, I;16 and F.

    The tags of a TIFF file tell the type, which the mode does not keep.

    Args:
        image: Loaded image.
        maxval: Largest value that a PGM file declares; Pillow scaled it to 65535.
    """
    if maxval is not None:
        declared = np.rint(np.asarray(image) * np.float32(maxval / 65535)).astype(np.uint16)
        return RawPixels(declared[..., None], (0.0, float(maxval)))
    tags = getattr(image, "tag_v2", {})
    sample_format = _numbers(tags.get(SAMPLE_FORMAT, 1))[0]
    bits = _numbers(tags.get(BITS_PER_SAMPLE, 0))[0]
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        type_range = range_of_type("u", bits or 16)
    elif image.mode == "F":
        type_range = range_of_type("f", 32)
    elif bits == 16 and sample_format == 2:
        type_range = range_of_type("i", 16)
    elif bits == 32 and sample_format == 1:
        values, type_range = values.view(np.uint32), range_of_type("u", 32)
    else:
        type_range = range_of_type("i", 32)
    white_is_zero = tags.get(PHOTOMETRIC, 1) == WHITE_IS_ZERO
    return RawPixels(values[..., None], type_range, white_is_zero=white_is_zero)


def scale_pixels(raw: RawPixels, pixel_format: PixelFormat, factor: int = 1) -> DecodedPixels:
    """Return pixels with the channels of the model, on the scale of eight bits.

    Args:
        raw: Values of the file.
        pixel_format: Pixels that the model reads.
        factor: Number of pixels per side of the file whose mean is one pixel of the result.

    Raises:
        PixelsError: If the file has another number of channels.
    """
    bands = _bands(raw, pixel_format.num_channels)
    height, width, _ = raw.values.shape
    is_eight_bit = raw.type_range is None
    if is_eight_bit and factor == 1 and bands is not None and not raw.white_is_zero:
        return DecodedPixels(np.ascontiguousarray(raw.values[..., bands]))
    pixel_range = raw.type_range if pixel_format.pixel_range is None else pixel_format.pixel_range
    pixel_range = (0.0, WHITE) if is_eight_bit or pixel_range is None else pixel_range
    shape = (-(-height // factor), -(-width // factor), pixel_format.num_channels)
    pixels = np.empty(shape, np.uint8 if is_eight_bit else np.float32)
    low, high = np.inf, -np.inf
    rows = factor * max(1, BLOCK_VALUES // (width * raw.values.shape[2] * factor))
    for top in range(0, height, rows):
        block = raw.values[top : top + rows, :, slice(3) if bands is None else bands]
        block = block.astype(_float_for(raw.values.dtype))
        finite = np.isfinite(block) if block.dtype.kind == "f" else np.ones(1, bool)
        low = min(low, float(block.min(where=finite, initial=np.inf)))
        high = max(high, float(block.max(where=finite, initial=-np.inf)))
        block[np.isnan(block)] = pixel_range[0]
        scaled = to_eight_bit_scale(block, pixel_range)
        if raw.white_is_zero:
            scaled = WHITE - scaled
        if bands is None:
            scaled = (scaled @ np.asarray(GRAY_WEIGHTS, scaled.dtype))[..., None]
        if factor > 1:
            scaled = _block_means(scaled, factor)
        first = top // factor
        pixels[first : first + len(scaled)] = np.rint(scaled) if is_eight_bit else scaled
    if is_eight_bit:
        return DecodedPixels(pixels)
    value_range = (low, high) if low <= high else pixel_range  # nothing is finite
    return DecodedPixels(pixels, value_range, pixel_range)


def turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return the pixels (H, W, C) as Exif orientation 1 would store them."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _bands(raw: RawPixels, num_channels: int) -> list[int] | None:
    """Return the bands to read, in order; None for the gray value of the first three."""
    count = raw.values.shape[2]
    if count == num_channels:
        return list(range(count))
    colors = count - raw.has_alpha
    if num_channels == 3 and colors == 1:
        return [0, 0, 0]
    if num_channels == 3 and colors == 3:
        return [0, 1, 2]
    if num_channels == 1 and colors == 1:
        return [0]
    if num_channels == 1 and colors == 3:
        return None
    raise PixelsError(channels_reason(count, num_channels))


def channels_reason(count: int, num_channels: int) -> str:
    """Return the reason why an image of another number of channels cannot be read."""
    return (
        f"has {count} channel{'s' * (count != 1)}, but the model reads {num_channels} "
        "(num_channels)"
    )


def _block_means(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Return the means of blocks of factor x factor pixels, (H, W, C) -> (H/factor, W/factor, C).

    The last row and column of blocks may be smaller.
    """
    height, width, _ = pixels.shape
    rows = np.add.reduceat(pixels, np.arange(0, height, factor), axis=0)
    sums = np.add.reduceat(rows, np.arange(0, width, factor), axis=1)
    row_counts = np.diff([*range(0, height, factor), height]).astype(pixels.dtype)
    column_counts = np.diff([*range(0, width, factor), width]).astype(pixels.dtype)
    return sums / (row_counts[:, None] * column_counts)[..., None]


def _float_for(dtype: np.dtype) -> type:
    """Return the type to compute in: float32 holds integers of 16 bits exactly, not of 32."""
    is_exact = dtype.itemsize <= 2 or (dtype.kind == "f" and dtype.itemsize == 4)
    return np.float32 if is_exact else np.float64


def _range_of(dtype: np.dtype, bits: Any = None) -> tuple[float, float] | None:
    """Return the range of a type, or of fewer bits that a file stores in it; None for uint8."""
    if dtype == np.uint8:
        return None
    used = _numbers(bits)[0] if bits is not None else dtype.itemsize * 8
    return range_of_type(dtype.kind, used)


def _numbers(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _check_size(shape: tuple[int, ...], itemsize: int) -> None:
    """Check an image (H, W, B) before it is decoded.

    Raises:
        PixelsError: If it has no pixels, too many pixels, or too many bytes.
    """
    height, width, num_bands = shape
    if 0 in shape:
        raise PixelsError(f"without pixels: {width} x {height} of {num_bands} channels")
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    if limit and height * width > limit:
        raise PixelsError(too_many_pixels())
    num_bytes = height * width * num_bands * itemsize
    if num_bytes > MAX_RAW_BYTES:
        raise PixelsError(
            f"too large: {width} x {height} pixels of {num_bands} channels take {num_bytes:,} "
            f"bytes, and the limit is {MAX_RAW_BYTES:,}"
        )


def too_many_pixels() -> str:
    """Return the reason why an image above Pillow's limit is not decoded."""
    return (
        f"too many pixels: more than {2 * (Image.MAX_IMAGE_PIXELS or 0)}, the limit that "
        "protects against decompression bombs"
    )


__all__ = [
    "NPY_START",
    "PNG_DEEP",
    "PixelsError",
    "RawPixels",
    "channels_reason",
    "raw_array",
    "raw_pillow",
    "read_npy",
    "read_png",
    "read_tiff",
    "scale_pixels",
    "too_many_pixels",
    "turn_upright",
]
