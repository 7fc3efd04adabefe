"""Labels in metadata.csv and metadata.jsonl files, in the layout of ImageFolder in `datasets`."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..inventory import LeftOut
from .tables import read_label_column, read_list


def values_of_metadata(
    folder: Path, tables: Sequence[str], paths: Sequence[str], label_column: str | None
) -> tuple[dict[str, Any], str | None, list[LeftOut], list[str]]:
    """Return the label value of each image that a metadata file names.

    Args:
        folder: Folder of the images.
        tables: Metadata files, relative to the folder.
        paths: Paths of the images, relative to the folder.
        label_column: Column of the labels; None to find it by its name.

    Returns:
        Values by path, the name of the column or None, rows whose file does not exist, and notes.

    Raises:
        ValueError: If a metadata file cannot be read or has no column file_name, or the label
            column does not exist.
    """
    known = set(paths)
    values: dict[str, Any] = {}
    named: set[str] = set()
    left_out: list[LeftOut] = []
    notes: list[str] = []
    found: str | None = None
    for name in tables:
        table = read_list(folder / name)
        if "file_name" not in table.column_names:
            raise ValueError(
                f"{folder / name} must have a column file_name, but its columns are "
                f"{', '.join(table.column_names)}; rename the column with the paths."
            )
        column, labels = read_label_column(table, label_column, str(folder / name))
        if column is None:
            others = [other for other in table.column_names if other != "file_name"]
            notes.append(f"{name} has no label column among {', '.join(others) or 'its columns'}")
        found = found or column
        labels = labels or [None] * len(table)
        for file, value in zip(table["file_name"].to_pylist(), labels, strict=True):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(name), str(file)))
            if path not in known:
                left_out.append(LeftOut(path, f"named in {name}, but there is no such image file"))
                continue
            named.add(path)
            values[path] = value
    if unnamed := known - named:
        notes.append(f"{len(unnamed)} images are not in {tables[0]}, for example {min(unnamed)}")
    return values, found, left_out, notes


__all__ = ["values_of_metadata"]
