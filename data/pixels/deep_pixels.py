"""Read files of more than eight bits whose values Pillow would change.

Pillow cuts colors of 16 bits to eight, reads signed FITS as unsigned, and moves JPEG 2000 of 12
bits up to 16. What it would cut and nothing here reads is refused.
"""

# H height · W width · B bands in the file

from __future__ import annotations

import io
import math
import re
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from ...pixel_scale import check_pixel_range, range_of_type
from .raw_pixels import BLOCK_VALUES, MAX_RAW_BYTES, PixelsError, RawPixels, check_size, numbers

SAMPLE_FORMAT, BITS_PER_SAMPLE, PHOTOMETRIC = 339, 258, 262  # TIFF 6.0, Sec. 8 and 19
# By Pillow's raw mode: the raw modes of the high and of the low bytes.
HIGH_AND_LOW = {
    "L;16B": ("L;16B", "L;16"),
    "RGB;16B": ("RGB;16B", "RGB;16L"),
    "RGBA;16B": ("RGBA;16B", "RGBA;16L"),
}
GRAY_ALPHA = "LA;16B"  # four bytes per pixel, which the raw mode RGBA keeps
# Raw modes of more than eight bits per channel; not BGR;16, which has five or six.
DEEP_RAW_MODE = re.compile(r"L;16|[A-Za-z]+;16[BLN]")
HALF_FLOATS = 6  # "n" of Pillow's decoder of DDS: BC6H
FITS_CARD = 80  # bytes; FITS 4.0, Sec. 3.3 and 4.1
PLAIN_BYTES = 16  # per value of a text file: the text, an integer, and the result
# Bytes that Pillow and the library of a format need per pixel: WebP has two canvases of the
# animation, a copy of one, and the image.
BYTES_PER_PIXEL = {"WEBP": 16}


def read_deep(opened: Image.Image) -> RawPixels | None:
    """Read a file of more than eight bits whose values Pillow would change.

    Args:
        opened: File, opened and not loaded, and neither afterwards. An image that is loaded has
            only the values that Pillow keeps.

    Returns:
        Values without the orientation; None if Pillow keeps them.

    Raises:
        PixelsError: If the file is too large, or Pillow would cut its values to eight bits.
        OSError: If the file is truncated.
        ValueError: If the file is damaged.
    """
    file: Any = getattr(opened, "fp", None)
    if file is None or not getattr(opened, "tile", None):
        return None
    reader = READERS.get(opened.format or "")
    if reader is not None:
        place = file.tell()
        raw = reader(opened, file)
        if getattr(opened, "tile", None):
            file.seek(place)
        if raw is not None:
            return raw
    if _is_cut(opened):
        raise PixelsError(_cut_reason(opened, "more than eight"))
    return None


def _is_cut(opened: Any) -> bool:
    """Return whether Pillow decodes more than eight bits into a mode of eight bits."""
    if opened.mode.startswith(("I", "F")):
        return False
    for tile in opened.tile:
        arguments = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if tile.codec_name == "dds_rgb" and any(mask.bit_count() > 8 for mask in arguments[1]):
            return True
        if tile.codec_name == "bcn" and arguments[0] == HALF_FLOATS:
            return True
        raw_mode = arguments[0] if arguments else None
        if isinstance(raw_mode, str) and DEEP_RAW_MODE.fullmatch(raw_mode):
            return True
    return False


def _cut_reason(opened: Image.Image, bits: Any) -> str:
    return (
        f"{opened.format} of {bits} bits per channel in the mode {opened.mode}, of which only "
        "eight bits would be read; store it as PNG or TIFF of 16 bits, gray or RGB"
    )


def _read_png(opened: Any, file: Any) -> RawPixels | None:
    raw_mode = opened.tile[0].args
    if raw_mode not in (*HIGH_AND_LOW, GRAY_ALPHA):
        return None
    file.seek(0)
    content = file.read()
    if raw_mode == GRAY_ALPHA:
        values = _gray_and_alpha(content)
    else:
        values = high_and_low_bytes(content, HIGH_AND_LOW[raw_mode])
    return RawPixels(values, range_of_type("u", 16), has_alpha="A" in raw_mode)


def _gray_and_alpha(content: bytes) -> np.ndarray:
    """Decode gray and alpha of 16 bits, (H, W, 2)."""
    with Image.open(io.BytesIO(content)) as copy:
        width, height = copy.size
        check_size((height, width, 2), 4)
        tiles: Any = copy.tile  # type: ignore[attr-defined]
        copy.tile = [tile._replace(args="RGBA") for tile in tiles]  # type: ignore[attr-defined]
        copy.load()
        return array_of(copy).view(">u2")


def _read_sgi(opened: Any, file: Any) -> RawPixels | None:
    tile = opened.tile[0]
    width, height = opened.size
    has_alpha = opened.mode == "RGBA"
    if tile.codec_name == "SGI16":  # not compressed: one band after the other, from the bottom up
        values = _values_at(file, tile.offset, ">u2", (len(opened.getbands()), height, width))
        values = np.moveaxis(values[:, ::-1], 0, -1)
    elif tile.codec_name == "sgi_rle" and tile.args[2] == 2:
        file.seek(0)
        values = high_and_low_bytes(file.read(), HIGH_AND_LOW[tile.args[0]])
    else:
        return None
    return RawPixels(values, range_of_type("u", 16), has_alpha=has_alpha)


def _read_pnm(opened: Any, file: Any) -> RawPixels | None:
    """Read PGM or PPM, whose header declares the largest value; Pillow scales the values."""
    tile = opened.tile[0]
    maxval = 65535 if tile.args == "I;16B" else tile.args[-1]
    is_plain = tile.codec_name == "ppm_plain"
    if tile.codec_name not in ("raw", "ppm", "ppm_plain") or not isinstance(maxval, int):
        return None
    if maxval <= 255 or opened.mode not in ("I", "RGB", "RGBA"):
        return None
    width, height = opened.size
    shape = (height, width, len(opened.getbands()))
    if is_plain:
        values = _plain_values(file, tile.offset, maxval, shape)
    else:
        values = _values_at(file, tile.offset, ">u2", shape)
    return RawPixels(values, (0.0, float(maxval)), has_alpha=opened.mode == "RGBA")


def _plain_values(file: Any, offset: int, maxval: int, shape: tuple[int, ...]) -> np.ndarray:
    """Read values that are written as text, with comments."""
    check_size((shape[0], shape[1], shape[2]), PLAIN_BYTES)
    file.seek(offset)
    text = re.sub(rb"#[^\r\n]*", b"", file.read())
    values = np.fromstring(text.decode("ascii"), np.int64, sep=" ")[: math.prod(shape)]
    if len(values) < math.prod(shape):
        raise ValueError(f"{len(values)} numbers, not {math.prod(shape)}")
    if values.min() < 0 or values.max() > maxval:
        raise ValueError(f"values from {values.min()} to {values.max()}, not from 0 to {maxval}")
    return values.astype(np.uint16).reshape(shape)


def _read_fits(opened: Any, file: Any) -> RawPixels | None:
    """Read FITS: signed integers and floats, which the header scales (FITS 4.0, Sec. 4.4.2)."""
    tile = opened.tile[0]
    cards = _fits_cards(file, tile.offset)
    step, offset = float(cards.get("BSCALE", 1)), float(cards.get("BZERO", 0))
    is_raw = tile.codec_name == "raw"
    if step == 0 or not math.isfinite(step) or not math.isfinite(offset):
        raise ValueError(f"BSCALE = {step:g} and BZERO = {offset:g} in the FITS header")
    bits = int(cards["BITPIX" if is_raw else "ZBITPIX"])
    if bits == 8 and (step, offset) == (1, 0):
        return None
    width, height = opened.size
    kind = "f" if bits < 0 else "u" if bits == 8 else "i"
    dtype = f"{kind}{abs(bits) // 8}"
    if is_raw:  # from the bottom up
        values = _values_at(file, tile.offset, f">{dtype}", (height, width, 1))[::-1]
    else:
        values = array_of(opened).view(dtype)
    ends = [step * end + offset for end in range_of_type(kind, abs(bits))]
    type_range = (0.0, 1.0) if kind == "f" else (min(ends), max(ends))
    return RawPixels(values, check_pixel_range(type_range), step=step, offset=offset)


def _fits_cards(file: Any, end: int) -> dict[str, str]:
    """Return the values of the last header before the pixels, by keyword."""
    file.seek(0)
    header = file.read(end)
    cards: dict[str, str] = {}
    for start in range(0, len(header), FITS_CARD):
        card = header[start : start + FITS_CARD].decode("latin-1")
        keyword, equals, value = card[:8].strip(), card[8:10], card[10:].partition("/")[0]
        if keyword in ("SIMPLE", "XTENSION"):
            cards.clear()
        if equals == "= ":
            cards[keyword] = value.strip().replace("D", "E")  # 1.5D3 is a double
    return cards


def _read_jpeg2000(opened: Any, file: Any) -> RawPixels | None:
    """Read JPEG 2000 of 9 to 16 bits, which Pillow moves up to 16 bits."""
    depths = _depths_of_jpeg2000(file)
    bits = max(depth & 0x7F for depth in depths) + 1  # ISO 15444-1, Sec. A.5.1: Ssiz
    if bits <= 8:
        return None
    if len(depths) > 1 or opened.mode != "I;16" or bits > 16:
        raise PixelsError(_cut_reason(opened, bits))
    is_signed = bool(depths[0] & 0x80)  # Pillow adds half of the range
    file.seek(0)
    with Image.open(io.BytesIO(file.read())) as copy:
        values = array_of(copy)
    return RawPixels(
        values,
        range_of_type("i" if is_signed else "u", bits),
        step=1 / (1 << (16 - bits)),
        offset=-float(1 << (bits - 1)) if is_signed else 0.0,
    )


def _depths_of_jpeg2000(file: Any) -> list[int]:
    """Return the depth of each channel as the codestream stores it, with its sign bit.

    Raises:
        ValueError: If there is no codestream.
    """
    file.seek(0)
    place, start = 0, file.read(4)
    while start != b"\xff\x4f\xff\x51":  # codestream
        file.seek(place)
        header = file.read(16)
        if len(header) < 8:
            raise ValueError("truncated JPEG 2000 without a codestream")
        length, size = int.from_bytes(header[:4], "big"), 8
        if length == 1:
            length, size = int.from_bytes(header[8:], "big"), 16
        if header[4:8] == b"jp2c":
            place += size
            break
        if length < size:
            raise ValueError("corrupt box in JPEG 2000")
        place += length
    file.seek(place + 40)
    (count,) = struct.unpack(">H", file.read(2))
    return list(file.read(3 * count)[::3])


def _values_at(file: Any, offset: int, dtype: str, shape: tuple[int, int, int]) -> np.ndarray:
    """Read numbers that a file stores as they are.

    Raises:
        PixelsError: If there are too many.
        OSError: If the file ends before.
    """
    itemsize = np.dtype(dtype).itemsize
    check_size(shape, itemsize)
    file.seek(offset)
    num_bytes = math.prod(shape) * itemsize
    content = file.read(num_bytes)
    if len(content) < num_bytes:
        raise OSError(f"image file is truncated ({num_bytes - len(content)} bytes are missing)")
    return np.frombuffer(content, dtype).reshape(shape)


def high_and_low_bytes(content: bytes, raw_modes: tuple[str, str]) -> np.ndarray:
    """Decode a file twice with Pillow, (H, W, B), uint16.

    Args:
        content: File of values of 16 bits.
        raw_modes: Pillow's raw modes that keep the high and the low byte of each value.

    Raises:
        PixelsError: If the file is too large.
        OSError: If the file is damaged.
    """
    values: np.ndarray | None = None
    for raw_mode, factor in zip(raw_modes, (256, 1), strict=True):
        with Image.open(io.BytesIO(content)) as copy:
            width, height = copy.size
            num_bands = len(copy.getbands())
            check_size((height, width, num_bands), 4)  # both images and the values
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
                values[top:bottom] += block.reshape(-1, width, num_bands) * np.uint16(factor)
    assert values is not None
    return values


def array_of(image: Image.Image) -> np.ndarray:
    """Return a Pillow image as an array (H, W, B), copied in blocks, so that it takes twice itself.

    Raises:
        PixelsError: If the image is too large.
    """
    width, height = image.size
    num_bands = len(image.getbands())
    first = np.asarray(Image.new(image.mode, (1, 1)))
    check_size((height, width, num_bands), 2 * first.itemsize)
    values = np.empty((height, width, num_bands), first.dtype)
    rows = max(1, BLOCK_VALUES // (width * num_bands))
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        block = np.asarray(image.crop((0, top, width, bottom)))
        values[top:bottom] = block.reshape(-1, width, num_bands)
    return values


def raw_pillow(image: Image.Image) -> RawPixels:
    """Return the values of a Pillow image with one of the modes I, I;16 and F.

    The tags of a TIFF file tell the type, which the mode does not keep.

    Args:
        image: Image, loaded or not.

    Raises:
        PixelsError: If the image is too large.
    """
    tags = getattr(image, "tag_v2", {})
    sample_format = numbers(tags.get(SAMPLE_FORMAT, 1))[0]
    bits = numbers(tags.get(BITS_PER_SAMPLE, 0))[0]
    is_pnm = image.format == "PPM" and image.mode == "I"  # loaded, so scaled to 65535
    values = array_of(image)
    if image.mode.startswith("I;16") or is_pnm:
        type_range = range_of_type("u", bits or 16)
    elif image.mode == "F":
        type_range = range_of_type("f", 32)
    elif bits == 16 and sample_format == 2:
        type_range = range_of_type("i", 16)
    elif bits == 32 and sample_format == 1:
        values, type_range = values.view(np.uint32), range_of_type("u", 32)
    else:
        type_range = range_of_type("i", 32)
    white_is_zero = tags.get(PHOTOMETRIC, 1) == 0
    return RawPixels(values, type_range, white_is_zero=white_is_zero)


def check_memory(image: Image.Image) -> None:
    """Check the memory that Pillow needs for a file whose format takes far more than its pixels.

    Raises:
        PixelsError: If it is too much.
    """
    num_bytes = BYTES_PER_PIXEL.get(image.format or "", 0) * image.width * image.height
    if num_bytes > MAX_RAW_BYTES:
        raise PixelsError(
            f"too large: {image.format} of {image.width} x {image.height} pixels takes "
            f"{num_bytes:,} bytes to decode, and the limit is {MAX_RAW_BYTES:,}"
        )


READERS: dict[str, Callable[[Any, Any], RawPixels | None]] = {
    "FITS": _read_fits,
    "JPEG2000": _read_jpeg2000,
    "PNG": _read_png,
    "PPM": _read_pnm,
    "SGI": _read_sgi,
}


__all__ = ["array_of", "check_memory", "high_and_low_bytes", "raw_pillow", "read_deep"]
