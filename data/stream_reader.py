"""Read a stream in a shuffled order that several readers share and that can be resumed.

In every epoch, the shards are distributed to the readers in a new random order. Each record is read
once per epoch, and a reader that had more records than the others in one epoch has other shards in
the next. A reader keeps a few shards open, takes one record from each in turn, and shuffles the
records within blocks. The order of a block depends only on the position where the block begins: a
reader that resumes within a block reads the block again and skips the records that it has already
returned. (The shuffle buffer of `datasets` loses its records on resume.)
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from .dataset_source import StreamingImageSource
from .image_source import ImageRecord, RecordSource
from .inventory import Inventory

# More open shards mix data better that is sorted by class. Fewer need less memory (one Parquet row
# group per shard) and fewer reads on resume.
OPEN_SHARDS = 4
MAX_EMPTY_EPOCHS = 100  # consecutive epochs in which a reader finds no record
SHARD_ORDER, BLOCK_ORDER = 3, 4  # random streams; a run uses 1 for its views and 2 for mixing


@dataclass(frozen=True)
class StreamPosition:
    """Position of a reader in a stream.

    Args:
        epoch: Index of the epoch.
        block: Index of the block in the epoch.
        open_shards: Shards that were open when the block began, in the order of their turns: index
            among the shards of the reader in this epoch, and number of records read from it.
        num_opened: Number of shards opened before the block began.
        handed_out: Number of records of the block that the reader has returned.
    """

    epoch: int = 0
    block: int = 0
    open_shards: tuple[tuple[int, int], ...] = ()
    num_opened: int = 0
    handed_out: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the position as a dictionary that JSON can represent."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StreamPosition:
        """Create a position from the result of `to_dict`, possibly read from JSON."""
        open_shards = tuple((number, row) for number, row in values["open_shards"])
        return cls(**{**values, "open_shards": open_shards})


@dataclass
class _OpenShard:
    number: int  # index among the shards of the reader in this epoch
    row: int  # index of the next record
    records: Iterator[ImageRecord]


class StreamReader:
    """Endless iterator over the records of one of several readers that share a stream.

    If there are fewer shards than readers, every reader reads all shards and keeps every
    `num_readers`-th record, as in `datasets.distributed.split_dataset_by_node`.

    Args:
        source: Stream to read.
        seed: Random seed of the order.
        reader: Index of this reader.
        num_readers: Number of readers that share the stream.
        shuffle_buffer: Number of records per block; 0 keeps the stored order.
        position: Position to resume from; the beginning by default.
        reading: Function that takes the index of a shard and returns a context manager, which is
            active while a record of that shard is read.
    """

    def __init__(
        self,
        source: StreamingImageSource,
        *,
        seed: int,
        reader: int = 0,
        num_readers: int = 1,
        shuffle_buffer: int = 1000,
        position: StreamPosition | None = None,
        reading: Callable[[int], AbstractContextManager[Any]] = nullcontext,
    ):
        self.source = source
        self.seed = seed
        self.reader = reader
        self.num_readers = num_readers
        self.shuffle_buffer = shuffle_buffer
        self.position = position or StreamPosition()
        self.reading = reading

    def __iter__(self) -> Generator[tuple[ImageRecord, StreamPosition], None, None]:
        """Yield each record with the position after it.

        Raises:
            ValueError: If the shards of this reader contain no records.
        """
        start, num_empty = self.position, 0
        while num_empty < MAX_EMPTY_EPOCHS:
            num_empty += 1
            for record, position in self.read_epoch(start):
                num_empty = 0
                yield record, position
            start = StreamPosition(start.epoch + 1)
        raise ValueError(
            f"every reader needs at least one record, but reader {self.reader} of "
            f"{self.num_readers} found none in {num_empty} epochs of {self.source.description}; "
            "use fewer processes and workers."
        )

    def read_epoch(
        self, position: StreamPosition
    ) -> Generator[tuple[ImageRecord, StreamPosition], None, None]:
        """Yield the records of an epoch after a position, each with the position after it."""
        records = _Records(self, position)
        block_size = max(1, self.shuffle_buffer)
        block: list[ImageRecord | None] = [*itertools.islice(records, block_size)]
        while block:
            next_position = records.position(position)
            rng = np.random.default_rng(
                [self.seed, position.epoch, BLOCK_ORDER, self.reader, position.block]
            )
            upcoming: list[ImageRecord | None] = []
            for handed_out, place in enumerate(rng.permutation(len(block)), start=1):
                # Read one record for each one returned, so that no block causes a pause.
                upcoming.extend(itertools.islice(records, 1))
                record, block[place] = block[place], None
                if record is not None and handed_out > position.handed_out:
                    yield record, replace(position, handed_out=handed_out)
            block, position = upcoming, next_position

    def epoch_shards(self, epoch: int) -> list[int]:
        """Return the indices of the shards that this reader reads in an epoch, in their order."""
        shards = np.arange(self.source.num_shards)
        if self.shuffle_buffer > 0:
            shards = np.random.default_rng([self.seed, epoch, SHARD_ORDER]).permutation(shards)
        return (shards if self.splits_shards else shards[self.reader :: self.num_readers]).tolist()

    @property
    def splits_shards(self) -> bool:
        """Whether the readers share each shard, because there are fewer shards than readers."""
        return self.source.num_shards < self.num_readers

    def read(self, shard: int, number: int, row: int) -> Iterator[ImageRecord]:
        """Return an iterator over the records of this reader in a shard, starting at `row`."""
        if not self.splits_shards:
            return self.source.read_shard(shard, start=row)
        # Rotate the parts, so that one reader does not get the first record of every shard.
        part = (self.reader + number) % self.num_readers
        return self.source.read_shard(shard, start=row, part=part, num_parts=self.num_readers)


class _Records:
    """Iterator over the records of an epoch before shuffling, with the open shards in turn."""

    def __init__(self, reader: StreamReader, position: StreamPosition):
        self._reader = reader
        self._shards = reader.epoch_shards(position.epoch)
        self._num_opened = position.num_opened
        self._open = deque(self._opened(number, row) for number, row in position.open_shards)
        self._max_open = OPEN_SHARDS if reader.shuffle_buffer > 0 else 1

    def _opened(self, number: int, row: int = 0) -> _OpenShard:
        records = self._reader.read(self._shards[number], number, row)
        return _OpenShard(number, row, records)

    def __iter__(self) -> _Records:
        return self

    def __next__(self) -> ImageRecord:
        while True:
            while len(self._open) < self._max_open and self._num_opened < len(self._shards):
                self._open.append(self._opened(self._num_opened))
                self._num_opened += 1
            if not self._open:
                raise StopIteration
            shard = self._open.popleft()
            with self._reader.reading(self._shards[shard.number]):
                record = next(shard.records, None)
            if record is not None:
                shard.row += 1
                self._open.append(shard)
                return record

    def position(self, block: StreamPosition) -> StreamPosition:
        """Return the position of the block that begins at the next record and follows `block`."""
        return StreamPosition(
            epoch=block.epoch,
            block=block.block + 1,
            open_shards=tuple((shard.number, shard.row) for shard in self._open),
            num_opened=self._num_opened,
        )


def first_images(source: StreamingImageSource, limit: int) -> RecordSource:
    """Return the first images of a stream in shuffled order, in memory without decoding.

    Args:
        source: The stream.
        limit: Maximum number of images.
    """
    first_pass = StreamReader(source, seed=0).read_epoch(StreamPosition())
    with closing(first_pass):
        records = [record for record, _ in itertools.islice(first_pass, limit)]
    images = RecordSource(records, f"first of the {source.description}", source.label_names)
    left_out, notes = source.inventory.left_out, source.inventory.notes
    images.inventory = Inventory(len(records) + len(left_out), len(records), left_out, notes)
    images.label_rule = source.label_rule
    return images


__all__ = ["StreamPosition", "StreamReader", "first_images"]
