"""Writers of small shards in real formats: Parquet files and WebDataset tars of images."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..image_files import noise


def encoded(seed: int, kind: str = "PNG", size: int = 36) -> bytes:
    """Return the content of an image file with random pixels."""
    content = io.BytesIO()
    noise(size, size, seed).save(content, kind)
    return content.getvalue()


def write_parquet_shards(
    folder: Path, sizes: list[int], row_group_size: int | None = None, unreadable: tuple = ()
) -> Path:
    """Write one file per size, with consecutive ids over all files; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
    for shard, size in enumerate(sizes):
        rows = [
            {
                "image": {
                    "bytes": b"not an image" if number in unreadable else encoded(number),
                    "path": None,
                },
                "id": str(number),
            }
            for number in range(first, first + size)
        ]
        table = pa.Table.from_pylist(rows, pa.schema({"image": IMAGE, "id": pa.string()}))
        pq.write_table(table, folder / f"part-{shard:03d}.parquet", row_group_size=row_group_size)
        first += size
    return folder


IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """Write a tar file with the given files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def write_tar_shards(folder: Path, sizes: list[int], labels: str | None = "cls") -> Path:
    """Write one tar per size: JPEGs named 0, 1, 2, ... with labels 0 to 2 in `cls` or JSON."""
    first = 0
    for shard, size in enumerate(sizes):
        members = {}
        for number in range(first, first + size):
            members[f"{number}.jpg"] = encoded(number, "JPEG")
            if labels == "cls":
                members[f"{number}.cls"] = str(number % 3).encode()
            elif labels == "json":
                content = {"label": f"class {number % 3}", "width": 36}
                members[f"{number}.json"] = json.dumps(content).encode()
        write_tar(folder / f"shard-{shard:03d}.tar", members)
        first += size
    return folder
