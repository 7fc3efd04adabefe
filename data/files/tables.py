"""Open tables of images: Parquet files, and lists of paths in text, CSV or JSON-lines files."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json

from ...errors import printable
from ..columns import (
    LABEL_COLUMNS,
    LABEL_WORDS,
    PATH_COLUMNS,
    Columns,
    OtherType,
    choose_columns,
    note_on_labels,
)
from ..dataset_source import DatasetSource, DatasetStream, StreamingImageSource
from ..image_source import ImageSource, short_hash
from ..labels import labels_of_texts
from ..remote.remote_file import RemoteFile
from .image_formats import extension_of, image_extensions

if TYPE_CHECKING:
    import datasets
    import pyarrow.parquet as pq

ROWS_AT_ONCE = 128  # rows per read of a Parquet stream; each open shard keeps them in memory
FOOTER_BYTES = 2**16  # bytes at both ends of a Parquet file that are part of its identity

DEEPEST_JSON = 500  # a line with fewer brackets is not nested too deeply for pyarrow

VIEWS = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}


def open_parquet(
    files: Sequence[Path | RemoteFile],
    name: str,
    *,
    streaming: bool,
    identity: Sequence[str],
    image_column: str | None,
    label_column: str | None,
) -> ImageSource | StreamingImageSource:
    """Open Parquet files; only the columns of images, labels and ids are read.

    Args:
        files: Files in the order of their rows; those in object storage only as a stream.
        name: Name of the files in descriptions and errors.
        streaming: Whether to read them as a stream.
        identity: Strings that identify the files, for a stream.
        image_column: Name of the image column; None to find it.
        label_column: Name of the label column; None to find it.

    Raises:
        ValueError: If a file cannot be read, the files have no rows, or their columns differ.
    """
    import datasets

    from .parquet import builder_of, read_footer

    metadata = [read_footer(file) for file in files]
    num_rows = sum(entry.num_rows for entry in metadata)
    if num_rows == 0:
        raise ValueError(f"{name} has no rows; choose a file that has images.")
    with_rows = [pair for pair in zip(files, metadata, strict=True) if pair[1].num_rows > 0]
    files, metadata = [file for file, _ in with_rows], [entry for _, entry in with_rows]
    features, columns = _common_columns(files, metadata, image_column, label_column)
    names = [n for n in (columns.image, columns.label, columns.id) if n is not None]
    local = [file for file in files if isinstance(file, Path)]
    digest = _digest(local) if len(local) == len(files) else short_hash([name.encode()])
    builder = builder_of(
        files,
        f"selfvit-{digest}",  # part of the path in the cache of `datasets`
        datasets.Features({n: features[n] for n in names}),
        ROWS_AT_ONCE,
    )
    chosen: dict[str, Any] = {
        "image_column": image_column,
        "label_column": label_column,
        "all_features": features,
    }
    if streaming:
        folders = list(dict.fromkeys(file.parent for file in local))
        chosen["row_groups"] = [
            [entry.row_group(group).num_rows for group in range(entry.num_row_groups)]
            for entry in metadata
        ]
        stream = builder.as_streaming_dataset(split="train")
        return DatasetStream(
            stream, f"{name}, streamed", **chosen, identity=identity, folders=folders
        )
    dataset = _prepared(builder, name, num_rows)
    parts = [(file.parent, entry.num_rows) for file, entry in zip(local, metadata, strict=True)]
    return DatasetSource(dataset, f"{len(dataset)} rows of {name}", **chosen, folders=parts)


def _prepared(builder: datasets.DatasetBuilder, name: str, num_rows: int) -> datasets.Dataset:
    """Copy the rows into the cache, unless they are there, and open them there."""
    import datasets

    try:
        builder.download_and_prepare()
        dataset = builder.as_dataset(split="train")
    except datasets.exceptions.DatasetGenerationError as error:
        raise ValueError(f"{name} cannot be read: {error.__cause__ or error}") from error
    if len(dataset) != num_rows:
        raise ValueError(
            f"{name} has {num_rows} rows, but {len(dataset)} were read; empty the cache of "
            f"`datasets` at {builder.cache_dir}."
        )
    return dataset


def _common_columns(
    files: Sequence[Path | RemoteFile],
    metadata: Sequence[pq.FileMetaData],
    image_column: str | None,
    label_column: str | None,
) -> tuple[Any, Columns]:
    """Return the features of the first file and its columns, which all files must have.

    Raises:
        ValueError: If a column of images, labels or ids differs between two files.
    """
    first_features: datasets.Features | None = None
    first: Columns | None = None
    for file, entry in zip(files, metadata, strict=True):
        schema = entry.schema.to_arrow_schema()
        features = features_of(schema)
        try:
            columns = choose_columns(features, image_column, label_column)
            _check_unique(schema.names, columns)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        if first is None or first_features is None:
            first, first_features = columns, features
            continue
        for part in ("image", "label", "id"):
            mine, theirs = getattr(columns, part), getattr(first, part)
            if mine != theirs or (mine and features[mine] != first_features[mine]):
                raise ValueError(
                    f"the columns of {files[0].name} and {file.name} differ: the {part} column is "
                    f"{_describe(theirs, first_features)} in {files[0].name} and "
                    f"{_describe(mine, features)} in {file.name}; make them equal, or choose the "
                    "columns with --image-column and --label-column."
                )
    assert first is not None and first_features is not None
    return first_features, first


def _check_unique(names: Sequence[str], columns: Columns) -> None:
    for name in (columns.image, columns.label, columns.id):
        if name is not None and names.count(name) > 1:
            raise ValueError(f"{names.count(name)} columns are called {name!r}; rename them.")


def _describe(column: str | None, features: Any) -> str:
    if column is None:
        return "missing"
    return f"{column!r} ({getattr(features[column], 'dtype', 'struct')})"


def features_of(schema: pa.Schema) -> dict[str, Any]:
    """Return the types of the columns as those of `datasets`, by name.

    A type that `datasets` cannot store is an `OtherType`.
    """
    features: dict[str, Any] = {}
    for column in schema:
        kind = VIEWS.get(column.type, column.type)
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        features[column.name] = _feature_of(column.with_type(kind), schema.metadata)
    return features


def _feature_of(column: pa.Field, metadata: dict[bytes, bytes] | None) -> Any:
    import datasets

    # The metadata of `datasets` in a schema has the names of classes; it can be damaged.
    for known in (metadata, None):
        try:
            schema = pa.schema([column], metadata=known)
            return datasets.Features.from_arrow_schema(schema)[column.name]
        except (ValueError, KeyError, TypeError, AttributeError, NotImplementedError):
            continue
    return OtherType(str(column.type))


def _digest(files: Sequence[Path]) -> str:
    """Return a hash of what identifies the content of files, to keep a stale cache from being used.

    A file that was replaced can have the same path, size and time of modification. So the time of
    the last change of the inode, which cannot be set, and both ends of the file are part of the
    hash; the footer of a Parquet file has the sizes and statistics of all columns.
    """
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        digest.update(
            f"{file} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} ".encode(
                "utf-8", "surrogateescape"
            )
        )
        with open(file, "rb") as opened:
            digest.update(opened.read(FOOTER_BYTES))
            opened.seek(max(0, status.st_size - FOOTER_BYTES))
            digest.update(opened.read())
    return digest.hexdigest()[:16]


def read_list(path: Path) -> pa.Table:
    """Read a list of images: paths, one per line, or a CSV or JSON-lines table with a path column.

    The cells of a CSV file are bytes, because a name such as 0001 is no number.

    Args:
        path: Path of a .txt, .lst, .csv, .tsv or .jsonl file.

    Returns:
        Table; that of a list of paths has the column "path".

    Raises:
        ValueError: If the file cannot be read.
    """
    if not path.is_file():
        raise ValueError(f"{str(path)!r} is no regular file; give a list of images.")
    suffix = path.suffix.lower()
    try:
        _check_encoding(path)
        if suffix in (".csv", ".tsv"):
            return _read_csv(path, "\t" if suffix == ".tsv" else ",")
        if suffix == ".jsonl":
            return _read_json(path)
        content = path.read_bytes()
    except (pa.ArrowException, UnicodeError, OSError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as a table: {error}; repair it.") from error
    # str.splitlines would also split at U+2028 and U+0085, which names can have
    lines = content.removeprefix(codecs.BOM_UTF8).replace(b"\r", b"\n").split(b"\n")
    paths = [line.strip() for line in lines]
    return pa.table({"path": pa.array([path for path in paths if path], pa.binary())})


def _check_encoding(path: Path) -> None:
    with open(path, "rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise ValueError(f"{str(path)!r} must be UTF-8, but is UTF-16; save it as UTF-8.")


def _read_csv(path: Path, delimiter: str) -> pa.Table:
    parse = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    with open(path, "rb") as file, pa.csv.open_csv(file, parse_options=parse) as reader:
        names = reader.schema.names
    convert = pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.binary()))
    with open(path, "rb") as file:
        return pa.csv.read_csv(file, parse_options=parse, convert_options=convert)


def _read_json(path: Path) -> pa.Table:
    """Read JSON lines; texts that look like dates stay texts."""
    _check_depth(path)
    with open(path, "rb") as file:
        table = pa.json.read_json(file)
    dates = [column.name for column in table.schema if pa.types.is_timestamp(column.type)]
    if not dates:
        return table
    schema = pa.schema([(name, pa.string()) for name in dates])
    with open(path, "rb") as file:
        return pa.json.read_json(file, parse_options=pa.json.ParseOptions(explicit_schema=schema))


def _check_depth(path: Path) -> None:
    """Check that no value is nested so deeply that pyarrow would overflow the stack."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.count(b"[") + line.count(b"{") < DEEPEST_JSON:
                continue
            try:
                json.loads(line)
            except RecursionError:
                raise ValueError(
                    f"line {number} of {str(path)!r} is nested too deeply; repair it."
                ) from None
            except ValueError:
                continue  # pyarrow says what is wrong


def column_of(table: pa.Table, name: str, where: str) -> list[Any]:
    """Return the values of a column; bytes are texts, in which other bytes than UTF-8 are kept.

    Args:
        table: Table from `read_list`.
        name: Name of the column.
        where: Name of the table in errors.

    Raises:
        ValueError: If there are several columns of this name, or texts that are not UTF-8.
    """
    if (count := table.column_names.count(name)) > 1:
        raise ValueError(f"{where} has {count} columns {name!r}; rename them.")
    try:
        values = table[name].to_pylist()
    except (UnicodeError, ValueError) as error:
        raise ValueError(f"column {name!r} of {where} cannot be read: {error}.") from error
    return [
        value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
        for value in values
    ]


def path_column(table: pa.Table, name: str | None, where: str) -> list[str]:
    """Return the paths of a table's images.

    Args:
        table: Table from `read_list`.
        name: Name of the column; None to find it.
        where: Name of the table in errors.

    Raises:
        ValueError: If there is no such column, or a row has no path.
    """
    name = name or _usual_column(table, PATH_COLUMNS)
    if name is None or name not in table.column_names:
        raise ValueError(
            f"{where} has no column {repr(name) if name else 'of paths'}; its columns are "
            f"{_names_of(table)}; choose the one with the paths with --image-column."
            f"{layout_hint(table)}"
        )
    values = column_of(table, name, where)
    if None in values:
        raise ValueError(f"row {values.index(None) + 1} of {where} has no path in column {name!r}.")
    return [str(value) for value in values]


def layout_hint(table: pa.Table) -> str:
    """Return a sentence if a table seems to have another separator or no header; "" otherwise.

    Args:
        table: Table from `read_list`.
    """
    names = table.column_names
    for separator, word in ((";", "semicolons"), ("\t", "tabs")):
        if len(names) == 1 and separator in names[0]:
            return f" Its cells seem to be separated by {word}: save it with commas."
    if any(extension_of(name) in image_extensions() for name in names):
        return " The first line seems to be a row: add a line of column names before it."
    return ""


def _names_of(table: pa.Table) -> str:
    return ", ".join(table.column_names)


def _usual_column(table: pa.Table, usual: Sequence[str]) -> str | None:
    """Return the first column with a usual name, in any case."""
    by_lower = {column.lower(): column for column in reversed(table.column_names)}
    return next((by_lower[name] for name in usual if name in by_lower), None)


def read_label_column(
    table: pa.Table, name: str | None, where: str
) -> tuple[str | None, list[Any]]:
    """Return the name of the label column of a table, and its values; None if there is none.

    Args:
        table: Table from `read_list`.
        name: Name of the column; None to find it.
        where: Name of the table in errors.

    Raises:
        ValueError: If there is no column with this name.
    """
    if name is not None and name not in table.column_names:
        raise ValueError(f"{where} has no column {name!r}; choose one of {_names_of(table)}.")
    name = name or _usual_column(table, LABEL_COLUMNS)
    if name is None:
        return None, []
    values = column_of(table, name, where)
    if not pa.types.is_binary(table.schema.field(name).type):
        return name, values
    return name, labels_of_texts([None if value is None else printable(value) for value in values])


def notes_on_list(table: pa.Table, label_column: str | None) -> list[str]:
    """Return sentences about columns that look like labels and were not taken.

    Args:
        table: Table from `read_list`.
        label_column: Label column that was taken; None without one.
    """
    if label_column is not None:
        return []
    alike = [name for name in table.column_names if LABEL_WORDS.search(name)]
    others = {name if name == name.strip() else repr(name): True for name in alike}
    return [note_on_labels(None, others)] if others else []


def check_repeated_label(path: str, first: Any, second: Any, where: str, column: str) -> None:
    """Check that a file that is named twice has one label.

    Args:
        path: Path of the image.
        first: Its label at the first place.
        second: Its label at the second place.
        where: Name of the table in errors.
        column: Name of the label column.

    Raises:
        ValueError: If the labels differ.
    """
    if first != second:
        raise ValueError(
            f"{where} names {path!r} twice, with {first!r} and {second!r} in column {column!r}; "
            "remove one of the rows."
        )


__all__ = [
    "check_repeated_label",
    "column_of",
    "features_of",
    "notes_on_list",
    "open_parquet",
    "path_column",
    "read_label_column",
    "read_list",
    "layout_hint",
]
