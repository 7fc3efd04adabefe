"""Derive labels from folder names and from the values of a column, by a rule that is stated."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import shorten
from .image_source import NO_LABEL


@dataclass(frozen=True)
class Labels:
    """Labels of the images of a source.

    Args:
        values: Class of each image, (N,) int64, -1 without one; None if no image has a label.
        names: Names of the classes; None if no image has a label.
        rule: Rule that the labels were derived by, for example "folder names, 10 classes".
        notes: Sentences about images without a label.
    """

    values: np.ndarray | None = None
    names: list[str] | None = None
    rule: str | None = None
    notes: tuple[str, ...] = ()


def first_folders(paths: Sequence[str]) -> list[str]:
    """Return the first-level folder of each of the sorted paths; "" for one without a folder."""
    folders: list[str] = []
    while len(folders) < len(paths):
        first, slash, _ = paths[len(folders)].partition("/")
        if slash:  # "0" follows "/", so it follows all paths in this folder
            end = bisect.bisect_left(paths, f"{first}0", len(folders))
            folders += [first] * (end - len(folders))
        else:
            folders.append("")
    return folders


def labels_of_folders(
    folders: Sequence[str], name_of: Mapping[str, str], paths: Sequence[str]
) -> Labels:
    """Label images by their first-level folders.

    There are labels if at least two first-level folders contain images, and fewer images lie beside
    these folders than in them.

    Args:
        folders: First-level folder of each image; "" without one.
        name_of: Printable names of the folders.
        paths: Paths of the images, for the notes.
    """
    known = sorted(set(folders) - {""}, key=lambda folder: name_of[folder])
    num_beside = folders.count("")
    if len(known) < 2:
        return Labels()
    if num_beside * 2 >= len(folders):
        note = (
            f"the folders {shorten(map(name_of.__getitem__, known), 3)} are no classes, as "
            f"{num_beside} of {len(folders)} images lie beside them"
        )
        return Labels(notes=(note,))
    index = {folder: label for label, folder in enumerate(known)} | {"": NO_LABEL}
    values = np.fromiter(map(index.__getitem__, folders), np.int64, len(folders))
    names = [name_of[folder] for folder in known]
    notes = []
    if num_beside:
        first = paths[folders.index("")]
        if num_beside == 1:
            notes.append(f"{first} lies beside the class folders and has no label")
        else:
            notes.append(
                f"{num_beside} images lie beside the class folders and have no label, for example "
                f"{first}"
            )
    return Labels(values, names, f"folder names, {_classes(names)}", tuple(notes))


def labels_of_values(values: Iterable[Any], column: str, names: list[str] | None = None) -> Labels:
    """Number the values of a label column.

    Integers, whole floats, booleans and texts are labels. None, NaN, -1 and empty texts mean that
    an image has no label.

    Args:
        values: Value of each image.
        column: Name of the column.
        names: Class names of a ClassLabel column, whose values are indices.

    Raises:
        ValueError: If a value cannot be a label.
    """
    plain = [_plain(value, column) for value in values]
    if names is not None:
        numbers = np.array([NO_LABEL if v is None else v for v in plain], dtype=np.int64)
    else:
        known = sorted({value for value in plain if value is not None}, key=_sort_key)
        index = {value: label for label, value in enumerate(known)}
        numbers = np.array([NO_LABEL if v is None else index[v] for v in plain], dtype=np.int64)
        names = [_name(value) for value in known]
    num_missing = int((numbers == NO_LABEL).sum())
    if num_missing == len(numbers):
        notes = (f"no row has a label in column {column!r}",) if len(numbers) else ()
        return Labels(notes=notes)
    note = f"{num_missing} of {len(numbers)} images have no label in column {column!r}"
    rule = f"column {column!r}, {_classes(names)}"
    return Labels(numbers, names, rule, (note,) if num_missing else ())


def _classes(names: Sequence[str]) -> str:
    return f"{len(names)} class{'' if len(names) == 1 else 'es'}"


def _plain(value: Any, column: str) -> int | bool | str | None:
    """Return a label as bool, int or text; None if there is no label."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if value is None or value in ("", "-1", NO_LABEL) and not isinstance(value, bool):
        return None
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if not value.is_integer():
            raise ValueError(
                f"labels must be classes, but column {column!r} contains {value}; choose another "
                "--label-column, or round the values."
            )
        return int(value)
    if isinstance(value, (bool, int, str)):
        return value
    raise ValueError(
        f"labels must be classes, integers or strings, but column {column!r} contains "
        f"{value!r:.50}; choose another --label-column."
    )


def _sort_key(value: int | bool | str) -> tuple[bool, int | str]:
    return (True, value) if isinstance(value, str) else (False, int(value))


def _name(value: int | bool | str) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


__all__ = ["Labels", "labels_of_folders", "labels_of_values"]
