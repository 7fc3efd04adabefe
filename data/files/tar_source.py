"""Sources that read the samples of WebDataset tars, by position or as a stream."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..columns import IMAGE_COLUMNS, JSON_COLUMNS, LABEL_COLUMNS
from ..dataset_source import StreamingImageSource
from ..image_source import NO_LABEL, ImageRecord, ImageSource, short_hash
from ..inventory import Inventory, LeftOut
from ..labels import labels_of_values
from .tars import Member, TarIndex, TarSample, index_tar


class TarSource(ImageSource):
    """Samples of tars, read by position from the tars themselves.

    Args:
        paths: Paths of the tars.
        description: Description of the tars, without the number of images.
        image_column: Field of the images; by default, the most frequent field of each sample.
        label_column: Field of the labels, or FIELD.KEY for a key of a JSON field.

    Raises:
        ValueError: If a tar cannot be read, or there are no images or no such field.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        description: str,
        image_column: str | None = None,
        label_column: str | None = None,
    ):
        tars = [index_tar(path) for path in paths]
        self._paths = [tar.path for tar in tars]
        left_out: list[LeftOut] = [entry for tar in tars for entry in tar.left_out]
        ranks = _ranks_of_fields([sample for tar in tars for sample in tar.samples])
        self._keys: list[str] = []
        self._members: list[Member] = []
        self._tars: list[int] = []
        values: list[Any] = []
        for number, tar in enumerate(tars):
            for sample in tar.samples:
                name = choose_image(sample, ranks, image_column, left_out)
                if name is None:
                    continue
                self._keys.append(sample.key)
                self._members.append(sample.fields[name])
                self._tars.append(number)
                values.append(tar.label_of(sample, label_column))
        if not self._keys:
            raise ValueError(_without_images(description, tars, image_column, left_out))
        if label_column is not None and all(value is None for value in values):
            raise ValueError(
                f"no sample of {description} has a field {label_column!r}; the fields are "
                f"{_field_names(tars)}."
            )
        _check_types(values, self._keys, description)
        labels = labels_of_values(values, label_column or "cls, label or json")
        self._labels = labels.values
        notes = [split_note(tar) for tar in tars if tar.splits_at_last_dot]
        notes += [note for tar in tars if (note := _note_on_labels(tar)) is not None]
        if self._labels is not None:
            notes += labels.notes
        taken = len(self._keys)
        inventory = Inventory(taken + len(left_out), taken, left_out, notes)
        super().__init__(
            f"{taken} samples of {description}", labels.names, "id", inventory, labels.rule
        )

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, position: int) -> ImageRecord:
        position = range(len(self))[position]
        label = NO_LABEL if self._labels is None else int(self._labels[position])
        content = TarIndex(self._paths[self._tars[position]]).read(self._members[position])
        return ImageRecord(self._keys[position], content, None if label == NO_LABEL else label)

    def name_of(self, position: int) -> str:
        """Return the key of a sample."""
        return self._keys[position]

    def labels(self) -> np.ndarray | None:
        """Return the labels (N,), int64, -1 for a sample without one, or None if none has one."""
        return None if self._labels is None else self._labels.copy()

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the keys, the sizes of the images and the labels."""
        parts = [
            f"{key} {member.size}".encode("utf-8", "backslashreplace")
            for key, member in zip(self._keys, self._members, strict=True)
        ]
        return short_hash(parts + ([] if self._labels is None else [self._labels.tobytes()]))


class TarStream(StreamingImageSource):
    """Samples of tars as a stream, one shard per tar, without labels.

    Args:
        paths: Paths of the tars.
        description: Description of the data for logs and model cards.
        identity: Names and sizes of the tars.
        image_column: Field of the images; by default, the most frequent field of each sample.
        label_column: Must be None.

    Raises:
        ValueError: If the first tar cannot be read or has no images, or labels are asked for.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        description: str,
        identity: Sequence[str],
        image_column: str | None = None,
        label_column: str | None = None,
    ):
        if label_column is not None:
            raise ValueError(
                f"labels of a stream must be in a ClassLabel column, but {label_column!r} is a "
                "field of a tar, so the names of its labels are not known before the end of the "
                "stream; read the data without streaming."
            )
        self._paths = list(paths)
        self._image_column = image_column
        first = index_tar(self._paths[0])
        left_out = list(first.left_out)
        self._ranks = _ranks_of_fields(first.samples)
        names = [choose_image(s, self._ranks, image_column, left_out) for s in first.samples]
        if not any(names):
            raise ValueError(_without_images(description, [first], image_column, left_out))
        notes = [split_note(first)] if first.splits_at_last_dot else []
        if left_out:
            notes.append(
                f"{len(left_out)} images of {self._paths[0].name} are left out, for example "
                f"{left_out[0].name} ({left_out[0].reason})"
            )
        super().__init__(description, None, identity, Inventory(0, 0, notes=notes))

    @property
    def num_shards(self) -> int:
        """Number of tars."""
        return len(self._paths)

    def read_shard(
        self, shard: int, *, start: int = 0, part: int = 0, num_parts: int = 1
    ) -> Iterator[ImageRecord]:
        """Yield the records of a tar; see `StreamingImageSource`."""
        try:
            tar = index_tar(self._paths[shard])
        except (ValueError, OSError) as error:
            raise ValueError(
                f"shard {shard} (from 0, sorted by name) of {self.description} cannot be read: "
                f"{error}"
            ) from error
        named = ((s, choose_image(s, self._ranks, self._image_column, [])) for s in tar.samples)
        images = [(sample.key, sample.fields[name]) for sample, name in named if name is not None]
        for key, member in images[part::num_parts][start:]:
            yield ImageRecord(key, tar.read(member))


def choose_image(
    sample: TarSample, ranks: dict[str, int], image_column: str | None, left_out: list[LeftOut]
) -> str | None:
    """Return the field of a sample's image, and add its other images to `left_out`.

    Args:
        sample: Sample.
        ranks: Rank of each field name; the lowest is taken.
        image_column: Field that is asked for; None for the best rank.
        left_out: List that the images which are not taken are added to.
    """
    names = sample.image_fields()
    if image_column is None:
        chosen = min(names, key=lambda name: ranks.get(name, len(ranks)), default=None)
    else:
        chosen = image_column.lower() if image_column.lower() in sample.fields else None
    left_out.extend(
        LeftOut(
            sample.fields[name].name,
            f"other image of sample {sample.key}; --image-column {name} takes it",
        )
        for name in names
        if name != chosen
    )
    return chosen


def split_note(tar: TarIndex) -> str:
    """Return a sentence about the names of a tar that are split at the last dot."""
    return (
        f"{tar.path.name}: names are split at the last dot, as the first dot would make one sample "
        "of several images"
    )


def _note_on_labels(tar: TarIndex) -> str | None:
    """Return a sentence about the labels of a tar that belong to no image."""
    alone = [
        sample.fields[name].name
        for sample in tar.samples
        if not sample.image_fields()
        for name in sample.fields
        if name in (*LABEL_COLUMNS, *JSON_COLUMNS)
    ]
    if not alone:
        return None
    return f"{len(alone)} labels in {tar.path.name} belong to no image, for example {alone[0]}"


def _ranks_of_fields(samples: list[TarSample]) -> dict[str, int]:
    uses = Counter(name for sample in samples for name in sample.image_fields())
    usual = {name: rank for rank, name in enumerate(IMAGE_COLUMNS)}
    names = sorted(
        uses, key=lambda name: (-uses[name], "." in name, usual.get(name, len(usual)), name)
    )
    return {name: rank for rank, name in enumerate(names)}


def _without_images(
    description: str, tars: list[TarIndex], image_column: str | None, left_out: list[LeftOut]
) -> str:
    if image_column is not None:
        return (
            f"no sample of {description} has a field {image_column!r}; the fields are "
            f"{_field_names(tars)}."
        )
    reason = f" ({left_out[0].name}: {left_out[0].reason})" if left_out else ""
    return (
        f"no sample of {description} has an image that can be decoded{reason}; the fields are "
        f"{_field_names(tars) or 'none'}. In a WebDataset tar, the files of an image have the same "
        "name up to the first dot, for example 0001.jpg and 0001.cls."
    )


def _field_names(tars: list[TarIndex]) -> str:
    return ", ".join(sorted({name for tar in tars for s in tar.samples for name in s.fields})[:20])


def _check_types(values: list[Any], keys: list[str], description: str) -> None:
    """Check that the labels are all texts or all numbers."""
    first = {isinstance(v, str): number for number, v in enumerate(values) if v is not None}
    if len(first) == 2:
        text, number = first[True], first[False]
        raise ValueError(
            f"labels must be all text or all numbers, but in {description} the label of "
            f"{keys[text]} is {values[text]!r} and that of {keys[number]} is {values[number]!r} "
            "(field cls, label or json); write all of them as text."
        )


__all__ = ["TarSource", "TarStream"]
