"""In which order the readers of a stream read it, and how each goes on from where it stood.

A pass deals the shards out to the readers in a new random order, so that each record comes once a
pass, and readers of unequal parts have other ones in the next. A reader goes from shard to shard
with a few of them open, takes a record of each in turn, and shuffles the records within blocks: a
block is decided by where it began, so that a reader which goes on in its midst reads it anew and
leaves out what was handed out. (The buffer of `datasets` loses what it holds at a resume.)
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from .dataset_source import StreamingImageSource
from .image_source import ImageRecord

# More mix data that is stored class by class better; fewer need less memory (a row group of Parquet
# each), and less is read again at a resume.
OPEN_SHARDS = 4
# Of a reader: its shards have no records, nor had those dealt to it in the passes before.
MAX_EMPTY_PASSES = 100
SHARD_ORDER, BLOCK_ORDER = 3, 4  # draws apart from those of a run's views (1) and mixing (2)


@dataclass(frozen=True)
class StreamPosition:
    """Where a reader stands.

    Args:
        epoch: number of the pass.
        block: number of the block in the pass.
        open_shards: as the block began, in turn: number among the reader's shards of the pass, and
            records read of it.
        num_opened: shards opened before the block began.
        handed_out: records of the block.
    """

    epoch: int = 0
    block: int = 0
    open_shards: tuple[tuple[int, int], ...] = ()
    num_opened: int = 0
    handed_out: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StreamPosition:
        """Read what `to_dict` gave."""
        open_shards = tuple((number, row) for number, row in values["open_shards"])
        return cls(**{**values, "open_shards": open_shards})


@dataclass
class _OpenShard:
    number: int  # among the reader's shards of the pass
    row: int  # the next
    records: Iterator[ImageRecord]


class StreamReader:
    """One of the readers that share a stream: its records, pass after pass, without end.

    Where there are fewer shards than readers, all read all shards, and each keeps another record
    of so many, as `datasets.distributed.split_dataset_by_node` does it.

    Args:
        source: the stream.
        seed: of the order.
        reader: number of this one.
        num_readers: that share the stream.
        shuffle_buffer: records of a block; 0 for the stored order.
        position: to go on from; the beginning by default.
        reading: is entered with the number of a shard while that is read.
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
        """Yield records, each with the position behind it.

        Raises:
            ValueError: if the shards that this reader is dealt have no records.
        """
        start, num_empty = self.position, 0
        while num_empty < MAX_EMPTY_PASSES:
            num_empty += 1
            for record, position in self.rest_of_pass(start):
                num_empty = 0
                yield record, position
            start = StreamPosition(start.epoch + 1)
        raise ValueError(
            f"reader {self.reader} of {self.num_readers} found no record in {num_empty} passes "
            f"over its part of {self.source.description}; use fewer processes and workers."
        )

    def rest_of_pass(
        self, position: StreamPosition
    ) -> Generator[tuple[ImageRecord, StreamPosition], None, None]:
        """Yield what is left of a pass."""
        records = _Records(self, position)
        block_size = max(1, self.shuffle_buffer)
        block: list[ImageRecord | None] = [*itertools.islice(records, block_size)]
        while block:
            behind = records.position(position)
            rng = np.random.default_rng(
                [self.seed, position.epoch, BLOCK_ORDER, self.reader, position.block]
            )
            upcoming: list[ImageRecord | None] = []
            for handed_out, place in enumerate(rng.permutation(len(block)), start=1):
                # a record comes in for each that goes out: no pause between two blocks
                upcoming.extend(itertools.islice(records, 1))
                record, block[place] = block[place], None
                if record is not None and handed_out > position.handed_out:
                    yield record, replace(position, handed_out=handed_out)
            block, position = upcoming, behind

    def shards_of_pass(self, epoch: int) -> list[int]:
        """Return the numbers of the shards that this reader reads in a pass, in their order."""
        shards = np.arange(self.source.num_shards)
        if self.shuffle_buffer > 0:
            shards = np.random.default_rng([self.seed, epoch, SHARD_ORDER]).permutation(shards)
        return (shards if self.splits_shards else shards[self.reader :: self.num_readers]).tolist()

    @property
    def splits_shards(self) -> bool:
        """Whether shards are shared record by record, as there are too few."""
        return self.source.num_shards < self.num_readers

    def read(self, shard: int, number: int, row: int) -> Iterator[ImageRecord]:
        """Yield this reader's records of a shard, from a row of them on."""
        if not self.splits_shards:
            return self.source.read_shard(shard, start=row)
        # not the first record of each shard to the same reader
        part = (self.reader + number) % self.num_readers
        return self.source.read_shard(shard, start=row, part=part, num_parts=self.num_readers)


class _Records:
    """The records of a pass as they are stored, but for the turns that open shards take."""

    def __init__(self, reader: StreamReader, position: StreamPosition):
        self._reader = reader
        self._shards = reader.shards_of_pass(position.epoch)
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
        """Return that of the block which begins here, after another one or as the first."""
        return StreamPosition(
            epoch=block.epoch,
            block=block.block + 1,
            open_shards=tuple((shard.number, shard.row) for shard in self._open),
            num_opened=self._num_opened,
        )


__all__ = ["StreamPosition", "StreamReader"]
