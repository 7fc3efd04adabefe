"""Sources that read the rows of a `datasets` dataset, by position or as a stream."""

from __future__ import annotations

import copy
import functools
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow

from .columns import Columns, choose_columns, keep_encoded
from .image_source import NO_LABEL, ImageRecord, ImageSource, short_hash


class DatasetSource(ImageSource):
    """Rows of a `datasets.Dataset`, read by position.

    Args:
        dataset: Dataset with an image column.
        description: Description of the data for logs and model cards.
        image_column: Name of the image column; None to find it by its type.
        label_column: Name of the label column; None to find it by its type and name.

    Raises:
        ValueError: If there is no such column.
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

    def name_of(self, position: int) -> str:
        """Return the id of a row, or its number."""
        if self._columns.id is None:
            return str(position)
        return str(self._dataset.select_columns([self._columns.id])[position][self._columns.id])

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
        """Return the labels (N,), int64, -1 for a row without one, or None if there are none."""
        return None if self._labels is None else self._labels.copy()

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the number of rows, the columns, the ids and the labels."""
        parts = [str(len(self)).encode(), str(self._columns).encode()]
        if self._columns.id is not None:
            parts += [str(value).encode() for value in self._dataset[self._columns.id]]
        if self._labels is not None:
            parts.append(self._labels.tobytes())
        return short_hash(parts)


class StreamingImageSource:
    """Rows of a `datasets.IterableDataset`, for data that does not fit on the disk.

    Only a ClassLabel column is used for labels: the names of other labels are not known before the
    end of the stream.

    Args:
        dataset: Dataset with an image column.
        description: Description of the data for logs and model cards.
        image_column: Name of the image column; None to find it by its type.
        label_column: Name of the label column; None to find it by its type and name.
        identity: Strings that identify the data independently of where it is stored: names and
            sizes of its shards.

    Raises:
        ValueError: If there is no such column, or if the names of its labels are not known.
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
                    f"labels of a stream must be in a ClassLabel column, but {label_column!r} has "
                    "another type, so the names of its labels are not known before the end of the "
                    "stream; read the data without streaming."
                )
        self._dataset = keep_encoded(dataset, self._columns)
        self.description = description
        self.identity = identity
        self.id_column = "id"

    @property
    def num_shards(self) -> int:
        """Number of parts that can be read independently: files, or row groups of Parquet files."""
        return self._dataset.num_shards

    @functools.cached_property
    def resharded(self) -> StreamingImageSource:
        """The same stream divided into more shards, if possible: row groups of Parquet files."""
        finer = copy.copy(self)
        finer._dataset = self._dataset.reshard()
        return finer

    @property
    def fingerprint(self) -> str:
        """Hash of the identity and the columns, which are known without reading the stream."""
        return short_hash([str(self._columns).encode(), *(text.encode() for text in self.identity)])

    def read_shard(
        self, shard: int, *, start: int = 0, part: int = 0, num_parts: int = 1
    ) -> Iterator[ImageRecord]:
        """Yield the records of a shard, or every `num_parts`-th of them, in their stored order.

        Args:
            shard: Index of the shard.
            start: Number of records to skip, among those that this part yields.
            part: Index of the part, from 0 to `num_parts - 1`.
            num_parts: Number of readers that share the shard.

        Yields:
            Records. Without an id column, the id of a record consists of the indices of the shard
            and the row, both from 0.

        Raises:
            ValueError: If the shard cannot be read.
        """
        from datasets.distributed import split_dataset_by_node

        dataset = self._dataset.shard(self.num_shards, shard)
        if start > 0:
            dataset = dataset.skip(start * num_parts)
        if num_parts > 1:
            dataset = split_dataset_by_node(dataset, rank=part, world_size=num_parts)
        # In a worker, `iter(dataset)` would skip the shards that `datasets` assigns to others.
        batches = dataset.iter(batch_size=1)
        try:
            for count, batch in enumerate(batches, start):
                row = {name: values[0] for name, values in batch.items()}
                label = self._columns.label_of(row) if self.label_names is not None else None
                name = f"shard {shard} row {count * num_parts + part}"
                yield _record(row, self._columns, name, None if label == NO_LABEL else label)
        except (tarfile.TarError, pyarrow.ArrowException, OSError) as error:
            raise ValueError(
                f"shard {shard} (from 0, sorted by name) of {self.description} cannot be read: "
                f"{error}; repair or restore the file."
            ) from error
        finally:
            batches.close()  # pyarrow threads that are still reading can block the exit of Python


def _record(row: dict, columns: Columns, name: str, label: int | None) -> ImageRecord:
    if columns.id is not None:
        name = str(row[columns.id])
    image = row[columns.image] or {}
    content = image.get("bytes")
    # For a row without an image, the decoder reports the empty bytes.
    return ImageRecord(name, content if content is not None else image.get("path") or b"", label)


__all__ = ["DatasetSource", "StreamingImageSource"]
