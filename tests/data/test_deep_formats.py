"""Formats of more than eight bits whose values Pillow would cut, move or wrap."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from selfvit.data.decoding import UnreadableImageError, decode_pixels
from selfvit.data.pixel_format import PixelFormat
from selfvit.data.pixels import deep_pixels, raw_pixels, tiff_pixels

HEIGHT, WIDTH = 6, 9
TWELVE_BITS = (0, 4095)
COLORS = np.random.default_rng(0).integers(0, 4096, (HEIGHT, WIDTH, 3)).astype(np.uint16)
GRAY = COLORS[..., 1]


def png(values, color_type):
    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, color_type, 0, 0, 0)
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def gray_alpha(values):
    return np.stack([values, np.full_like(values, 65535)], axis=-1)


def pnm(magic, values, maxval=65535):
    header = f"{magic}\n# a camera\n{WIDTH} {HEIGHT}\n{maxval}\n".encode()
    if magic in ("P2", "P3"):
        return header + b"# text\n" + " ".join(map(str, values.ravel())).encode()
    return header + values.astype(">u2").tobytes()


def sgi(values, *, rle=False):
    bands = np.atleast_3d(values)
    count = bands.shape[2]
    dimension = 3 if count > 1 else 2
    fields = 474, rle, 2, dimension, WIDTH, HEIGHT, count, 0, 65535, b"", 0
    header = struct.pack(">hBBHHHHll4x80sl404x", *fields)
    rows = [bands[::-1, :, band][row] for band in range(count) for row in range(HEIGHT)]
    if not rle:
        return header + b"".join(row.astype(">u2").tobytes() for row in rows)
    # each row: WIDTH values that are not repeated, then the end
    packed = [struct.pack(f">{WIDTH + 2}H", 0x80 | WIDTH, *row.tolist(), 0) for row in rows]
    first = len(header) + 8 * len(rows)
    starts = [first + index * len(packed[0]) for index in range(len(rows))]
    table = struct.pack(f">{2 * len(rows)}i", *starts, *[len(packed[0])] * len(rows))
    return header + table + b"".join(packed)


def fits(values, bitpix, *cards):
    fixed = [f"NAXIS   = {2:20d}", f"NAXIS1  = {WIDTH:20d}", f"NAXIS2  = {HEIGHT:20d}"]
    lines = ["SIMPLE  =                    T", f"BITPIX  = {bitpix:20d}", *fixed, *cards, "END"]
    header = "".join(line.ljust(80) for line in lines).ljust(2880).encode()
    data = values[::-1].tobytes()
    return header + data + b"\0" * (-len(data) % 2880)


def jpeg2000(values, bits, *, is_signed=False, **options):
    """Write a codestream of 16 bits as Pillow does, and declare fewer bits."""
    stored = values.astype(np.int32) + (1 << 15) - (0 if is_signed else 1 << (bits - 1))
    buffer = io.BytesIO()
    Image.fromarray(stored.astype(np.uint16)).save(buffer, "JPEG2000", **options)
    content = bytearray(buffer.getvalue())
    content[content.index(b"\xff\x51") + 40] = (bits - 1) | (0x80 if is_signed else 0)
    return bytes(content)


@pytest.mark.parametrize("write, expected", [
    (lambda: png(gray_alpha(GRAY), 4), GRAY),
    (lambda: png(COLORS, 2), COLORS),
    (lambda: pnm("P5", GRAY), GRAY),
    (lambda: pnm("P6", COLORS), COLORS),
    (lambda: pnm("P6", COLORS, 4095), COLORS),
    (lambda: pnm("P2", GRAY), GRAY),
    (lambda: pnm("P3", COLORS), COLORS),
    (lambda: pnm("P3", COLORS, 4095), COLORS),
    (lambda: sgi(GRAY), GRAY),
    (lambda: sgi(COLORS), COLORS),
    (lambda: sgi(GRAY, rle=True), GRAY),
    (lambda: sgi(COLORS, rle=True), COLORS),
    (lambda: fits(GRAY.astype(">i2"), 16), GRAY),
    (lambda: fits(GRAY.astype(">i4"), 32), GRAY),
    (lambda: fits(GRAY.astype(">f8"), -64), GRAY),
    (lambda: fits((GRAY - 32768.0).astype(">i2"), 16, "BZERO   =                32768"), GRAY),
    (lambda: fits((GRAY * 4.0).astype(">i2"), 16, "BSCALE  =               2.5D-1 / x"), GRAY),
    (lambda: jpeg2000(GRAY, 12, no_jp2=True), GRAY),
    (lambda: jpeg2000(GRAY, 12), GRAY),
    (lambda: jpeg2000(GRAY, 14), GRAY),
])  # fmt: skip
@pytest.mark.parametrize("image", ["bytes", "path", "open"])
def test_twelve_bits_are_read_as_they_are_and_scaled_as_declared(write, expected, image, tmp_path):
    (tmp_path / "file").write_bytes(write())
    source = {"bytes": write(), "path": tmp_path / "file"}.get(image)
    source = Image.open(tmp_path / "file") if source is None else source
    num_channels = 1 if expected.ndim == 2 else 3
    decoded = decode_pixels(source, PixelFormat(num_channels, TWELVE_BITS))
    np.testing.assert_allclose(
        decoded.pixels, expected.reshape(HEIGHT, WIDTH, -1) * (255 / 4095), atol=1e-3
    )
    assert decoded.value_range == (expected.min(), expected.max())


@pytest.mark.parametrize("write, full_range", [
    (lambda: fits(GRAY.astype(">i2"), 16), (-32768, 32767)),
    (lambda: fits(GRAY.astype(">i2"), 16, "BZERO   =                32768"), (0, 65535)),
    (lambda: fits(GRAY.astype("i1"), 8, "BZERO   =                 -128"), (-128, 127)),
    (lambda: jpeg2000(GRAY, 12), (0, 4095)),
    (lambda: jpeg2000(GRAY.astype(np.int32) - 2048, 12, is_signed=True), (-2048, 2047)),
    (lambda: pnm("P6", COLORS, 4095), (0, 4095)),
    (lambda: png(gray_alpha(GRAY), 4), (0, 65535)),
])  # fmt: skip
def test_the_type_of_the_file_is_the_range_without_a_declaration(write, full_range):
    decoded = decode_pixels(write())
    assert decoded.full_range == full_range
    assert decoded.value_range is not None
    low, high = decoded.value_range
    assert full_range[0] <= low < high <= full_range[1]


def colors_of_jpeg2000():
    buffer = io.BytesIO()
    Image.fromarray(COLORS.astype(np.uint8)).save(buffer, "JPEG2000", no_jp2=True)
    content = bytearray(buffer.getvalue())
    place = content.index(b"\xff\x51") + 40
    content[place : place + 9 : 3] = [15, 15, 15]
    return bytes(content)


def print_colors():
    buffer = io.BytesIO()
    values = np.zeros((HEIGHT, WIDTH, 4), np.uint16)
    tifffile.imwrite(buffer, values, photometric="separated")
    return buffer.getvalue()


def packed(bits):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros((8, 8), np.uint16))
    content = bytearray(buffer.getvalue())
    content[content.index(b"\x02\x01\x03\x00\x01\x00\x00\x00") + 8] = bits  # tag 258
    return bytes(content)


@pytest.mark.parametrize("write, reason", [
    (print_colors, "TIFF of more than eight bits per channel in the mode CMYK.* PNG or TIFF"),
    (colors_of_jpeg2000, "JPEG2000 of 16 bits per channel in the mode RGB"),
    (lambda: packed(10), r"packed \(10 bits per value\).* pip install imagecodecs"),
    (lambda: packed(14), r"packed \(14 bits per value\).* pip install imagecodecs"),
    (lambda: pnm("P6", COLORS)[:-9], "truncated: .*9 bytes are missing"),
    (lambda: pnm("P3", COLORS, 300), "values from .* not from 0 to 300"),
    (lambda: pnm("P2", GRAY)[:-20], "corrupt: .* numbers, not 54"),
    (lambda: pnm("P2", GRAY)[:-20] + b"x" * 40, "corrupt: "),
    (lambda: sgi(COLORS)[:-4], "truncated"),
    (lambda: fits(GRAY.astype(">i2"), 16)[:2884], "truncated"),
    (lambda: fits(GRAY.astype(">i2"), 16, "BSCALE  =                  0.0"), "BSCALE = 0"),
    (lambda: fits(GRAY.astype(">i2"), 16, "BZERO   =                 none"), "corrupt"),
    (lambda: jpeg2000(GRAY, 12)[:60], "corrupt|truncated|not an image"),
])  # fmt: skip
def test_what_cannot_be_read_as_it_is_has_a_reason(write, reason):
    with pytest.raises(UnreadableImageError, match=reason):
        decode_pixels(write(), PixelFormat(3, TWELVE_BITS))


def test_twelve_packed_bits_are_read_by_pillow():
    values = np.arange(64).reshape(8, 8) * 65
    pairs = values.reshape(-1, 2)
    three = [pairs[:, 0] >> 4, ((pairs[:, 0] & 15) << 4) | (pairs[:, 1] >> 8), pairs[:, 1] & 255]
    content = bytearray(packed(12))
    start = struct.unpack_from(
        "<I", content, content.index(b"\x11\x01\x04\x00\x01\x00\x00\x00") + 8
    )[0]
    content[start : start + 96] = np.stack(three, axis=1).astype(np.uint8).tobytes()
    decoded = decode_pixels(bytes(content), PixelFormat(1))
    np.testing.assert_allclose(decoded.pixels[..., 0], values * (255 / 4095), atol=1e-3)
    assert decoded.full_range == TWELVE_BITS


def large_tiff(rows):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.ones((100, 100), np.uint16), compression="zlib", rowsperstrip=rows)
    return buffer.getvalue()


def large_webp():
    buffer = io.BytesIO()
    Image.new("RGB", (100, 100)).save(buffer, "WEBP")
    return buffer.getvalue()


@pytest.mark.parametrize("write, reason", [
    (lambda: large_tiff(10), None),  # 20,000 bytes and 4,000 for a strip
    (lambda: large_tiff(100), "strips or tiles of 20,000 bytes take 60,.* smaller strips"),
    (large_webp, "WEBP of 100 x 100 pixels takes 160,000 bytes to decode"),
])  # fmt: skip
def test_the_memory_of_decoders_counts(write, reason, monkeypatch):
    for module in (deep_pixels, raw_pixels, tiff_pixels):
        monkeypatch.setattr(module, "MAX_RAW_BYTES", 50_000)
    if reason is None:
        assert decode_pixels(write()).pixels.shape == (100, 100, 3)
        return
    with pytest.raises(UnreadableImageError, match=f"too large: .*{reason}"):
        decode_pixels(write())
