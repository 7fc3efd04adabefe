"""Images of more than eight bits, of extreme shapes, and of many pixels."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image


def scene(seed: int, size: int = 64) -> np.ndarray:
    """Return smooth gray values from 0 to 1, (size, size)."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image) / 255


def write_scenes(folder: Path, bits: int, count: int = 6) -> Path:
    """Write scenes as PNG files, of 16 bits if `bits` is more than 8."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = np.round(scene(i) * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def write_scaled_scenes(folder: Path, bits: int, count: int = 6) -> Path:
    """Write the scenes of `write_scenes` as floats from 0 to 1, scaled by hand."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        values = np.round(scene(i) * (2**bits - 1)).astype(np.float32) / np.float32(2**bits - 1)
        tifffile.imwrite(folder / f"{i}.tif", values)
    return folder


def write_tiff(path: Path, pixels: np.ndarray, sample_format: int) -> None:
    """Write a gray TIFF, uncompressed, little-endian, byte by byte.

    Args:
        path: File.
        pixels: (H, W), of two or four bytes each.
        sample_format: 1 unsigned integers, 2 signed integers, 3 floats (TIFF 6.0, Sec. 19).
    """
    height, width = pixels.shape
    short, long = 3, 4
    tags = [
        (256, long, width),
        (257, long, height),
        (258, short, 8 * pixels.itemsize),  # bits per sample
        (259, short, 1),  # no compression
        (262, short, 1),  # black is zero
        (273, long, 8),  # offset of the pixels: right after the header
        (277, short, 1),  # samples per pixel
        (278, long, height),  # rows per strip
        (279, long, pixels.nbytes),
        (339, short, sample_format),
    ]
    directory = struct.pack("<H", len(tags))
    directory += b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    header = struct.pack("<2sHI", b"II", 42, 8 + pixels.nbytes)
    path.write_bytes(header + pixels.tobytes() + directory + struct.pack("<I", 0))


def write_ramps(folder: Path) -> Path:
    """Write one ramp as 8 bits, signed 16 bits, unsigned 32 bits, and in further types."""
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.int64), (48, 1))  # (48, 64)
    Image.fromarray(ramp.astype(np.uint8)).save(folder / "eight_bits.tif")
    write_tiff(folder / "signed_16_bits.tif", (ramp * 257 - 2**15).astype("<i2"), 2)
    write_tiff(folder / "unsigned_32_bits.tif", (ramp * 16843009).astype("<u4"), 1)
    # further members of the kind
    write_tiff(folder / "signed_32_bits.tif", (ramp * 16843009 - 2**31).astype("<i4"), 2)
    write_tiff(folder / "floats.tif", (ramp / 255).astype("<f4"), 3)
    deep = (ramp * 257).astype(np.uint16)
    tifffile.imwrite(folder / "white_is_zero.tif", 65535 - deep, photometric="miniswhite")
    tifffile.imwrite(folder / "big_endian.tif", deep, byteorder=">", compression="zlib")
    color = np.repeat(deep[..., None], 3, axis=2)
    planes = color.transpose(2, 0, 1)
    tifffile.imwrite(folder / "color.tif", planes, photometric="rgb", planarconfig="separate")
    np.save(folder / "array.npy", deep)
    np.save(folder / "channels_first.npy", color.transpose(2, 0, 1).astype(">u2"))
    Image.fromarray(deep).save(folder / "deep.png")
    return folder


def write_bands(folder: Path, num_channels: int, count: int = 4) -> Path:
    """Write images of many bands as `.npy` and TIFF files of 12 bits."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        levels = [scene(100 * i + band, 40) for band in range(num_channels)]
        pixels = np.round(np.stack(levels, axis=-1) * 4095).astype(np.uint16)
        planar = pixels.transpose(2, 0, 1)
        options = {"photometric": "minisblack"}
        np.save(folder / f"{i}_a.npy", pixels)
        np.save(folder / f"{i}_b.npy", planar)
        tifffile.imwrite(folder / f"{i}_c.tif", pixels, planarconfig="contig", **options)
        tifffile.imwrite(folder / f"{i}_d.tif", planar, planarconfig="separate", **options)
    return folder


def write_huge(folder: Path, kind: str) -> Path:
    """Write one image of 144 megapixels, or of 20,000 x 1 pixels, that is small on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "strip":
        Image.fromarray(np.zeros((1, 20_000, 3), np.uint8)).save(folder / "strip.png")
    elif kind == "deep_strip":
        np.save(folder / "strip.npy", np.zeros((20_000, 1), np.uint16))
    elif kind == "deep_png":
        pixels = np.full((12_000, 12_000), 40_000, np.uint16)
        Image.fromarray(pixels).save(folder / "huge.png", compress_level=1)
    elif kind == "deep_tiff":
        pixels = np.full((12_000, 12_000), 40_000, np.uint16)
        tifffile.imwrite(folder / "huge.tif", pixels, compression="zlib", rowsperstrip=100)
    elif kind == "deep_pgm":
        with open(folder / "huge.pgm", "wb") as file:
            file.write(b"P5\n12000 12000\n4095\n")
            file.truncate(file.tell() + 2 * 12_000**2)
    elif kind == "photo":
        Image.new("RGB", (12_000, 12_000), (9, 99, 199)).save(folder / "huge.jpg")
    else:
        Image.new("RGB", (48, 48)).save(folder / "ordinary.jpg")
    return folder
