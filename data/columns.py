"""Find the columns of a table that contain the images, their labels and their ids."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

IMAGE_COLUMNS = ("image", "img", "images", "bytes", "jpg", "png")
# Columns of text with paths of images, if there is no column that contains images.
PATH_COLUMNS = ("file_name", "filename", "image_path", "path", "file", "filepath", "image", "img")
# Names in lower case; they match in any case. cls: WebDataset
LABEL_COLUMNS = (
    "label",
    "labels",
    "cls",
    "class",
    "target",
    "category",
    "class_name",
    "class_label",
)
LABEL_WORDS = re.compile(r"label|class|target|categor|species|^tags?$|^y$", re.IGNORECASE)
JSON_COLUMNS = ("json", "jsn")  # WebDataset; may contain a label among other fields
ID_COLUMNS = ("id", "path", "file_name", "__key__")  # __key__: WebDataset


@dataclass(frozen=True)
class Columns:
    """Names of the columns; None for a column that does not exist.

    Args:
        image: Column of the images.
        label: Column of the labels.
        id: Column of the names that identify the images.
        label_field: Field of the label column that contains the label, if that column is a struct.
    """

    image: str
    label: str | None
    id: str | None
    # Not in the repr, because `str(columns)` is part of fingerprints.
    label_field: str | None = field(default=None, repr=False)

    @property
    def label_name(self) -> str:
        """Name of the labels in messages: the column, with its field if it is a struct."""
        return f"{self.label}.{self.label_field}" if self.label_field else str(self.label)

    def label_of(self, row: Mapping[str, Any]) -> Any:
        """Return the label of a row, or None if the row has no label."""
        value = None if self.label is None else row[self.label]
        return value if value is None or self.label_field is None else value[self.label_field]


@dataclass(frozen=True)
class OtherType:
    """Type of a column that `datasets` cannot store, which holds neither images nor labels.

    Args:
        name: Name of the type.
    """

    name: str

    def __str__(self) -> str:
        return self.name


def choose_columns(
    features: Mapping[str, Any], image_column: str | None, label_column: str | None
) -> Columns:
    """Find the columns by their types and names.

    An image column has the type Image, is a struct with bytes, or is a binary column with a common
    name; without any, a column of text with a common name contains the paths of the images. A label
    column has the type ClassLabel, or contains integers, floats, booleans or strings and has a
    common name; it can also be a field of a JSON column.

    Args:
        features: Types of the columns in `datasets`, by name.
        image_column: Name of the image column; None to find it.
        label_column: Name of the label column, or COLUMN.FIELD for a field of a struct; None to
            find it.

    Raises:
        ValueError: If there is no image column, or if a given column does not exist or does not
            contain labels.
    """
    label_column, label_field = _split_name(features, label_column)
    for name in (image_column, label_column):
        if name is not None and name not in features:
            raise ValueError(
                f"there is no column {name!r}; choose one of the columns {', '.join(features)}."
            )
    if image_column is not None and not _can_hold_images(features[image_column]):
        raise ValueError(
            f"images must be bytes or paths, but column {image_column!r} contains "
            f"{_type_name(features[image_column])}; choose another --image-column."
        )
    image_column = image_column or _find_images(features)
    if image_column is None:
        raise ValueError(
            f"no column contains images; the columns are {', '.join(features)}. "
            f"{_why_no_images(features)}"
        )
    others = [name for name in features if name != image_column]
    if label_column is None:
        classes = [name for name in others if hasattr(features[name], "names")]
        usual = [name for name in others if name.lower() in LABEL_COLUMNS]
        plain = [name for name in usual if _holds_labels(features[name])]
        label_column = _preferred(classes, LABEL_COLUMNS) or _preferred(plain, LABEL_COLUMNS)
        if label_column is None:
            label_column, label_field = _label_in_json(features)
    elif label_field is None and not _holds_labels(features[label_column]):
        raise ValueError(
            f"labels must be classes, integers or strings, but column {label_column!r} contains "
            f"{_type_name(features[label_column])}; choose another --label-column."
        )
    others = [name for name in others if name != label_column]
    id_column = next((n for n in ID_COLUMNS if n in others and _is_plain(features[n])), None)
    return Columns(image_column, label_column, id_column, label_field)


def notes_on_columns(
    features: Mapping[str, Any], columns: Columns, *, image_given: bool, label_given: bool
) -> list[str]:
    """Return sentences about columns that look like images or labels and were not taken.

    Args:
        features: Types of the columns in `datasets`, by name.
        columns: Columns that were chosen.
        image_given: Whether the image column was given by the user.
        label_given: Whether the label column was given by the user.
    """
    notes = []
    images = [
        name
        for name, feature in features.items()
        if name != columns.image and _holds_images(name, feature)
    ]
    if images and not image_given and _holds_images(columns.image, features[columns.image]):
        notes.append(
            f"the images are column {columns.image!r}; not taken: {', '.join(images)}; choose one "
            "with --image-column"
        )
    alike = {
        name: _holds_labels(feature)
        for name, feature in features.items()
        if name not in (columns.image, columns.label, columns.id)
        and (LABEL_WORDS.search(name) or hasattr(feature, "names"))
    }
    if alike and not label_given:
        notes.append(note_on_labels(columns.label, alike))
    return notes


def note_on_labels(taken: str | None, alike: Mapping[str, bool]) -> str:
    """Return a sentence about columns that look like labels and were not taken.

    Args:
        taken: Label column that was taken, or None.
        alike: Whether each of the other columns can hold labels, by name.
    """
    rule = f"the labels are column {taken!r}" if taken else "there are no labels"
    names = ", ".join(
        name if is_possible else f"{name} (a type that holds no labels)"
        for name, is_possible in alike.items()
    )
    return f"{rule}; not taken: {names}; choose one with --label-column"


def holds_images(features: Mapping[str, Any]) -> bool:
    """Return whether a table has a column that contains images."""
    return any(_holds_images(name, feature) for name, feature in features.items())


def _find_images(features: Mapping[str, Any]) -> str | None:
    images = [name for name, feature in features.items() if _holds_images(name, feature)]
    if len(images) > 1 and not any(name.lower() in IMAGE_COLUMNS for name in images):
        raise ValueError(
            f"several columns contain images: {', '.join(images)}; choose one of them with "
            "--image-column (image_column=...)."
        )
    if images:
        return _preferred(images, IMAGE_COLUMNS)
    paths = [name for name, feature in features.items() if _is_text(feature)]
    return next((name for usual in PATH_COLUMNS for name in paths if name.lower() == usual), None)


def _why_no_images(features: Mapping[str, Any]) -> str:
    """Return a sentence on a column of the usual name that holds numbers, or on the option."""
    usual = [name for name in features if name.lower() in IMAGE_COLUMNS]
    found = next((name for name in usual if _holds_numbers(features[name])), None)
    if found is None:
        return "If one of them does, choose it with --image-column (image_column=...)."
    return (
        f"Column {found!r} holds numbers, not image files: store each image as a file "
        "(PNG, TIFF of 16 bits) in bytes, or the pixels as .npy files."
    )


def _holds_numbers(feature: Any) -> bool:
    """Return whether a column is a list of numbers, of any depth, or an array."""
    while isinstance(feature, list):
        feature = feature[0]
    while hasattr(feature, "feature"):
        feature = feature.feature
    dtype = getattr(feature, "dtype", None) or ""
    is_list = getattr(feature, "shape", None) is not None
    return is_list or re.fullmatch(r"bool|u?int\d+|float\d+", dtype) is not None


def _split_name(features: Mapping[str, Any], name: str | None) -> tuple[str | None, str | None]:
    """Split COLUMN.FIELD if the column is a struct with this field."""
    column, _, label_field = (name or "").partition(".")
    if name in features or not _holds_labels(_fields_of(features.get(column)).get(label_field)):
        return name, None
    return column, label_field


def _label_in_json(features: Mapping[str, Any]) -> tuple[str | None, str | None]:
    for column in JSON_COLUMNS:
        for name in LABEL_COLUMNS:
            if _holds_labels(_fields_of(features.get(column)).get(name)):
                return column, name
    return None, None


def _fields_of(feature: Any) -> Mapping[str, Any]:
    return feature if isinstance(feature, Mapping) else {}


def _preferred(candidates: list[str], names: tuple[str, ...]) -> str | None:
    """Return the candidate whose name comes first in `names`, or else the first candidate."""
    ranks = {name: rank for rank, name in enumerate(names)}
    return min(candidates, key=lambda name: ranks.get(name.lower(), len(names)), default=None)


def _holds_images(name: str, feature: Any) -> bool:
    import datasets

    if isinstance(feature, datasets.Image):
        return True
    if isinstance(feature, Mapping):
        is_empty = getattr(feature.get("bytes"), "dtype", None) == "null"  # only paths
        return _is_binary(feature.get("bytes")) or (is_empty and _is_text(feature.get("path")))
    return _is_binary(feature) and name.lower() in IMAGE_COLUMNS


def _can_hold_images(feature: Any) -> bool:
    """Return whether a column that the user gives can contain images, or is empty."""
    import datasets

    if isinstance(feature, Mapping):
        return "bytes" in feature or "path" in feature
    is_empty = getattr(feature, "dtype", None) == "null"
    is_image = isinstance(feature, datasets.Image)
    return is_image or is_empty or _is_binary(feature) or _is_text(feature)


def _type_name(feature: Any) -> str:
    return str(getattr(feature, "dtype", None) or feature)


def _is_binary(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("binary", "large_binary", "binary_view")


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string", "string_view")


def _is_plain(feature: Any) -> bool:
    dtype = getattr(feature, "dtype", None) or ""
    return _is_text(feature) or re.fullmatch(r"u?int\d+", dtype) is not None


def _holds_labels(feature: Any) -> bool:
    dtype = getattr(feature, "dtype", None) or ""
    is_number = re.fullmatch(r"bool|float\d+", dtype) is not None
    return is_number or _is_plain(feature) or hasattr(feature, "names")


def keep_encoded(dataset: Any, columns: Columns) -> Any:
    """Select the given columns of a dataset, with images as bytes or paths instead of pixels."""
    import datasets

    names = [name for name in (columns.image, columns.label, columns.id) if name is not None]
    is_image = isinstance(dataset.features[columns.image], datasets.Image)
    dataset = dataset.select_columns(names).with_format(None)
    if not is_image:
        return dataset
    return dataset.cast_column(columns.image, datasets.Image(decode=False))


__all__ = [
    "Columns",
    "OtherType",
    "choose_columns",
    "holds_images",
    "keep_encoded",
    "note_on_labels",
    "notes_on_columns",
]
