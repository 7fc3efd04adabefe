"""Which columns of a table hold the images, their labels and their ids."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

IMAGE_COLUMNS = ("image", "img", "images", "bytes", "jpg", "png")
LABEL_COLUMNS = ("label", "labels", "cls")  # cls is WebDataset's
JSON_COLUMNS = ("json", "jsn")  # WebDataset's, which may hold a label beside other things
ID_COLUMNS = ("id", "path", "file_name", "__key__")  # __key__ is WebDataset's


@dataclass(frozen=True)
class Columns:
    """Names of columns; None for one that there is not.

    Args:
        image: column of the images.
        label: column of the labels.
        id: column of what names an image.
        label_field: where the label column is a struct, which of its fields is the label.
    """

    image: str
    label: str | None
    id: str | None
    label_field: str | None = field(default=None, repr=False)  # the text is part of fingerprints

    def label_of(self, row: Mapping[str, Any]) -> Any:
        """Return the label of a row; None if it has none."""
        value = None if self.label is None else row[self.label]
        return value if value is None or self.label_field is None else value[self.label_field]


def choose_columns(
    features: Mapping[str, Any], image_column: str | None, label_column: str | None
) -> Columns:
    """Find columns by their types and names.

    Images are of type Image, structs of bytes and path, or binary under a usual name. Labels are
    of type ClassLabel, or integers or text under a usual name, also as a field of a JSON column.

    Args:
        features: types of the columns, by name, as `datasets` has them.
        image_column: name, if it is known.
        label_column: name, if it is known; COLUMN.FIELD for a field of a struct.

    Raises:
        ValueError: if there is no image column, or a named column is not there or holds no labels.
    """
    label_column, label_field = _split_name(features, label_column)
    for name in (image_column, label_column):
        if name is not None and name not in features:
            raise ValueError(f"there is no column {name!r}; there are {_listed(features)}.")
    if image_column is None:
        images = [name for name, feature in features.items() if _holds_images(name, feature)]
        image_column = _preferred(images, IMAGE_COLUMNS)
    if image_column is None:
        raise ValueError(
            f"no image column among {_listed(features)}; name it with image_column if there is one."
        )
    if label_column is None:
        classes = [name for name, feature in features.items() if hasattr(feature, "names")]
        plain = [name for name in LABEL_COLUMNS if name in features and _is_plain(features[name])]
        label_column = _preferred(classes, LABEL_COLUMNS) or _preferred(plain, LABEL_COLUMNS)
        if label_column is None:
            label_column, label_field = _label_in_json(features)
    elif label_field is None and not (
        hasattr(features[label_column], "names") or _is_plain(features[label_column])
    ):
        raise ValueError(
            f"column {label_column!r} holds {features[label_column]}, no labels; labels are "
            "classes, integers or strings."
        )
    others = [name for name in features if name not in (image_column, label_column)]
    id_column = next((n for n in ID_COLUMNS if n in others and _is_plain(features[n])), None)
    return Columns(image_column, label_column, id_column, label_field)


def _split_name(features: Mapping[str, Any], name: str | None) -> tuple[str | None, str | None]:
    """Split COLUMN.FIELD, if the column is a struct that has this field."""
    column, _, label_field = (name or "").partition(".")
    if name in features or not _is_plain(_fields_of(features.get(column)).get(label_field)):
        return name, None
    return column, label_field


def _label_in_json(features: Mapping[str, Any]) -> tuple[str | None, str | None]:
    for column in JSON_COLUMNS:
        for name in LABEL_COLUMNS:
            if _is_plain(_fields_of(features.get(column)).get(name)):
                return column, name
    return None, None


def _fields_of(feature: Any) -> Mapping[str, Any]:
    return feature if isinstance(feature, Mapping) else {}


def _preferred(candidates: list[str], names: tuple[str, ...]) -> str | None:
    return next((n for n in names if n in candidates), candidates[0] if candidates else None)


def _listed(features: Mapping[str, Any]) -> str:
    return "columns " + ", ".join(features)


def _holds_images(name: str, feature: Any) -> bool:
    import datasets

    if isinstance(feature, datasets.Image):
        return True
    if isinstance(feature, Mapping):
        return set(feature) == {"bytes", "path"}
    return getattr(feature, "dtype", None) == "binary" and name in IMAGE_COLUMNS


def _is_plain(feature: Any) -> bool:
    dtype = getattr(feature, "dtype", None) or ""
    return dtype in ("string", "large_string") or re.fullmatch(r"u?int\d+", dtype) is not None


def keep_encoded(dataset: Any, columns: Columns) -> Any:
    """Leave out the other columns, and hand out images as bytes or paths."""
    import datasets

    names = [name for name in (columns.image, columns.label, columns.id) if name is not None]
    dataset = dataset.select_columns(names).with_format(None)
    return dataset.cast_column(columns.image, datasets.Image(decode=False))


__all__ = ["Columns", "choose_columns", "keep_encoded"]
