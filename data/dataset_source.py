"""Sources that read the rows of a `datasets` dataset, by position or as a stream."""

from __future__ import annotations

import copy
import functools
import itertools
import os
import tarfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from ..errors import printable
from .columns import Columns, choose_columns, keep_encoded, notes_on_columns
from .image_source import NO_LABEL, ImageRecord, ImageSource, UnreadableContent, short_hash
from .inventory import Inventory
from .labels import Labels, check_class, labels_of_values
from .remote.file_system import StorageError

SHARD_POSITIONS = 2**32  # more than a shard has rows
LONGEST_NAME = 255  # bytes of a name that file systems can store


class DatasetSource(ImageSource):
    """Rows of a `datasets.Dataset`, read by position.

    Args:
        dataset: Dataset with an image column.
        description: Description of the data for logs and model cards.
        image_column: Name of the image column; None to find it by its type.
        label_column: Name of the label column; None to find it by its type and name.
        folders: Folders that relative paths of images start from, and the number of consecutive
            rows of each.
        all_features: Types of all columns, if the dataset has only some of them.

    Raises:
        ValueError: If there is no such column, or if it does not contain labels.
    """

    def __init__(
        self,
        dataset: Any,
        description: str,
        image_column: str | None = None,
        label_column: str | None = None,
        folders: Sequence[tuple[Path, int]] = (),
        all_features: Mapping[str, Any] | None = None,
    ):
        self._columns = choose_columns(dataset.features, image_column, label_column)
        features = all_features or dataset.features
        notes = notes_on_columns(
            features, self._columns, image_given=bool(image_column), label_given=bool(label_column)
        )
        self._dataset = keep_encoded(dataset, self._columns)
        labels = self._number_labels(label_column is not None, description)
        self._labels = labels.values
        self._folders = [folder.absolute() for folder, _ in folders]
        self._ends = np.cumsum([num_rows for _, num_rows in folders])
        inventory = Inventory(len(dataset), len(dataset), notes=[*notes, *labels.notes])
        super().__init__(printable(description), labels.names, "id", inventory, labels.rule)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, position: int) -> ImageRecord:
        position = range(len(self))[position]
        label = None if self._labels is None else int(self._labels[position])
        folder = None
        if self._folders:
            folder = self._folders[int(np.searchsorted(self._ends, position, side="right"))]
        return _record(
            self._dataset[position],
            self._columns,
            str(position),
            None if label == NO_LABEL else label,
            [] if folder is None else [folder],
        )

    def name_of(self, position: int) -> str:
        """Return the id of a row, or its number."""
        if self._columns.id is None:
            return str(position)
        name = self._dataset.select_columns([self._columns.id])[position][self._columns.id]
        return str(position) if name is None else str(name)

    def names(self) -> list[str]:
        """Return the ids of all rows, read at once."""
        if self._columns.id is None:
            return [str(position) for position in range(len(self))]
        ids = self._dataset[self._columns.id]
        return [str(number) if name is None else str(name) for number, name in enumerate(ids)]

    def _number_labels(self, is_required: bool, where: str) -> Labels:
        column = self._columns.label
        if column is None:
            return Labels()
        names = getattr(self._dataset.features[column], "names", None)
        values = [self._columns.label_of({column: value}) for value in self._dataset[column]]
        try:
            return labels_of_values(
                values, self._columns.label_name, names, is_required=is_required
            )
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error

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
    """Images as a stream of shards, for data that does not fit on the disk.

    Args:
        description: Description of the data for logs and model cards.
        label_names: Names of the classes, or None.
        identity: Strings that identify the data independently of where it is stored: names and
            sizes of its shards.
        inventory: Notes on the source; the images of a stream are not counted.
    """

    id_column = "id"
    is_video = False  # whether the records are frames, which are decoded already and have times
    numbers_rows = False  # whether rows without an id are named as without streaming

    def __init__(
        self,
        description: str,
        label_names: list[str] | None,
        identity: Sequence[str],
        inventory: Inventory | None = None,
    ):
        self.description = printable(description)
        self.label_names = label_names
        self.identity = [printable(text) for text in identity]
        self.inventory = inventory or Inventory(found=0, taken=0)
        self.label_rule: str | None = None

    @property
    def num_shards(self) -> int:
        """Number of parts that can be read independently: files, or row groups of Parquet files."""
        raise NotImplementedError

    @property
    def resharded(self) -> StreamingImageSource:
        """The same stream divided into more shards, if possible: row groups of Parquet files."""
        return self

    @property
    def num_images(self) -> int | None:
        """Number of images: None, as it is not known before the end."""
        return None

    @property
    def num_positions(self) -> int:
        """Number of positions; row R of shard S, both from 0, is at S x SHARD_POSITIONS + R."""
        return self.num_shards * SHARD_POSITIONS

    def batches(
        self,
        ranges: Iterable[range],
        batch_size: int,
        convert: Callable[[Iterator[ImageRecord]], Iterator[Any]] = iter,
    ) -> Generator[tuple[range, list[Any]], None, None]:
        """Yield the records at some positions in batches, none of which has two shards.

        Args:
            ranges: Positions, in the order to read them.
            batch_size: Maximum number of records per batch.
            convert: Function of the records of a shard that returns as many results in their place.

        Yields:
            Positions and records, or their results. The positions of the last batch of a shard go
            on to the next shard, even if there are fewer records.

        Raises:
            ValueError: If a shard cannot be read.
        """
        parts = split_at_shards(ranges)
        for positions, following in itertools.zip_longest(parts, parts[1:]):
            shard, row = divmod(positions.start, SHARD_POSITIONS)
            if following is not None:
                self.will_read(following.start // SHARD_POSITIONS)
            with closing(self.read_shard(shard, start=row)) as records:
                converted = convert(itertools.islice(records, len(positions)))
                yield from _in_batches(converted, positions, batch_size)

    @property
    def fingerprint(self) -> str:
        """Hash of the identity, which is known without reading the stream."""
        return short_hash(text.encode() for text in self.identity)

    def will_read(self, shard: int) -> None:
        """Prepare a shard that will be read after the present one.

        Args:
            shard: Index of the shard.
        """

    def read_shard(
        self, shard: int, *, start: int = 0, part: int = 0, num_parts: int = 1
    ) -> Generator[ImageRecord, None, None]:
        """Yield the records of a shard, or every `num_parts`-th of them, in their stored order.

        Args:
            shard: Index of the shard.
            start: Number of records to skip, among those that this part yields.
            part: Index of the part, from 0 to `num_parts - 1`.
            num_parts: Number of readers that share the shard.

        Yields:
            Records. Without an id, the name of a record consists of the indices of the shard and
            the row, both from 0; of Parquet files, it is the number of the row in all files.

        Raises:
            ValueError: If the shard cannot be read.
        """
        raise NotImplementedError


AnySource = ImageSource | StreamingImageSource


def split_at_shards(ranges: Iterable[range]) -> list[range]:
    """Return the positions of a stream as ranges, none of which goes on to another shard.

    Args:
        ranges: Positions.
    """
    parts = []
    for positions in ranges:
        start = positions.start
        while start < positions.stop:
            stop = min(positions.stop, (start // SHARD_POSITIONS + 1) * SHARD_POSITIONS)
            parts.append(range(start, stop))
            start = stop
    return parts


def _in_batches(
    records: Iterator[Any], positions: range, batch_size: int
) -> Generator[tuple[range, list[Any]], None, None]:
    """Yield the records of some positions in batches; the last one has all positions left."""
    batch, start = list(itertools.islice(records, batch_size)), positions.start
    while start < positions.stop:
        following = list(itertools.islice(records, batch_size))
        stop = start + len(batch) if following else positions.stop
        yield range(start, stop), batch
        batch, start = following, stop


class DatasetStream(StreamingImageSource):
    """Rows of a `datasets.IterableDataset`.

    Only a ClassLabel column is used for labels: the names of other labels are not known before the
    end of the stream.

    Args:
        dataset: Dataset with an image column.
        description: Description of the data for logs and model cards.
        image_column: Name of the image column; None to find it by its type.
        label_column: Name of the label column; None to find it by its type and name.
        identity: Strings that identify the data independently of where it is stored: names and
            sizes of its shards.
        folders: Folders that relative paths of images can start from.
        all_features: Types of all columns, if the dataset has only some of them.
        row_groups: Number of rows of each row group of each file, if they are known.

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
        folders: Sequence[Path] = (),
        all_features: Mapping[str, Any] | None = None,
        row_groups: Sequence[Sequence[int]] | None = None,
    ):
        features = dataset.features or dataset._resolve_features().features
        self._columns = choose_columns(features, image_column, label_column)
        label_names = None
        notes = notes_on_columns(
            all_features or features,
            self._columns,
            image_given=bool(image_column),
            label_given=bool(label_column),
        )
        if self._columns.label is not None:
            label_names = getattr(features[self._columns.label], "names", None)
            if label_names is None and label_column is not None:
                raise ValueError(
                    f"labels of a stream must be in a ClassLabel column, but {label_column!r} has "
                    "another type, so the names of its labels are not known before the end of the "
                    "stream; read the data without streaming."
                )
            if label_names is None:
                notes.append(
                    f"a stream has no labels, as column {self._columns.label!r} is no ClassLabel"
                )
        self._dataset = keep_encoded(dataset, self._columns)
        self._folders = [folder.absolute() for folder in folders]
        self._row_groups = row_groups
        self._first_rows: list[int] | None = None  # number of the first row of each shard
        if row_groups is not None:
            self.numbers_rows = True
            self._first_rows = list(itertools.accumulate(map(sum, row_groups), initial=0))
        inventory = Inventory(found=0, taken=0, notes=notes)
        super().__init__(description, label_names, identity, inventory)
        if label_names is not None:
            self.label_rule = f"column {self._columns.label!r}, {len(label_names)} classes"

    @property
    def num_shards(self) -> int:
        """Number of parts that can be read independently: files, or row groups of Parquet files."""
        return self._dataset.num_shards

    @functools.cached_property
    def resharded(self) -> DatasetStream:
        """The same stream divided into more shards, if possible: row groups of Parquet files."""
        finer = copy.copy(self)
        finer._dataset = self._dataset.reshard()
        if self._row_groups is not None:
            counts = itertools.chain.from_iterable(self._row_groups)
            finer._first_rows = list(itertools.accumulate(counts, initial=0))
        return finer

    @property
    def fingerprint(self) -> str:
        """Hash of the identity and the columns, which are known without reading the stream."""
        return short_hash([str(self._columns).encode(), *(text.encode() for text in self.identity)])

    def read_shard(
        self, shard: int, *, start: int = 0, part: int = 0, num_parts: int = 1
    ) -> Generator[ImageRecord, None, None]:
        """Yield the records of a shard; see `StreamingImageSource`."""
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
                number = count * num_parts + part
                place = name = f"shard {shard} row {number}"
                if self._first_rows is not None:
                    name = str(self._first_rows[shard] + number)
                yield _record(row, self._columns, name, self._label_of(row, place), self._folders)
        except StorageError:
            raise
        except (tarfile.TarError, pyarrow.ArrowException, OSError) as error:
            raise ValueError(
                f"shard {shard} (from 0, sorted by name) of {self.description} cannot be read: "
                f"{error}; repair or restore the file."
            ) from error
        finally:
            batches.close()  # pyarrow threads that are still reading can block the exit of Python

    def _label_of(self, row: Mapping[str, Any], place: str) -> int | None:
        if self.label_names is None or (label := self._columns.label_of(row)) in (None, NO_LABEL):
            return None
        try:
            check_class(label, self._columns.label_name, self.label_names)
        except ValueError as error:
            raise ValueError(f"{place} of {self.description}: {error}") from error
        return label


def _record(
    row: dict, columns: Columns, name: str, label: int | None, folders: Sequence[Path]
) -> ImageRecord:
    if columns.id is not None and row[columns.id] is not None:
        name = str(row[columns.id])
    image = row[columns.image]
    if isinstance(image, Mapping):
        content = image.get("bytes")
        image = content if content is not None else image.get("path")
    if image is None or image == "":
        image = UnreadableContent("the row has neither the content nor the path of an image")
    if isinstance(image, str):
        image = _resolved(image, folders)
    return ImageRecord(name, image, label)


def _resolved(path: str, folders: Sequence[Path]) -> str | UnreadableContent:
    """Return the path of an image that a table names, relative to the folder of the table."""
    candidates = [os.path.join(folder, path) for folder in folders] or [path]
    existing = [candidate for candidate in candidates if os.path.exists(candidate)]
    if len(existing) > 1:
        return UnreadableContent(f"its path is not unique: {', '.join(existing)}")
    if not existing and len(path) > LONGEST_NAME:
        return UnreadableContent(
            f"a text of {len(path)} characters, {path[:20]!r}..., is no path of a file; an image "
            "in a table must be bytes or a path, so decode base64 first"
        )
    if not existing:
        return UnreadableContent(f"there is no file {candidates[0]!r}")
    return existing[0]


__all__ = [
    "SHARD_POSITIONS",
    "AnySource",
    "DatasetSource",
    "DatasetStream",
    "StreamingImageSource",
    "split_at_shards",
]
