"""Labels of the samples of tars: the text of a field, or a key of a JSON field."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ...errors import shorten
from ..columns import JSON_COLUMNS, LABEL_COLUMNS, LABEL_WORDS
from ..labels import Labels, first_folders, labels_of_folders, labels_of_texts, labels_of_values
from .tar_members import Member, read_member
from .tars import TarIndex

SAMPLED_JSON = 100  # JSON files without labels whose keys are examined for a note


class TarLabels:
    """Reader of the labels of the samples that are taken.

    Args:
        tars: Samples of the tars.
        description: Description of the tars, for errors.
    """

    def __init__(self, tars: Sequence[TarIndex], description: str):
        self.samples = [(tar.path, sample) for tar in tars for sample, _ in tar.taken]
        self.description = description
        self.notes: list[str] = []
        self.tried: set[str] = set()  # columns that have values
        self.column: str | None = None  # the one of the labels

    def read(self, label_column: str | None) -> Labels:
        """Return the labels.

        Args:
            label_column: Field that holds the labels, or FIELD.KEY for a key of a JSON field; None
                for the first usual one.

        Raises:
            ValueError: If there is no such field, its JSON is invalid, a value of a field that is
                asked for cannot be a label, or some labels are text and others are numbers.
        """
        if label_column is not None:
            return self._named(label_column)
        fields = {name for _, sample in self.samples for name in sample.fields}
        labels = Labels()
        for name in LABEL_COLUMNS:
            if name in fields and labels.values is None:
                labels = self._usable(self._texts(name), name)
        keys: set[str] = set()
        for name in JSON_COLUMNS:
            if name in fields and labels.values is None:
                labels = self._in_json(name, keys)
            elif name in fields:
                keys |= self._sampled_keys(name)
        self._note_others(fields, keys, labels)
        return Labels(labels.values, labels.names, labels.rule, (*self.notes, *labels.notes))

    def _in_json(self, name: str, keys: set[str]) -> Labels:
        """Return the labels of a JSON field, and add the names of keys that look like labels."""
        documents = []
        for document in self._documents(name):
            if isinstance(document, dict):
                document = {k: value for k, value in document.items() if _looks_like_label(k)}
                keys.update(f"{name}.{key}" for key in document)
            documents.append(document)
        plain = [None if isinstance(document, dict) else document for document in documents]
        labels = self._usable(plain, name)
        for key in LABEL_COLUMNS:
            if labels.values is None:
                labels = self._usable([_at(d, key) for d in documents], f"{name}.{key}")
        return labels

    def _sampled_keys(self, name: str) -> set[str]:
        """Return the names of keys that look like labels, of the first files with a JSON field."""
        keys: set[str] = set()
        try:
            for document in itertools.islice(self._documents(name), SAMPLED_JSON):
                for key in document if isinstance(document, dict) else ():
                    keys |= {f"{name}.{key}"} if _looks_like_label(key) else set()
        except ValueError:  # invalid JSON, which has no labels that are taken
            pass
        return keys

    def _named(self, label_column: str) -> Labels:
        name, key = self._split_name(label_column)
        if key is None and not _is_json(name):
            values = self._texts(name)
        else:
            values = [_at(document, key) for document in self._documents(name)]
        if not any(name in sample.fields for _, sample in self.samples) or (
            key is not None and all(value is None for value in values)
        ):
            names = sorted({name for _, sample in self.samples for name in sample.fields})
            raise ValueError(
                f"no sample of {self.description} has a field {label_column!r}; the fields are "
                f"{', '.join(names[:20])}."
            )
        if (wrong := self._unusable(values)) is not None:
            raise ValueError(
                f"labels must be classes, integers or strings, but {label_column!r} of "
                f"{self._place(wrong)} is {values[wrong]!r:.50}; choose another --label-column."
            )
        self._check_types(values, label_column)
        return labels_of_values(values, label_column)

    def _usable(self, values: list[Any], column: str) -> Labels:
        """Return the labels of a column that was not asked for, none if it cannot be labels."""
        if all(value is None for value in values):
            return Labels()
        self.tried.add(column)
        if (wrong := self._unusable(values)) is not None:
            if column not in JSON_COLUMNS:  # a list or a number is usual there
                self.notes.append(
                    f"{column} is no label, as that of {self._place(wrong)} is "
                    f"{values[wrong]!r:.50}; choose the labels with --label-column"
                )
            return Labels()
        self._check_types(values, column)
        labels = labels_of_values(values, column, is_required=False)
        if labels.values is None:
            self.notes += labels.notes
            return Labels()
        self.column = column
        return labels

    @staticmethod
    def _unusable(values: list[Any]) -> int | None:
        """Return the position of the first value that cannot be a label, or None."""
        return next((place for place, value in enumerate(values) if not _is_label(value)), None)

    def _check_types(self, values: list[Any], column: str) -> None:
        """Check that the labels are all texts, all numbers, or all true or false."""
        first: dict[str, int] = {}
        for place, value in enumerate(values):
            if value is not None and not (isinstance(value, float) and math.isnan(value)):
                kind = "number" if type(value) in (int, float) else type(value).__name__
                first.setdefault(kind, place)
        if len(first) > 1:
            one, other = list(first.values())[:2]
            raise ValueError(
                f"labels must be all text or all numbers, but {column!r} of {self._place(one)} is "
                f"{values[one]!r:.50} and that of {self._place(other)} is {values[other]!r:.50}; "
                "write all of them as text."
            )

    def _place(self, position: int) -> str:
        path, sample = self.samples[position]
        return f"{sample.key} in {path}"

    def _texts(self, name: str) -> list[Any]:
        """Return the labels that the texts of a field stand for."""
        texts = []
        for path, sample in self.samples:
            member = sample.fields.get(name)
            texts.append(None if member is None else _text(path, member).strip() or None)
        return labels_of_texts(texts)

    def _documents(self, name: str) -> Iterator[Any]:
        """Yield the content of a JSON field of each sample; None for a sample without it."""
        return (_document(path, sample.fields.get(name)) for path, sample in self.samples)

    def _split_name(self, label_column: str) -> tuple[str, str | None]:
        """Split FIELD.KEY at the end of the longest name of a field."""
        parts = label_column.split(".")
        fields = {name for _, sample in self.samples for name in sample.fields}
        for end in range(len(parts), 0, -1):
            name = ".".join(parts[:end]).lower()
            if name in fields and (end == len(parts) or _is_json(name)):
                return name, ".".join(parts[end:]) or None
        return label_column, None

    def _note_others(self, fields: Iterable[str], keys: Iterable[str], labels: Labels) -> None:
        """Note the fields, the keys and the folders that look like labels and were not taken."""
        alike = [name for name in fields if _looks_like_label(name.rpartition(".")[2])]
        alike += [name for name in fields if name.endswith(".txt") and LABEL_WORDS.search(name)]
        names = sorted({*alike, *keys} - self.tried)
        if names:
            taken = "there are no labels"
            if labels.values is not None:
                taken = f"the labels are {self.column!r}"
            listed = shorten(map(_printable, names), 5)
            self.notes.append(f"{taken}; not taken: {listed}; choose one with --label-column")
        if labels.values is None:
            self._note_folders()

    def _note_folders(self) -> None:
        """Note that folders which look like classes are no labels in tars."""
        keys = sorted({sample.key for _, sample in self.samples})
        folders = first_folders(keys)
        labels = labels_of_folders(folders, {name: name for name in folders}, keys)
        if labels.names is not None:
            self.notes.append(
                f"the folders in the tars ({', '.join(labels.names[:3])}, ...) are not taken as "
                "labels; a tar has them in a field, for example 0001.cls"
            )


def _text(path: Path, member: Member) -> str:
    return read_member(path, member).decode("utf-8-sig", "backslashreplace")


def _document(path: Path, member: Member | None) -> Any:
    if member is None:
        return None
    try:
        return json.loads(_text(path, member))
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(
            f"{member.name} in {path} is no valid JSON: {reason}; repair or remove it."
        ) from error


def _at(document: Any, key: str | None) -> Any:
    """Return the value of a key of JSON, or of nested keys joined by dots; None without it."""
    if key is None:
        value = document
    elif not isinstance(document, dict):
        value = None
    elif key in document:
        value = document[key]
    else:
        outer, _, inner = key.partition(".")
        value = _at(document.get(outer), inner) if inner else None
    return _printable(value) if isinstance(value, str) else value


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _is_json(field: str) -> bool:
    return field.rpartition(".")[2] in JSON_COLUMNS


def _is_label(value: Any) -> bool:
    if isinstance(value, float):
        return math.isnan(value) or value.is_integer()
    return value is None or isinstance(value, (bool, int, str))


def _looks_like_label(name: str) -> bool:
    return LABEL_WORDS.search(name) is not None or name in LABEL_COLUMNS


__all__ = ["TarLabels"]
