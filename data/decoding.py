"""Decode image files of any kind to the pixels that a model reads, or report why that fails."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import one_line
from .files.image_formats import SIGNATURE_BYTES, format_of, missing_support
from .files.image_plugins import register_plugins
from .image_source import UnreadableContent
from .pixel_format import FOURTH_BAND, FRAMES, TRANSPARENCY, DecodedPixels, PixelFormat
from .pixels.deep_pixels import check_memory, raw_pillow, read_deep
from .pixels.jpeg_pixels import JPEG_FORMATS, read_jpeg
from .pixels.raw_pixels import (
    NPY_START,
    PixelsError,
    RawPixels,
    channels_reason,
    raw_array,
    read_npy,
    scale_pixels,
    too_many_pixels,
    turn_upright,
)
from .pixels.tiff_pixels import UNSPECIFIED, has_more_pages, read_tiff

# Exceptions that the decoders raise on corrupt data, determined by experiment; RuntimeError is
# tifffile's.
DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    OverflowError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    RuntimeError,
    struct.error,
    zlib.error,
)

ORIENTATION_TAG = 0x0112  # Exif 2.3, Sec. 4.6.4
EXTRA_SAMPLES_TAG = 0x0152  # TIFF 6.0, Sec. 18
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
START_LENGTH = 32  # bytes that tell the format
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
LARGE = 40_000_000  # pixels; a larger image is reduced while it is decoded
LARGE_VALUES = 60_000_000  # of more than eight bits, which take four bytes each
GAP = 4  # an image is reduced to this multiple of the size that the output needs, and not further
MAX_UNREDUCED = 80_000_000  # pixels; a larger image is reduced further, to MIN_GAP, or refused
MIN_GAP = 2  # the decoder of JPEG files reduces so far at any size
OPAQUE = 255  # alpha
BLOCK_PIXELS = 1 << 20  # pixels that are reduced at a time
BANDS = {"1": 1, "L": 1, "LA": 2, "La": 2, "RGBA": 4, "RGBa": 4, "RGBX": 4, "PA": 4}
ANIMATIONS = ("AVIF", "GIF", "PNG", "WEBP")  # formats whose frames are images of their own

register_plugins()

AnyImage = bytes | str | Path | Image.Image | np.ndarray
Content = AnyImage | UnreadableContent
# (height, width) that the output needs at least, or a function of the size of the image, upright.
Target = tuple[int, int] | Callable[[tuple[int, int]], tuple[int, int]]


class UnreadableImageError(ValueError):
    """Image that cannot be decoded; the message is a short reason without the name of the image."""


def decode_image(image: Content, pixel_range: tuple[float, float] | None = None) -> Image.Image:
    """Decode the first frame of an image to eight-bit RGB, rotated upright.

    The alpha channel is dropped, not blended with a background, so the color stored in transparent
    pixels becomes visible. A single color that a file without an alpha channel declares transparent
    becomes white. `pipeline("image-feature-extraction")` does the same, and must compute the same
    vectors as selfvit. There is one difference: values of more than eight bits are scaled, where
    Pillow's `convert` would clip them to white.

    Args:
        image: Content of a file, path of a file, an open image, which is not changed, or an array.
        pixel_range: Values of black and white in files of more than eight bits, as in
            `PixelFormat`.

    Returns:
        New image with mode RGB.

    Raises:
        UnreadableImageError: If the image is empty, truncated, not an image, or so large that
            decoding it could exhaust the memory (more than twice `PIL.Image.MAX_IMAGE_PIXELS`).
    """
    pixels = decode_pixels(image, PixelFormat(3, pixel_range)).pixels
    return Image.fromarray(pixels if pixels.dtype == np.uint8 else np.rint(pixels).astype(np.uint8))


def decode_pixels(
    image: Content,
    pixel_format: PixelFormat = PixelFormat(),  # noqa: B008 (it cannot change)
    target: Target | None = None,
) -> DecodedPixels:
    """Decode the first frame of an image to the pixels that a model reads, rotated upright.

    Files of at most eight bits become uint8. All others become float32 on the same scale, from 0 to
    255 and not rounded. Nothing wraps: values outside of the range are clipped.

    Args:
        image: Content of a file, path of a file, an open image, which is not changed, or an array
            (H, W), (H, W, C) or (C, H, W). Files may be `.npy` files of such arrays.
        pixel_format: Pixels that the model reads.
        target: (height, width) in pixels that the output needs at least, or a function that returns
            it for the (height, width) of the image. A JPEG file is decoded at 1/2, 1/4 or 1/8 of
            its size if the result is at least twice the target, which takes less time. Other images
            are reduced above 40 megapixels, so that they take less memory.

    Returns:
        Pixels (H, W, C), and the values that were seen.

    Raises:
        UnreadableImageError: If the image is empty, truncated, not an image, too large, or has
            another number of channels.
    """
    # Pillow warns about photos above its pixel limit (valid up to twice the limit) and about
    # unusual EXIF blocks and palettes. In a dataset of a million files these warnings are noise.
    # It is not safe in threads, in which arrays are decoded.
    is_array = isinstance(image, np.ndarray)
    with contextlib.nullcontext() if is_array else warnings.catch_warnings():
        if not is_array:
            warnings.simplefilter("ignore")
        try:
            return _decode(image, pixel_format, target)
        except UnreadableImageError:
            raise
        except PixelsError as error:
            raise UnreadableImageError(str(error)) from error
        except Image.DecompressionBombError as error:
            raise UnreadableImageError(too_many_pixels()) from error
        except UnidentifiedImageError as error:
            raise UnreadableImageError(_unknown_reason(image)) from error
        except MemoryError as error:
            raise UnreadableImageError("not enough memory to decode it") from error
        except DECODER_ERRORS as error:
            raise UnreadableImageError(_reason(error)) from error


def _decode(image: Content, pixel_format: PixelFormat, target: Target | None) -> DecodedPixels:
    if isinstance(image, UnreadableContent):
        raise UnreadableImageError(image.reason)
    if isinstance(image, Image.Image):
        content = _content_of_tiff(image)
        if content is None:
            return _decode_pillow(image, pixel_format, target)
        image = content
    if isinstance(image, np.ndarray):
        return _scaled(raw_array(image, pixel_format.num_channels), pixel_format, target)
    start = _start(image)
    raw: RawPixels | None = None
    has_more = False
    if start.startswith(NPY_START):
        raw = read_npy(image, pixel_format.num_channels)
    elif start.startswith(TIFF_STARTS):
        raw = read_tiff(image, pixel_format.num_channels)
        has_more = pixel_format.num_channels in (1, 3) and _has_more(has_more_pages, image)
    if raw is not None:
        decoded = _scaled(raw, pixel_format, target)
    else:
        # Pillow would map a file that it opens itself, and a mapped TIFF file that is to be turned
        # is read with width and height swapped.
        with (
            io.BytesIO(image) if isinstance(image, bytes) else open(image, "rb") as file,
            Image.open(file) as opened,
        ):
            has_more = has_more or _has_more(_is_animated, opened)
            decoded = _decode_jpeg(opened, pixel_format, target) or _decode_pillow(
                opened, pixel_format, target
            )
    return replace(decoded, unread=(*decoded.unread, FRAMES)) if has_more else decoded


def _scaled(raw: RawPixels, pixel_format: PixelFormat, target: Target | None) -> DecodedPixels:
    height, width, num_bands = raw.values.shape
    factor = 1
    if height * width * min(num_bands, pixel_format.num_channels) > LARGE_VALUES:
        factor = _factor((height, width), target, raw.orientation)
    decoded = scale_pixels(raw, pixel_format, factor)
    unread = decoded.unread
    if raw.has_alpha and pixel_format.num_channels != num_bands:
        opaque = OPAQUE if raw.type_range is None else raw.type_range[1]
        if not raw.is_transparency:
            unread = (*unread, FOURTH_BAND)
        elif raw.values[..., -1].min() < opaque:
            unread = (*unread, TRANSPARENCY)
    return replace(decoded, pixels=turn_upright(decoded.pixels, raw.orientation), unread=unread)


def _content_of_tiff(image: Image.Image) -> bytes | None:
    """Return the file of a TIFF image that is open and not loaded, at its first page, or None."""
    file, is_loaded = getattr(image, "fp", None), not getattr(image, "tile", None)
    if image.format != "TIFF" or is_loaded or file is None or image.tell() != 0:
        return None
    place = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(place)
    return content


def _decode_jpeg(
    opened: Image.Image, pixel_format: PixelFormat, target: Target | None
) -> DecodedPixels | None:
    """Decode a JPEG file; None for Pillow to decode it, at the size that is set here."""
    if opened.format not in JPEG_FORMATS:
        return None
    orientation = _orientation(opened)
    if target is not None:
        height, width = _needed((opened.height, opened.width), target, orientation)
        opened.draft(None, (MIN_GAP * width, MIN_GAP * height))  # type: ignore[arg-type]
    if opened.width * opened.height > LARGE:
        return None
    pixels = read_jpeg(opened, _mode(opened, pixel_format.num_channels))
    return None if pixels is None else DecodedPixels(turn_upright(pixels, orientation))


def _decode_pillow(
    image: Image.Image, pixel_format: PixelFormat, target: Target | None
) -> DecodedPixels:
    """Decode an image that Pillow opened."""
    check_memory(image)
    raw = read_deep(image)
    if raw is None and image.mode.startswith(("I", "F")):
        raw = raw_pillow(image)
    if raw is not None:
        raw = replace(raw, orientation=_orientation(image))
        return _scaled(raw, pixel_format, target)
    image.load()
    orientation = _orientation(image)
    mode = _mode(image, pixel_format.num_channels)
    width, height = image.size
    factor = 1
    if width * height > LARGE:
        factor = _factor((height, width), target, orientation)
    # Not ImageOps.exif_transpose: it also rewrites the EXIF block, which fails if another entry of
    # the block is invalid.
    upright = UPRIGHT.get(orientation)
    fills = (
        mode == "RGB" and pixel_format.pixel_range is None and pixel_format.fills_transparent_color
    )
    convert = _convert_filled if fills else _convert
    converted = convert(image, mode) if factor == 1 else _reduce(image, mode, factor, convert)
    converted = converted if upright is None else converted.transpose(upright)
    pixels = np.array(converted)  # a copy, which may be changed
    unread: tuple[str, ...] = ()
    if pixel_format.num_channels in (1, 3):
        if _has_fourth_band(image):
            unread = (FOURTH_BAND,)
        if _is_transparent(image, fills):
            unread = (*unread, TRANSPARENCY)
    return DecodedPixels(pixels if pixels.ndim == 3 else pixels[..., None], unread=unread)


def _is_transparent(image: Image.Image, fills: bool) -> bool:
    """Return whether an image has pixels whose transparency is not read.

    Args:
        image: Image, loaded.
        fills: Whether a single transparent color has become white, which counts as read.
    """
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa", "RGBX"):
        return image.getextrema()[-1][0] < OPAQUE  # type: ignore[index]
    if "transparency" not in image.info or image.mode not in ("L", "P", "RGB"):
        return False
    if fills and not isinstance(image.info["transparency"], bytes):
        return False
    if image.width * image.height > LARGE:
        return True  # most likely; a copy with alpha would take too much memory
    return image.convert("RGBA").getextrema()[-1][0] < OPAQUE  # type: ignore[index]


def _has_fourth_band(image: Image.Image) -> bool:
    """Return whether Pillow has left out a band of a TIFF file that is not transparency."""
    tags: Any = getattr(image, "tag_v2", {})
    return image.mode == "RGB" and tags.get(EXTRA_SAMPLES_TAG) == (UNSPECIFIED,)


def _is_animated(opened: Image.Image) -> bool:
    """Return whether a file that is not loaded has several frames."""
    return opened.format in ANIMATIONS and bool(getattr(opened, "is_animated", False))


def _has_more(check: Callable[[Any], bool], image: Any) -> bool:
    """Return what a check for further frames says; False for a damaged second one."""
    try:
        return check(image)
    except DECODER_ERRORS:
        return False  # the first frame can be read nevertheless


def _mode(image: Image.Image, num_channels: int) -> str:
    """Return the mode with as many channels as the model reads."""
    if num_channels in (1, 3):
        return "L" if num_channels == 1 else "RGB"
    count = BANDS.get(image.mode, 3)
    if image.mode == "P" and "transparency" in image.info:
        count = 4
    if count != num_channels:
        raise UnreadableImageError(channels_reason(count, num_channels))
    return {2: "LA", 4: "RGBA"}[count]


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if mode == "L" and image.mode not in ("1", "L", "LA", "La", "RGB"):
        image = image.convert("RGB")
    return image.convert(mode)


def _convert_filled(image: Image.Image, mode: str) -> Image.Image:
    """Convert to RGB, with white in place of the color that is declared transparent."""
    converted = _convert(image, mode)
    if converted.info.get("transparency") is None:
        return converted
    white = Image.new("RGBA", converted.size, "white")
    return Image.alpha_composite(white, converted.convert("RGBA")).convert(mode)


def _reduce(
    image: Image.Image, mode: str, factor: int, convert: Callable[[Image.Image, str], Image.Image]
) -> Image.Image:
    """Return the means of blocks of pixels; blocks of rows are converted one after the other."""
    width, height = image.size
    size = (-(-width // factor), -(-height // factor))
    reduced = Image.new(mode, size)
    rows = factor * max(1, BLOCK_PIXELS // (width * factor))
    for top in range(0, height, rows):
        block = image.crop((0, top, width, min(height, top + rows)))
        reduced.paste(convert(block, mode).reduce(factor), (0, top // factor))
    return reduced


def _needed(size: tuple[int, int], target: Target, orientation: int) -> tuple[int, int]:
    """Return the (height, width) that the output needs of an image as it is stored."""
    if callable(target):
        target = target(size if orientation < 5 else size[::-1])
    return target if orientation < 5 else target[::-1]


def _factor(size: tuple[int, int], target: Target | None, orientation: int) -> int:
    """Return how many pixels per side a large image may lose, without harm to the output."""
    if target is None:
        return 1
    needed = _needed(size, target, orientation)
    ratio = min(have / need for have, need in zip(size, needed, strict=True))
    factor = int(ratio / GAP)
    if factor < 2 and size[0] * size[1] > MAX_UNREDUCED:
        factor = int(ratio / MIN_GAP)
        if factor < 2:
            raise UnreadableImageError(
                f"too large: {size[1]} x {size[0]} pixels; above {MAX_UNREDUCED:,} pixels, both "
                f"sides must have at least {2 * MIN_GAP} times the pixels that the output needs"
            )
    return max(1, factor)


def _start(image: bytes | str | Path) -> bytes:
    """Return the first bytes of a file.

    Raises:
        UnreadableImageError: If it is empty, or not a file.
    """
    if isinstance(image, bytes):
        start = image[:START_LENGTH]
    else:
        # reading a pipe would block until something writes to it
        if not stat.S_ISREG(os.stat(image).st_mode):
            raise UnreadableImageError("not a regular file but a pipe, socket, device or folder")
        with open(image, "rb") as file:
            start = file.read(START_LENGTH)
    if not start:
        raise UnreadableImageError("empty file (0 bytes)")
    return start.ljust(START_LENGTH, b"\0")


def _unknown_reason(image: Content) -> str:
    """Return why no decoder knows a file, by its first bytes."""
    reason = "not an image, or a format that Pillow does not support"
    if not isinstance(image, bytes | str | Path):
        return reason
    start = image[:SIGNATURE_BYTES] if isinstance(image, bytes) else _first_bytes(image)
    if start.startswith(LFS_POINTER):
        return "not an image but a pointer of Git LFS; fetch the file with git lfs pull"
    kind = format_of(start)
    return (kind and missing_support(kind)) or reason


def _first_bytes(path: str | Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(SIGNATURE_BYTES)


def _orientation(image: Image.Image) -> int:
    """Return the orientation, 1 to 8; a broken EXIF block does not make the pixels unusable."""
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except DECODER_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be opened: {error.strerror}"
    text = one_line(error)
    return f"{'truncated' if 'truncated' in text.lower() else 'corrupt'}: {text}"


__all__ = ["AnyImage", "Content", "UnreadableImageError", "decode_image", "decode_pixels"]
