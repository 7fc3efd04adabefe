"""Images with other channels or more bits than photos have: TIFF, NumPy files, Parquet."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def bands(seed: int, num_channels: int, size: int = 36, high: int = 256) -> np.ndarray:
    """Return smooth pixels (size, size, C) of which each band has another level, uint8 or uint16.

    Args:
        seed: Random seed of the image.
        num_channels: Number of bands, C.
        size: Height and width, pixels.
        high: Number of levels: 256 for eight bits, 4096 for twelve.
    """
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0.2, 1.0, (4, 4, num_channels))
    smooth = np.kron(coarse, np.ones((size // 4, size // 4, 1)))
    levels = smooth * (high - 1) * (1 + np.arange(num_channels)) / num_channels
    return levels.astype(np.uint8 if high <= 256 else np.uint16)


def tiff_bytes(pixels: np.ndarray) -> bytes:
    """Return the content of a TIFF with bands beside one another."""
    buffer = io.BytesIO()
    values = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    kind = "rgb" if pixels.shape[2] == 3 else "minisblack"
    layout = "contig" if pixels.shape[2] > 1 else None
    tifffile.imwrite(buffer, values, photometric=kind, planarconfig=layout)
    return buffer.getvalue()


def npy_bytes(pixels: np.ndarray) -> bytes:
    """Return the content of a NumPy file."""
    buffer = io.BytesIO()
    np.save(buffer, pixels)
    return buffer.getvalue()


def write_bands(
    folder: Path, num_channels: int, count: int = 12, *, high: int = 256, kinds: str = "both"
) -> Path:
    """Write images into two class folders, as TIFF, NumPy files or both; return the folder."""
    for index in range(count):
        pixels = bands(index, num_channels, high=high)
        is_npy = kinds == "npy" or (kinds == "both" and index % 3 == 0)
        content = npy_bytes(pixels) if is_npy else tiff_bytes(pixels)
        path = folder / ("a", "b")[index % 2] / f"{index:02d}.{'npy' if is_npy else 'tif'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def write_bands_table(path: Path, num_channels: int, count: int = 12) -> Path:
    """Write a Parquet file of multi-band TIFF and NumPy files; return its path."""
    rows = []
    for index in range(count):
        pixels = bands(index, num_channels)
        content = npy_bytes(pixels) if index % 2 else tiff_bytes(pixels)
        rows.append({"bytes": content, "path": f"{index}.{'npy' if index % 2 else 'tif'}"})
    pq.write_table(pa.table({"image": pa.array(rows, IMAGE_TYPE)}), path, row_group_size=6)
    return path
