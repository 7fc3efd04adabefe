"""Writers of inputs that users have: tables, tars and folders of small images."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSES = ("cat", "dog", "owl")
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # as `datasets` writes it


def picture(seed: int, size: int = 24, channel: int | None = None) -> Image.Image:
    """Return random pixels; `channel` is made brighter, so that classes can be told apart."""
    pixels = np.random.default_rng(seed).integers(0, 120, (size, size, 3), dtype=np.uint8)
    if channel is not None:
        pixels[..., channel] += 120
    return Image.fromarray(pixels)


def encoded(seed: int, kind: str = "PNG") -> bytes:
    """Return the content of an image file."""
    buffer = io.BytesIO()
    picture(seed).save(buffer, kind)
    return buffer.getvalue()


def write_pictures(folder: Path, count: int, stem: str = "x", channel: int | None = None) -> None:
    """Write `count` JPEG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        picture(i, channel=channel).save(folder / f"{stem}{i}.jpg")


def write_classes(folder: Path, count: int, classes: tuple[str, ...] = CLASSES) -> None:
    """Write a sub-folder of `count` pictures for each class."""
    for channel, name in enumerate(classes):
        write_pictures(folder / name, count, channel=channel % 3)


def images(count: int = 6) -> pa.Array:
    """Return an image column of `datasets`: structs of bytes and path."""
    return pa.array([{"bytes": encoded(i), "path": f"{i}.png"} for i in range(count)], IMAGE_TYPE)


def write_table(path: Path, **columns: pa.Array) -> Path:
    """Write a Parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """Write a tar in the order of `members`."""
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


HEIC = b"\0\0\0\x18ftypheic" + bytes(200)
JXL = b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50)
