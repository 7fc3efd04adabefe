"""Derive labels from folder names and from the values of a column, by a rule that is stated."""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import printable, shorten
from .image_source import NO_LABEL

MAX_DIGITS = 1000  # of an integer; longer texts of digits are texts
LARGEST_FLOAT = 2**53  # from here on, different integers are the same float
FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
# Texts for a missing value in a column of numbers, as pandas and pyarrow read them.
MISSING_TEXTS = frozenset(("", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "null", "None"))


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
    folders: Sequence[str],
    name_of: Mapping[str, str],
    paths: Sequence[str],
    noun: str = "images",
) -> Labels:
    """Label images by their first-level folders.

    There are labels if at least two first-level folders contain images, and fewer images lie beside
    these folders than in them.

    Args:
        folders: First-level folder of each image; "" without one.
        name_of: Printable names of the folders.
        paths: Paths of the images, for the notes.
        noun: Plural noun for the notes.
    """
    known = sorted(set(folders) - {""}, key=lambda folder: name_of[folder])
    num_beside = folders.count("")
    if len(known) < 2:
        return Labels(notes=_note_on_one_folder(known, name_of, num_beside, paths))
    if num_beside * 2 >= len(folders):
        note = (
            f"the folders {shorten(map(name_of.__getitem__, known), 3)} are no classes, as "
            f"{num_beside} of {len(folders)} {noun} lie beside them"
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
                f"{num_beside} {noun} lie beside the class folders and have no label, for example "
                f"{first}"
            )
    return Labels(values, names, f"folder names, {_classes(names)}", tuple(notes))


def _note_on_one_folder(
    known: Sequence[str], name_of: Mapping[str, str], num_beside: int, paths: Sequence[str]
) -> tuple[str, ...]:
    """Return a sentence if all images lie in one folder, which has folders of its own."""
    if not known or num_beside:
        return ()
    below = sorted({path.split("/", 2)[1] for path in paths if path.count("/") > 1})
    if len(below) < 2:
        return ()
    name = name_of[known[0]]
    return (
        f"there are no labels, as all images lie in the folder {name}; give that folder as the "
        f"data if its folders ({shorten(map(printable, below), 3)}) are classes or splits",
    )


def label_of_text(text: str) -> int | str | None:
    """Return the label that a text stands for.

    A text is an integer only if the integer is written like it: "7" is 7, but "007", "+7" and
    "1e5" stay texts, so that two classes never become one. An empty text is no label.

    Args:
        text: Text, for example a cell of a CSV file.
    """
    if not text:
        return None
    is_integer = len(text) < MAX_DIGITS and text.removeprefix("-").isdecimal()
    return int(text) if is_integer and str(int(text)) == text else text


def labels_of_texts(values: Sequence[Any]) -> list[Any]:
    """Return the labels of a column of texts; values of other types are kept as they are.

    Texts become integers, whole floats or booleans if all of them are written like these, with
    texts such as NA for a missing value. Otherwise all of them stay texts, so different texts are
    always different classes. Fractions become floats, which are no labels.

    Args:
        values: Value of each image, for example the cells of a CSV file.
    """
    texts = {value for value in values if isinstance(value, str)}
    present = texts - MISSING_TEXTS
    if all(isinstance(label_of_text(text), int) for text in present):
        known: dict[str, Any] = {text: int(text) for text in present}
    elif present <= {"true", "false"} or present <= {"True", "False"}:
        known = {text: text.lower() == "true" for text in present}
    elif all(FLOAT.fullmatch(text) for text in present) and _are_floats(present):
        known = {text: float(text) for text in present}
    else:
        known = {text: text for text in texts}
    return [known.get(value) if isinstance(value, str) else value for value in values]


def _are_floats(texts: Set[str]) -> bool:
    """Return whether numbers are fractions, or all of them whole floats such as 1.0."""
    has_fractions = any(not float(text).is_integer() for text in texts)
    return has_fractions or all(str(float(text)) == text for text in texts)


def labels_of_values(
    values: Iterable[Any],
    column: str,
    names: list[str] | None = None,
    *,
    is_required: bool = True,
) -> Labels:
    """Label images by the values of a column.

    Integers, whole floats, booleans and texts are labels. None, NaN, -1 and empty texts mean that
    an image has no label.

    Args:
        values: Value of each image.
        column: Name of the column.
        names: Class names of a ClassLabel column, whose values are indices.
        is_required: Whether a value that cannot be a label is an error, as the user asked for the
            column; otherwise there are no labels, and a note says why.

    Raises:
        ValueError: If a value cannot be a label, or is no index of a class name.
    """
    try:
        plain = [_plain(value, column) for value in values]
    except ValueError as error:
        if is_required:
            raise
        return Labels(notes=(f"there are no labels: {error}",))
    if names is not None:
        for value in {value for value in plain if value is not None}:
            check_class(value, column, names)
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


def check_class(value: Any, column: str, names: Sequence[str]) -> None:
    """Check that a value is an index of the class names of its column.

    Args:
        value: Label of an image.
        column: Name of the column.
        names: Names of the classes.

    Raises:
        ValueError: If it is none.
    """
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise ValueError(
            f"labels must be indices of the {_classes(names)} of column {column!r}, from 0 to "
            f"{len(names) - 1}, but it contains {value!r}; repair the column, or use -1 for an "
            "image without a label."
        )


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
        if abs(value) >= LARGEST_FLOAT:
            raise ValueError(
                f"labels must be exact, but column {column!r} contains {value:.0f} as a float, "
                "which is rounded; write the values as text, or choose another --label-column."
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


__all__ = [
    "Labels",
    "check_class",
    "label_of_text",
    "labels_of_folders",
    "labels_of_texts",
    "labels_of_values",
]
