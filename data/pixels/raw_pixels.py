"""Values of images of any type, as NumPy arrays, and their scale.

Readers of files return `RawPixels`: the values with the type of the file, and what they mean. They
are brought to the scale of eight bits in blocks of rows, so that no whole image is copied as floats
that the output does not need.
"""

# H height · W width · B bands in the file · C channels that the model reads

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...pixel_scale import GRAY_WEIGHTS, WHITE, range_of_type, to_eight_bit_scale
from ..pixel_format import NAN, DecodedPixels, PixelFormat

NPY_START = b"\x93NUMPY"
BLOCK_VALUES = 1 << 21  # values that are scaled at a time
# The most that an image may take while it is decoded; the scaled blocks come on top.
MAX_RAW_BYTES = 1_000_000_000


class PixelsError(ValueError):
    """Image that cannot be used; the message is the reason without the name of the image."""


@dataclass(frozen=True)
class RawPixels:
    """Values of an image as its file stores them.

    Args:
        values: (H, W, B), numbers of any type.
        type_range: Smallest and largest value of the type; None for eight-bit values.
        has_alpha: Whether the last band holds no color, and a model for gray or RGB ignores it.
        is_transparency: Whether that band is one of transparency.
        white_is_zero: Whether small values are bright.
        orientation: Exif orientation, 1 to 8.
        step: Difference in the file of two values that differ by 1 in `values`.
        offset: Value in the file of 0 in `values`.
    """

    values: np.ndarray
    type_range: tuple[float, float] | None
    has_alpha: bool = False
    is_transparency: bool = True
    white_is_zero: bool = False
    orientation: int = 1
    step: float = 1.0
    offset: float = 0.0


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
    check_size(array.shape, array.dtype.itemsize)
    if array.dtype == bool:
        return RawPixels(array.view(np.uint8) * np.uint8(WHITE), None)
    return RawPixels(array, range_of(array.dtype))


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


def scale_pixels(raw: RawPixels, pixel_format: PixelFormat, factor: int = 1) -> DecodedPixels:
    """Return pixels with the channels of the model, on the scale of eight bits; NaN is black.

    Args:
        raw: Values of the file.
        pixel_format: Pixels that the model reads.
        factor: Number of pixels per side of the file whose mean is one pixel of the result.

    Raises:
        PixelsError: If the file has another number of channels, or no finite value.
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
    read = slice(3) if bands is None else bands
    if read == [0, 0, 0]:  # a gray image is scaled once
        read = [0]
    low, high, has_nan = np.inf, -np.inf, False
    black = pixel_range[1] if raw.white_is_zero else pixel_range[0]
    rows = factor * max(1, BLOCK_VALUES // (width * raw.values.shape[2] * factor))
    for top in range(0, height, rows):
        block = _in_file(raw.values[top : top + rows, :, read], raw)
        finite = block
        if raw.values.dtype.kind == "f":
            finite = block[np.isfinite(block)]
            is_nan = np.isnan(block)
            has_nan = has_nan or bool(is_nan.any())
            block[is_nan] = black
        low = min(low, float(finite.min(initial=np.inf)))
        high = max(high, float(finite.max(initial=-np.inf)))
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
    if low > high:
        raise PixelsError("without a finite value: all are NaN or infinite")
    return DecodedPixels(pixels, (low, high), pixel_range, (NAN,) if has_nan else ())


def _in_file(block: np.ndarray, raw: RawPixels) -> np.ndarray:
    """Return values as floats, as the file means them."""
    if (raw.step, raw.offset) == (1.0, 0.0):
        return block.astype(_float_for(block.dtype))
    return block.astype(np.float64) * raw.step + raw.offset


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


def range_of(dtype: np.dtype, bits: Any = None) -> tuple[float, float] | None:
    """Return the range of a type, or of fewer bits that a file stores in it; None for uint8."""
    if dtype == np.uint8:
        return None
    used = numbers(bits)[0] if bits is not None else dtype.itemsize * 8
    return range_of_type(dtype.kind, used)


def numbers(value: Any) -> tuple[int, ...]:
    """Return the values of a TIFF tag, which may be one number."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def check_size(shape: tuple[int, ...], itemsize: int) -> None:
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
    "BLOCK_VALUES",
    "MAX_RAW_BYTES",
    "NPY_START",
    "PixelsError",
    "RawPixels",
    "channels_reason",
    "check_size",
    "numbers",
    "range_of",
    "raw_array",
    "read_npy",
    "scale_pixels",
    "too_many_pixels",
    "turn_upright",
]
