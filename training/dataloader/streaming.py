"""A stream in training: who reads which part of it, and where each reader stands at a checkpoint.

Every worker of the DataLoader of every process is a reader (data/stream_reader.py) with a part of
its own. Workers read ahead of the training, so the place that counts is the one behind the last
batch that the run has taken: it travels with the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from accelerate.utils import gather_object
from torch.utils.data import DataLoader

from ...data.dataset_source import StreamingImageSource
from ...data.stream_reader import StreamPosition
from .watchdog import WatchedLoader


@dataclass(frozen=True)
class StreamDivision:
    """How the readers share a stream; by `divide`.

    Args:
        source: the stream.
        num_processes: of the run.
        num_workers: readers of each process, at least 1.
        asked: readers of each process that there would be, had the stream enough shards.
    """

    source: StreamingImageSource
    num_processes: int
    num_workers: int
    asked: int

    @property
    def num_readers(self) -> int:
        """Of all processes."""
        return self.num_processes * self.num_workers

    def __str__(self) -> str:
        shards = self.source.num_shards
        text = f"{shards} shards for {self.num_processes} processes x {self.num_workers} workers"
        if shards < self.num_processes:
            return f"{text}, too few: every process reads them all and keeps its share of records"
        if self.num_workers < self.asked:
            return f"{text} (not {self.asked}: a worker needs a shard of its own)"
        return text


def divide(source: StreamingImageSource, num_processes: int, num_workers: int) -> StreamDivision:
    """Share a stream among the workers of all processes.

    Each has whole shards, dealt anew in each pass. With too few for all, the row groups of Parquet
    files are dealt out; if they are too few, too, a process has fewer workers; with fewer shards
    than processes, each process reads all of them, and keeps one record of so many.
    """
    asked = max(1, num_workers)
    if source.num_shards < num_processes * asked:
        source = source.resharded
    fitting = max(1, source.num_shards // num_processes)
    return StreamDivision(source, num_processes, min(asked, fitting), asked)


@dataclass(frozen=True)
class ReaderState:
    """Where a reader of a process stands.

    Args:
        samples: handed out since the run began.
        position: in the stream.
    """

    samples: int = 0
    position: StreamPosition = StreamPosition()

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {"samples": self.samples, "position": self.position.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ReaderState:
        """Read what `to_dict` gave."""
        return cls(values["samples"], StreamPosition.from_dict(values["position"]))


def readers_to_resume(
    saved: dict[str, Any] | None, division: StreamDivision, rank: int
) -> list[ReaderState]:
    """Return where the readers of a process stood at a checkpoint.

    Args:
        saved: of `StreamLoader.gathered_state`.
        division: of the stream now.
        rank: of the process.

    Raises:
        ValueError: if the stream had other shards, or was divided among other processes and
            workers, or the checkpoint does not say where they stood.
    """
    if saved is None:
        raise ValueError(
            "the checkpoint does not say where the readers of the stream stood: an earlier selfvit "
            "saved it. Start anew in another --output, from its weights with --init_from."
        )
    then = (saved["num_processes"], saved["num_workers"])
    now = (division.num_processes, division.num_workers)
    if then != now:
        raise ValueError(
            "a stream goes on with the readers that it had: {} processes x {} workers then, {} x "
            "{} now. ".format(*then, *now)
            + f"Launch {then[0]} processes with --num_workers {then[1]}, or start anew in another "
            "--output, with --init_from."
        )
    # after the readers: their number decides whether row groups are shards
    shards_now = division.source.num_shards
    if saved["num_shards"] != shards_now:
        raise ValueError(
            f"the data set changed since the checkpoint was saved: {saved['num_shards']} shards "
            f"then, {shards_now} now, of {division.source.description}. Bring the same back, or "
            "start anew with --init_from."
        )
    return [ReaderState.from_dict(values) for values in saved["readers"][rank]]


class StreamLoader(WatchedLoader):
    """Batches of a stream, and where its readers stood when the last one was taken.

    Args:
        readers: where those of this process stand.
        division: of the stream.
    """

    def __init__(
        self,
        *args: Any,
        readers: list[ReaderState],
        division: StreamDivision,
        **options: Any,
    ):
        super().__init__(*args, **options)
        self._readers = list(readers)
        self._division = division

    def __iter__(self) -> Iterator[Any]:
        """Yield batches, without end.

        Raises:
            TimeoutError: if a worker hangs.
        """
        for batch in super().__iter__():
            reader, state = batch.pop("reader")
            self._readers[reader] = state
            yield batch

    def gathered_state(self) -> dict[str, Any]:
        """Return where the readers of all processes stand; JSON can hold it.

        All processes must ask.
        """
        return {
            "num_shards": self._division.source.num_shards,
            "num_processes": self._division.num_processes,
            "num_workers": self._division.num_workers,
            "readers": gather_object([[reader.to_dict() for reader in self._readers]]),
        }


def stream_state(loader: DataLoader) -> dict[str, Any] | None:
    """Return `StreamLoader.gathered_state`; None where nothing is streamed."""
    return loader.gathered_state() if isinstance(loader, StreamLoader) else None


__all__ = [
    "ReaderState",
    "StreamDivision",
    "StreamLoader",
    "divide",
    "readers_to_resume",
    "stream_state",
]
