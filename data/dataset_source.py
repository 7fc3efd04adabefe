"""Rows of a `datasets` data set: by position, or in passing as a stream."""

from __future__ import annotations

import copy
import functools
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow

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
        return _record(row, self._columns, str(position), None if label == NO_LABEL else label)

    def _number_labels(self) -> tuple[np.ndarray | None, list[str] | None]:
        column = self._columns.label
        if column is None:
            return None, None
        feature = self._dataset.features[column]
        values = [self._columns.label_of({column: value}) for value in self._dataset[column]]
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

    Labeled only by a ClassLabel column: the names of other labels are not known before the end.

    Args:
        dataset: with an image column.
        description: of the data.
        image_column: name, or None to find it by its type.
        label_column: name, or None to find it by its type and name.
        identity: what tells the data from others, wherever they lie: their shards' names and sizes.

    Raises:
        ValueError: if there is no such column, or its label names are not known.
    """

    def __init__(
        self,
        dataset: Any,
        description: str,
        image_column: str | None = None,
        label_column: str | None = None,
        *,
        identity: Sequence[str],
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
        self.identity = identity
        self.id_column = "id"

    @property
    def num_shards(self) -> int:
        """Parts that can be read apart from each other: files, or row groups of Parquet files."""
        return self._dataset.num_shards

    @functools.cached_property
    def in_smaller_shards(self) -> StreamingImageSource:
        """The same stream in more shards, where its files have parts: row groups of Parquet."""
        finer = copy.copy(self)
        finer._dataset = self._dataset.reshard()
        return finer

    @property
    def fingerprint(self) -> str:
        """Hash of what can be known without reading the stream: its identity and columns."""
        return hash_of([str(self._columns).encode(), *(text.encode() for text in self.identity)])

    def read_shard(
        self, shard: int, *, start: int = 0, part: int = 0, num_parts: int = 1
    ) -> Iterator[ImageRecord]:
        """Yield the records of a shard as they are stored, or one of so many.

        Args:
            shard: its number.
            start: records to leave out, of those that would be yielded.
            part: which of each `num_parts` records.
            num_parts: readers that share the shard.

        Yields:
            Records. Ids of data without an id column name the shard and the row, counted from 0.

        Raises:
            ValueError: if the shard cannot be read.
        """
        from datasets.distributed import split_dataset_by_node

        dataset = self._dataset.shard(self.num_shards, shard)
        if start > 0:
            dataset = dataset.skip(start * num_parts)
        if num_parts > 1:
            dataset = split_dataset_by_node(dataset, rank=part, world_size=num_parts)
        # `iter(dataset)` would leave out what `datasets` takes for the shards of other workers
        batches = dataset.iter(batch_size=1)
        try:
            for count, batch in enumerate(batches, start):
                row = {name: values[0] for name, values in batch.items()}
                label = self._columns.label_of(row) if self.label_names is not None else None
                name = f"shard {shard} row {count * num_parts + part}"
                yield _record(row, self._columns, name, None if label == NO_LABEL else label)
        except (tarfile.TarError, pyarrow.ArrowException, OSError) as error:
            raise ValueError(
                f"shard {shard} (counted from 0, sorted by name) of {self.description} cannot be "
                f"read: {error}; mend it, or bring it back within reach."
            ) from error
        finally:
            batches.close()  # threads of pyarrow that go on reading can hang Python at its exit


def _record(row: dict, columns: Columns, name: str, label: int | None) -> ImageRecord:
    if columns.id is not None:
        name = str(row[columns.id])
    image = row[columns.image] or {}
    content = image.get("bytes")
    # A row without an image is empty bytes: the decoder then gives the reason.
    return ImageRecord(name, content if content is not None else image.get("path") or b"", label)


__all__ = ["DatasetSource", "StreamingImageSource"]
