"""Builder of `datasets` that reads the columns of Parquet files which are named exactly.

The builder "parquet" of `datasets` takes the names of files for patterns and URLs: it reads `x1`
for `x[1]`, and cannot open a name that has "::" or is not UTF-8.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.builder import Key
from datasets.table import table_cast

from ..remote.file_system import StorageError
from ..remote.remote_file import RemoteFile

Job = tuple[str, int | None]  # name of a file, and a row group of it or None for all


@dataclass
class ParquetConfig(datasets.BuilderConfig):
    """Files and columns to read.

    Args:
        files: Paths of the files, percent-encoded.
        features: Types of the columns to read, by name.
        rows_at_once: Number of rows per read; each open file keeps them in memory.
    """

    files: tuple[str, ...] = ()
    features: datasets.Features | None = None
    rows_at_once: int = 128


class ParquetFiles(datasets.ArrowBasedBuilder):
    """Columns of Parquet files; see `ParquetConfig`."""

    BUILDER_CONFIG_CLASS = ParquetConfig

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=self.config.features)

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        jobs = [(file, None) for file in self.config.files]
        return [datasets.SplitGenerator(name="train", gen_kwargs={"jobs": jobs})]

    def _generate_shards(self, jobs: list[Job]) -> Iterator[str]:
        yield from (file for file, _ in jobs)

    def _generate_more_gen_kwargs(self, jobs: list[Job]) -> Iterator[dict[str, Any]]:
        """Yield the arguments of `_generate_tables` for single row groups."""
        for file, row_group in jobs:
            if row_group is None:
                count = _opened(file).num_row_groups
                yield {"jobs": [(file, number) for number in range(count)]}
            else:
                yield {"jobs": [(file, row_group)]}

    def _generate_tables(self, jobs: list[Job]) -> Iterator[tuple[Key, pa.Table]]:
        names = list(self.info.features)
        schema = self.info.features.arrow_schema
        for position, (file, row_group) in enumerate(jobs):
            batches = _opened(file).iter_batches(
                self.config.rows_at_once,
                row_groups=None if row_group is None else [row_group],
                columns=names,
            )
            for number, batch in enumerate(batches):
                table = pa.Table.from_batches([batch]).select(names)
                yield Key(position, number), table_cast(with_readable_texts(table), schema)


def builder_of(
    files: Sequence[Path | RemoteFile],
    name: str,
    features: datasets.Features,
    rows_at_once: int,
) -> ParquetFiles:
    """Return a builder with the split "train".

    Args:
        files: Files in the order of their rows.
        name: Name of the configuration, which is part of the path in the cache of `datasets`.
        features: Types of the columns to read, by name.
        rows_at_once: Number of rows per read.
    """
    names = tuple(
        quote(file.url if isinstance(file, RemoteFile) else os.fsencode(file.absolute()))
        for file in files
    )
    return ParquetFiles(config_name=name, files=names, features=features, rows_at_once=rows_at_once)


def _opened(file: str) -> pq.ParquetFile:
    path = unquote_to_bytes(file)
    if path.startswith(b"/") or b"://" not in path:
        return pq.ParquetFile(pa.OSFile(path))
    return pq.ParquetFile(RemoteFile(path.decode(), 0).open(), pre_buffer=True)


def read_footer(file: Path | RemoteFile) -> pq.FileMetaData:
    """Return the metadata of a Parquet file.

    Args:
        file: File.

    Raises:
        ValueError: If it cannot be read.
    """
    if isinstance(file, Path) and not file.is_file():
        raise ValueError(f"{str(file)!r} is no regular file; give a Parquet file.")
    try:
        if isinstance(file, RemoteFile):
            with file.open() as opened:
                return pq.ParquetFile(opened).metadata
        return pq.ParquetFile(pa.OSFile(os.fsencode(file))).metadata
    except StorageError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{str(file)!r} cannot be read as Parquet: {error}; repair or replace it."
        ) from error


def with_readable_texts(table: pa.Table) -> pa.Table:
    r"""Return a table whose texts are UTF-8; other bytes are shown as `\xe9`.

    Args:
        table: Table; also the texts of its structs are looked at.
    """
    try:
        table.validate(full=True)
    except pa.ArrowInvalid:
        columns = [_readable(column.combine_chunks()) for column in table.columns]
        return pa.table(columns, names=table.column_names)
    return table


def _readable(array: pa.Array) -> pa.Array:
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    if pa.types.is_struct(array.type):
        parts = [_readable(part) for part in array.flatten()]
        names = [field.name for field in array.type]
        return pa.StructArray.from_arrays(parts, names, mask=array.is_null())
    if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
        return array
    contents = array.cast(pa.large_binary()).to_pylist()
    texts = [c if c is None else c.decode("utf-8", "backslashreplace") for c in contents]
    return pa.array(texts, array.type)


__all__ = ["ParquetFiles", "builder_of", "read_footer", "with_readable_texts"]
