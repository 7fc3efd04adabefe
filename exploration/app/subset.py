"""Write a small copy of a collection: vectors, columns and shrunk images of a part of the rows."""

# N rows · n rows of the copy

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ...data.decoding import UnreadableImageError
from ...embedding.vectors.columns import read_column_files
from ...embedding.vectors.folder import METADATA
from ...embedding.vectors.manifest import FOOTER, TABLE, Manifest, describe_part, next_part_name
from ...embedding.vectors.reader import read_vectors
from ..collection import Collection
from ..maps import last_settings, store_positions
from .explorer import SIZES, Explorer

VECTORS, IMAGES = "vectors", "images.parquet"
LONGEST_SIDE = max(SIZES)  # pixels; the app shows no larger images
LOSSLESS_UP_TO = 64  # pixels of the longer side; larger images are JPEG files
QUALITY = 90  # of JPEG
ROWS_PER_GROUP = 100  # of the file of images


def choose_rows(num_rows: int, limit: int) -> np.ndarray:
    """Return at most `limit` rows, evenly spaced from the first to the last.

    Args:
        num_rows: Number N of rows.
        limit: Number of rows to return, at least 1.

    Returns:
        Rows in ascending order, (n,), int64. The same numbers give the same rows.
    """
    if num_rows <= limit:
        return np.arange(num_rows)
    return np.linspace(0, num_rows - 1, limit).round().astype(np.int64)


def write_subset(explorer: Explorer, rows: np.ndarray, folder: Path) -> list[str]:
    """Write vectors, columns, map and images of some rows into a folder.

    Images are shrunk to at most `LONGEST_SIDE` pixels and encoded again, so the files hold no
    metadata of the originals, such as the place of a photo. The vectors are those of the originals.
    Images that the app would not serve, and those that cannot be read, are left out.

    Args:
        explorer: Collection, as the app shows it.
        rows: Rows to copy, (n,), in ascending order.
        folder: Folder to write `VECTORS` and `IMAGES` into.

    Returns:
        Names of the images that were left out.

    Raises:
        ValueError: If no image can be read.
    """
    collection = explorer.collection
    contents: dict[int, bytes] = {}
    for row in rows.tolist():
        content = _encoded_image(explorer, row)
        if content is not None:
            contents[row] = content
    left_out = [collection.ids[row] for row in rows.tolist() if row not in contents]
    if not contents:
        raise ValueError(
            f"none of the {len(rows)} images of {str(collection.folder)!r} can be read, for "
            f"example {left_out[0]!r}; give their place with --data."
        )
    kept = list(contents)
    names = _public_names([collection.ids[row] for row in kept])
    _write_images(names, list(contents.values()), folder / IMAGES)
    _write_vectors(collection, kept, names, folder / VECTORS)
    return left_out


def _encoded_image(explorer: Explorer, row: int) -> bytes | None:
    """Return the shrunk image of a row as PNG or JPEG; None if it may not or cannot be shown."""
    try:
        if not explorer.may_serve(row):
            return None
        picture = explorer.images.picture(row)
    except (FileNotFoundError, UnreadableImageError):
        return None
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    copy = Image.new("RGB", picture.size)  # has none of the metadata
    copy.paste(picture)
    file = io.BytesIO()
    if max(copy.size) <= LOSSLESS_UP_TO:
        copy.save(file, "PNG")
    else:
        copy.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _public_names(names: Sequence[str]) -> list[str]:
    """Return names, where absolute paths lose the folder that they have in common.

    If that is the root, only the last folder of each path remains.
    """
    folders = {os.path.dirname(name) for name in names if os.path.isabs(name)}
    if not folders:
        return list(names)
    common = os.path.commonpath(folders)
    if common == os.path.dirname(common):
        short = {folder: os.path.basename(folder) for folder in sorted(folders)}
    else:
        short = {folder: os.path.relpath(folder, common) for folder in folders}
    return [
        os.path.normpath(os.path.join(short[os.path.dirname(name)], os.path.basename(name)))
        if os.path.isabs(name)
        else name
        for name in names
    ]


def _write_images(names: Sequence[str], contents: Sequence[bytes], path: Path) -> None:
    pictures = [{"bytes": content, "path": None} for content in contents]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(pictures, kind), "id": pa.array(names, pa.string())})
    pq.write_table(table, path, row_group_size=ROWS_PER_GROUP)


def _write_vectors(
    collection: Collection, rows: Sequence[int], names: Sequence[str], folder: Path
) -> None:
    folder.mkdir(parents=True)
    text = json.dumps(_public_metadata(collection.metadata, len(rows)), indent=2)
    (folder / METADATA).write_text(f"{text}\n", encoding="utf-8")
    manifest = collection.manifest
    if manifest is None:
        columns = [
            name for name in read_vectors(collection.folder).column_names if name != "patches"
        ]
        pq.write_table(_stored_rows(collection, columns, rows, names), folder / TABLE)
        return
    small = Manifest(
        {**manifest.checkpoint, "patch_grid": None},
        {**manifest.data, "num_positions": len(rows), "description": f"{len(rows)} images"},
    )
    footer: dict[str, Any] = {"run": small.run, "start": None, "stop": None, "skipped": []}
    table = _stored_rows(collection, small.schema.names, rows, names).cast(small.schema)
    path = folder / next_part_name([])
    pq.write_table(table.replace_schema_metadata({FOOTER: json.dumps(footer)}), path)
    replace(small, parts=[describe_part(path, footer)]).save(folder)
    _copy_columns(collection, rows, Collection(folder))


def _stored_rows(
    collection: Collection, columns: list[str], rows: Sequence[int], names: Sequence[str]
) -> pa.Table:
    """Return rows of the stored table, under other names of the images."""
    table = read_vectors(collection.folder, columns).take(pa.array(rows))
    return table.set_column(0, columns[0], pa.array(names, pa.string()))


def _public_metadata(metadata: dict[str, Any], num_rows: int) -> dict[str, Any]:
    """Return metadata.json without paths of this machine."""
    places = {"model": "checkpoint", "images": {"data": [IMAGES]}, "data": f"{num_rows} images"}
    counts = {"num_embedded": num_rows, "num_skipped": 0, "complete": True}
    return {**metadata, **places, **counts}


def _copy_columns(collection: Collection, rows: Sequence[int], copy: Collection) -> None:
    """Copy the columns that were added, and the positions of the last map."""
    for name, columns in read_column_files(collection.folder, collection.fingerprint).items():
        chosen = {key: values.take(pa.array(rows)) for key, values in columns.items()}
        copy.write_columns(name, chosen)
    settings, columns = last_settings(collection), copy.columns
    if settings and {"x", "y"} <= columns.keys():
        points = np.array([columns["x"], columns["y"]], dtype=np.float32).T
        store_positions(copy, points, **settings)


__all__ = ["IMAGES", "VECTORS", "choose_rows", "write_subset"]
