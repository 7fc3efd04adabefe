"""Labels in metadata.csv and metadata.jsonl files, in the layout of ImageFolder in `datasets`."""

from __future__ import annotations

import functools
import os
import posixpath
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ...errors import printable
from ..inventory import LeftOut
from .tables import check_repeated_label, column_of, layout_hint, read_label_column, read_list


def values_of_metadata(
    folder: Path,
    tables: Sequence[str],
    paths: Sequence[str],
    label_column: str | None,
    *,
    listed: Collection[str] = (),
) -> tuple[dict[str, Any], str | None, list[LeftOut], list[str]]:
    """Return the label value of each image that a metadata file names.

    Args:
        folder: Folder of the images.
        tables: Metadata files, relative to the folder.
        paths: Paths of the images, relative to the folder.
        label_column: Column of the labels; None to find it by its name.
        listed: Paths of the images that are left out already.

    Returns:
        Values by path, the name of the column or None, rows whose file does not exist, and notes.

    Raises:
        ValueError: If a metadata file cannot be read or has no column file_name, if the label
            column does not exist, or if an image has two labels.
    """
    images = _Images(folder, paths, listed)
    values: dict[str, Any] = {}
    left_out: dict[str, LeftOut] = {}
    notes: list[str] = []
    found: str | None = None
    for name in sorted(tables):
        where = str(folder / name)
        files, column, labels = _read(folder / name, label_column)
        if column is None:
            notes.append(f"{name} has no label column among {labels or 'its columns'}")
            labels = [None] * len(files)
        found = found or column
        for row, (file, value) in enumerate(zip(files, labels, strict=True), start=1):
            path, reason = images.find(posixpath.dirname(name), file)
            if reason is not None:
                path = f"row {row} of {name}" if file is None else path
                left_out.setdefault(path, LeftOut(printable(path), f"named in {name}, {reason}"))
            elif path in values and column is not None:
                shown = path if path == file else f"{file} (that is, {path})"
                check_repeated_label(shown, values[path], value, where, column)
            else:
                values[path] = value
    left_out = {path: entry for path, entry in left_out.items() if path not in listed}
    if unnamed := set(paths) - values.keys():
        example = printable(min(unnamed))
        notes.append(f"{len(unnamed)} images are not in {min(tables)}, for example {example}")
    return values, found, list(left_out.values()), notes


def _read(path: Path, label_column: str | None) -> tuple[list[Any], str | None, Any]:
    """Return the files, the label column and its values; the other columns if there is none."""
    table = read_list(path)
    if "file_name" not in table.column_names:
        raise ValueError(
            f"{path} must have a column file_name, but its columns are "
            f"{', '.join(table.column_names)}; rename the column with the paths."
            f"{layout_hint(table)}"
        )
    files = column_of(table, "file_name", str(path))
    column, labels = read_label_column(table, label_column, str(path))
    if column is None:
        return files, None, ", ".join(name for name in table.column_names if name != "file_name")
    return files, column, labels


class _Images:
    """Images of a folder, found by the names that a table gives them."""

    def __init__(self, folder: Path, paths: Sequence[str], listed: Collection[str]):
        self._folder = os.path.abspath(folder)
        self._known = set(paths)
        self._listed = set(listed)

    def find(self, base: str, file: Any) -> tuple[str, str | None]:
        """Return the path of an image, and None or why it is none of the images."""
        if file is None:
            return "", "but without a file_name"
        path = posixpath.normpath(posixpath.join(base, str(file)))
        if os.path.isabs(path):
            path = os.path.relpath(path, self._folder)
        if path in self._known:
            return path, None
        place = os.path.join(self._folder, path)
        if path in self._listed or not os.path.exists(place):
            return path, "but there is no such image file"
        real = os.path.realpath(place)
        if real in self._by_place:
            return self._by_place[real], None
        return path, "but it is no image of this folder"

    @functools.cached_property
    def _by_place(self) -> dict[str, str]:
        """Paths of the images by their real paths, for links."""
        return {os.path.realpath(os.path.join(self._folder, path)): path for path in self._known}


__all__ = ["values_of_metadata"]
