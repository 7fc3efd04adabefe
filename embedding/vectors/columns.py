"""Columns that are added to a folder of vectors later, for example clusters and positions on a map.

They are in Feather files beside the parts, in the order of the rows: `cluster.feather`. Tools that
read the folder as a Parquet dataset do not see them; `read_vectors` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather

from ...atomic_output import atomic_output
from ...data.remote.file_system import StorageError
from .manifest import Manifest
from .storage import is_remote, opened

COLUMNS_PATTERN = "*.feather"
OWN_KEYS = b"selfvit."  # start of the keys in the metadata of files that selfvit wrote
VECTORS = b"selfvit.vectors"  # key of the fingerprint of the vectors, in the metadata of a file


def write_columns(folder: Path, fingerprint: str, name: str, columns: Mapping[str, Any]) -> Path:
    """Write columns beside the vectors, in place of earlier ones of the same name.

    Args:
        folder: Folder of vectors on this machine.
        fingerprint: Fingerprint of the vectors, see `fingerprint_of`.
        name: Name of the file, without extension.
        columns: Values of all rows, in their order, by name.

    Returns:
        Path of the file.

    Raises:
        OSError: If it cannot be written.
        ValueError: If the folder is in object storage.
    """
    check_takes_columns(folder)
    table = pa.table({key: pa.array(values) for key, values in columns.items()})
    table = table.replace_schema_metadata({VECTORS: fingerprint.encode()})
    path = folder / f"{name}.feather"
    with atomic_output(path) as unfinished:
        pyarrow.feather.write_feather(table, str(unfinished), compression="uncompressed")
    return path


def check_takes_columns(folder: Path) -> None:
    """Check that columns can be written beside the vectors.

    Args:
        folder: Folder of vectors.

    Raises:
        ValueError: If it is in object storage.
    """
    if is_remote(folder):
        raise ValueError(
            f"columns are written beside the vectors, but {str(folder)!r} is in object storage; "
            "copy the folder to this machine, or write a table only: --output FILE.csv, or "
            "write=False in Python."
        )


def read_columns(folder: Path, fingerprint: str) -> dict[str, pa.ChunkedArray]:
    """Return the added columns of a folder, by name; those of other vectors are left out.

    Args:
        folder: Folder of vectors.
        fingerprint: Fingerprint of the vectors, see `fingerprint_of`.

    Raises:
        ValueError: If a file is damaged.
    """
    found: dict[str, pa.ChunkedArray] = {}
    for columns in read_column_files(folder, fingerprint).values():
        found.update(columns)
    return found


def read_column_files(folder: Path, fingerprint: str) -> dict[str, dict[str, pa.ChunkedArray]]:
    """Return the added columns of a folder, by the name of their file and their own name.

    Args:
        folder: Folder of vectors, as in `read_columns`.
        fingerprint: Fingerprint of the vectors.

    Raises:
        ValueError: If a file is damaged.
    """
    found: dict[str, dict[str, pa.ChunkedArray]] = {}
    if is_remote(folder):
        return found
    for path in sorted(folder.glob(COLUMNS_PATTERN)):
        try:
            table = pyarrow.feather.read_table(str(path))
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{str(path)!r} is damaged: {error}; delete it.") from error
        if (table.schema.metadata or {}).get(VECTORS) == fingerprint.encode():
            found[path.stem] = dict(zip(table.column_names, table.columns, strict=True))
    return found


def is_own_feather(path: Path) -> bool:
    """Return whether selfvit wrote a Feather file: added columns, or the positions of a map.

    Args:
        path: File of a folder of vectors.

    Raises:
        StorageError: If object storage cannot be read.
    """
    try:
        with opened(path) as file, pa.ipc.open_file(file) as reader:
            keys = reader.schema.metadata or {}
    except StorageError:
        raise
    except (OSError, pa.ArrowException):
        return False
    return any(key.startswith(OWN_KEYS) for key in keys)


def fingerprint_of(manifest: Manifest) -> str:
    """Return a hash that changes with any row of the vectors; parts without rows do not count.

    Args:
        manifest: Manifest of the vectors.
    """
    from ...data.image_source import short_hash

    return short_hash(part.sha256.encode() for part in manifest.in_order() if part.num_rows)


__all__ = [
    "COLUMNS_PATTERN",
    "check_takes_columns",
    "fingerprint_of",
    "is_own_feather",
    "read_column_files",
    "read_columns",
    "write_columns",
]
