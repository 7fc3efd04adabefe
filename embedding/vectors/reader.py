"""Read a folder of vectors."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ...data.remote.file_system import StorageError
from .columns import fingerprint_of, read_columns
from .manifest import MANIFEST, TABLE, Manifest, Part
from .storage import parquet_input, resolve, storage_of


def read_vectors(folder: str | os.PathLike[str], columns: list[str] | None = None) -> pa.Table:
    """Read the vectors of a folder, in the order of the images.

    Folders that are not complete yet, and those with one file `embeddings.parquet`, which earlier
    versions wrote, can be read, too.

    Args:
        folder: Folder that `write_embeddings` or `selfvit embed` wrote, or its URL.
        columns: Columns to read; all by default. Columns that were added later, see
            `write_columns`, are among them.

    Returns:
        Table with the columns of `Manifest.schema`, and those that were added, one row per image.

    Raises:
        FileNotFoundError: If there are no vectors in the folder.
        ImportError: If the packages for a URL are missing.
        StorageError: If object storage cannot be read.
        ValueError: If a file is damaged, or there is no such column.
    """
    folder = resolve(folder)
    manifest = Manifest.load(folder)
    if manifest is None:
        files = [folder / TABLE]
        if TABLE not in storage_of(folder).sizes():
            if isinstance(folder, Path) and folder.is_file():
                fault, fix = "is a file", "give such a folder first, then the images"
            else:
                fault, fix = f"has neither {MANIFEST} nor {TABLE}", "give such a folder"
            raise FileNotFoundError(
                f"{str(folder)!r} must be a folder that selfvit embed wrote, but it {fault}; {fix}."
            )
    else:
        files = [folder / part.file for part in manifest.in_order()]
    added = {} if manifest is None else read_columns(folder, fingerprint_of(manifest))
    stored = None if columns is None else [name for name in columns if name not in added]
    if manifest is not None and stored == []:
        stored = manifest.schema.names[:1]  # for the number of rows
    table = _read_files(folder, files, manifest, stored)
    if columns is None:
        columns = [*table.column_names, *added]
    for name in columns:
        if name in added:
            table = table.append_column(name, added[name])
    return table.select(columns)


def read_part(folder: Path, manifest: Manifest, part: Part, columns: list[str]) -> pa.Table:
    """Read one part of a folder of vectors.

    Args:
        folder: Folder of vectors.
        manifest: Its manifest.
        part: Part.
        columns: Columns to read, of those of `Manifest.schema`.

    Raises:
        StorageError: If object storage cannot be read.
        ValueError: If the file is damaged, or there is no such column.
    """
    return _read_files(folder, [folder / part.file], manifest, columns)


def _read_files(
    folder: Path, files: list[Path], manifest: Manifest | None, columns: list[str] | None
) -> pa.Table:
    tables = []
    if manifest is not None:  # also if the first part is not complete yet
        empty = manifest.schema.empty_table()
        known = empty.column_names
        if unknown := [name for name in columns or () if name not in known]:
            raise ValueError(
                f"{str(folder)!r} has no column {unknown[0]!r}; its columns are {', '.join(known)}."
            )
        tables.append(empty if columns is None else empty.select(columns))
    for file in files:
        try:
            with parquet_input(file) as place:
                table = pq.read_table(place, columns=columns, page_checksum_verification=True)
            tables.append(table)
        except StorageError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise ValueError(
                f"{str(file)!r} is damaged: {error}; delete it, and write it again with "
                "selfvit embed --resume."
            ) from error
    return pa.concat_tables(tables)


__all__ = ["read_part", "read_vectors"]
