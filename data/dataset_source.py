"""Rows of a `datasets` data set: by position, or in passing as a stream."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from .columns import Columns, choose_columns, keep_encoded
from .image_source import NO_LABEL, ImageRecord, ImageSource, hash_of


class DatasetSource(ImageSource):
    """The rows of a `datasets.Dataset`.

    Args:
        dataset: with an image column.
        description: of the data.
        image_column: name, or None to find it by its type.
        label_column: name, or None to find it by its type and name.

    Raises:
        ValueError: if there is no such column.
    """

    def __init__(
        self,
        dataset: Any,
        description: str,
        image_column: str | None = None,
        label_column: str | None = None,
    ):
        self._columns = choose_columns(dataset.features, image_column, label_column)
        self._dataset = keep_encoded(dataset, self._columns)
        self._labels, label_names = self._number_labels()
        super().__init__(description, label_names, "id")

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, position: int) -> ImageRecord:
        label = None if self._labels is None else int(self._labels[position])
        row = self._dataset[range(len(self))[position]]
        return _record(row, self._columns, position, None if label == NO_LABEL else label)

    def _number_labels(self) -> tuple[np.ndarray | None, list[str] | None]:
        column = self._columns.label
        if column is None:
            return None, None
        values = list(self._dataset[column])
        feature = self._dataset.features[column]
        if hasattr(feature, "names"):
            names, label_of = feature.names, {label: label for label in range(len(feature.names))}
        else:
            known = sorted({value for value in values if value is not None})
            names, label_of = [str(value) for value in known], {v: i for i, v in enumerate(known)}
        labels = np.array([label_of.get(value, NO_LABEL) for value in values], dtype=np.int64)
        return (None, None) if (labels == NO_LABEL).all() else (labels, names)

    def labels(self) -> np.ndarray | None:
        """Return labels (N,), int64, -1 where a row has none; None if no row has."""
        return None if self._labels is None else self._labels.copy()

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the number of rows, the columns, the ids and the labels."""
        parts = [str(len(self)).encode(), str(self._columns).encode()]
        if self._columns.id is not None:
            parts += [str(value).encode() for value in self._dataset[self._columns.id]]
        if self._labels is not None:
            parts.append(self._labels.tobytes())
        return hash_of(parts)


class StreamingImageSource:
    """The rows of a `datasets.IterableDataset`: images in passing, for data larger than the disk.

    Labelled only by a ClassLabel column: the names of other labels are not known before the end.

    Args:
        dataset: with an image column.
        description: of the data.
        image_column: name, or None to find it by its type.
        label_column: name, or None to find it by its type and name.

    Raises:
        ValueError: if there is no such column, or its label names are not known.
    """

    def __init__(
        self,
        dataset: Any,
        description: str,
        image_column: str | None = None,
        label_column: str | None = None,
    ):
        features = dataset.features or dataset._resolve_features().features
        self._columns = choose_columns(features, image_column, label_column)
        self.label_names: list[str] | None = None
        if self._columns.label is not None:
            self.label_names = getattr(features[self._columns.label], "names", None)
            if self.label_names is None and label_column is not None:
                raise ValueError(
                    f"column {label_column!r} is no ClassLabel, so the names of its labels are not "
                    "known before the end of the stream; read the data without streaming."
                )
        self._dataset = keep_encoded(dataset, self._columns)
        self.description = description
        self.id_column = "id"

    @property
    def fingerprint(self) -> str:
        """Hash of what can be known without reading the stream: its description and columns."""
        return hash_of([self.description.encode(), str(self._columns).encode()])

    def iterate(
        self,
        *,
        seed: int,
        epoch: int,
        skip: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle_buffer: int = 1000,
    ) -> Iterator[ImageRecord]:
        """Pass once over this rank's records, shuffled; same arguments, same order.

        Inside a DataLoader worker, `datasets` hands each worker its own files: the rank's records
        are divided among its workers, and `skip` counts those of the worker.

        Args:
            seed: of the shuffling.
            epoch: passes with different epochs have different orders.
            skip: records of this rank to leave out at the start (those seen before a resume).
            rank: of this process.
            world_size: number of processes; their records are disjoint.
            shuffle_buffer: records; each is drawn from as many waiting ones, after the order of
                files was shuffled. 0 for the stored order.

        Yields:
            Records. Ids of data without an id column count the rank's records in passing.
        """
        from datasets.distributed import split_dataset_by_node

        dataset = self._dataset
        if shuffle_buffer > 0:
            dataset = dataset.shuffle(seed=seed, buffer_size=shuffle_buffer, **_one_reader(dataset))
        if world_size > 1:
            dataset = split_dataset_by_node(dataset, rank=rank, world_size=world_size)
        dataset.set_epoch(epoch)
        for position, row in itertools.islice(enumerate(dataset), skip, None):
            label = row[self._columns.label] if self.label_names is not None else None
            yield _record(row, self._columns, position, None if label == NO_LABEL else label)


def _one_reader(stream: Any) -> dict[str, int]:
    """Options of `shuffle` that keep a single file from being read by threads.

    Threads interleave several files; for one they gain nothing, and datasets 5.2 sleeps 5 s at the
    end of each pass while they shut down. Older versions have no such option, and no threads.
    """
    options = inspect.signature(stream.shuffle).parameters
    is_wanted = stream.num_shards == 1 and "max_buffer_input_shards" in options
    return {"max_buffer_input_shards": 1} if is_wanted else {}


def _record(row: dict, columns: Columns, position: int, label: int | None) -> ImageRecord:
    name = str(position if columns.id is None else row[columns.id])
    image = row[columns.image] or {}
    content = image.get("bytes")
    # A row without an image is empty bytes: the decoder then gives the reason.
    return ImageRecord(name, content if content is not None else image.get("path") or b"", label)


__all__ = ["DatasetSource", "StreamingImageSource"]
