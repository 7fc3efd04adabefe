"""Partition a stream among the workers of all processes, and save and restore their positions.

Each worker of each process is a reader (data/stream_reader.py) with its own part of the stream.
Workers read ahead of training. So each batch carries the position of its reader after it, and a
checkpoint has the positions after the last batches that the run has used.
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
class StreamPartition:
    """Partition of a stream among the readers of a run; made by `partition_stream`.

    Args:
        source: The stream.
        num_processes: Number of processes of the run.
        num_workers: Number of readers of each process, at least 1.
        requested_workers: Number of readers of each process if the stream had enough shards.
    """

    source: StreamingImageSource
    num_processes: int
    num_workers: int
    requested_workers: int

    @property
    def num_readers(self) -> int:
        """Number of readers of all processes."""
        return self.num_processes * self.num_workers

    def __str__(self) -> str:
        shards = self.source.num_shards
        text = f"{shards} shards for {self.num_processes} processes x {self.num_workers} workers"
        if shards < self.num_processes:
            return f"{text}; each process reads all shards and keeps its part of the records"
        if self.num_workers < self.requested_workers:
            return f"{text} (not {self.requested_workers}, as each worker needs its own shard)"
        return text


def partition_stream(
    source: StreamingImageSource, num_processes: int, num_workers: int
) -> StreamPartition:
    """Partition a stream among the workers of all processes.

    Readers get whole shards, in a new random assignment in each pass. If there are fewer shards
    than readers, the row groups of Parquet files serve as shards. If there are still too few, each
    process has fewer workers. If there are fewer shards than processes, each process reads all
    shards and keeps every `num_processes`-th record.

    Args:
        source: The stream.
        num_processes: Number of processes of the run.
        num_workers: Requested number of workers of each process; 0 counts as 1.
    """
    requested = max(1, num_workers)
    if source.num_shards < num_processes * requested:
        source = source.resharded
    possible = max(1, source.num_shards // num_processes)
    return StreamPartition(source, num_processes, min(requested, possible), requested)


@dataclass(frozen=True)
class ReaderState:
    """Progress of a reader.

    Args:
        samples: Number of samples that it has yielded in the run.
        position: Position in the stream.
    """

    samples: int = 0
    position: StreamPosition = StreamPosition()

    def to_dict(self) -> dict[str, Any]:
        """Return the state as values that JSON can represent."""
        return {"samples": self.samples, "position": self.position.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ReaderState:
        """Return the state from the values of `to_dict`."""
        return cls(values["samples"], StreamPosition.from_dict(values["position"]))


def restore_readers(
    saved: dict[str, Any] | None, partition: StreamPartition, rank: int
) -> list[ReaderState]:
    """Return the states of the readers of a process from a checkpoint.

    Args:
        saved: State from `StreamLoader.gathered_state`; None if the checkpoint has none.
        partition: Partition of the stream in the resumed run.
        rank: Rank of the process.

    Raises:
        ValueError: If the checkpoint has no positions of readers, or it has another number of
            processes, workers or shards.
    """
    if saved is None:
        raise ValueError(
            "a stream resumes from saved positions of its readers, but the checkpoint has none, as "
            "an earlier version of selfvit saved it. Start a new run from its weights, with "
            "--init-from and another --output."
        )
    old = (saved["num_processes"], saved["num_workers"])
    new = (partition.num_processes, partition.num_workers)
    if old != new:
        raise ValueError(
            "a stream resumes only with the same number of processes and workers: the checkpoint "
            f"has {old[0]} processes x {old[1]} workers, this run {new[0]} x {new[1]}. Launch "
            f"{old[0]} processes with --num-workers {old[1]}, or start a new run with --init-from "
            "and another --output."
        )
    # Checked after the readers, as their number decides whether row groups serve as shards.
    num_shards = partition.source.num_shards
    if saved["num_shards"] != num_shards:
        raise ValueError(
            f"the dataset has changed since the checkpoint was saved: it had "
            f"{saved['num_shards']} shards, and {partition.source.description} has {num_shards}. "
            "Restore it, or start a new run with --init-from and another --output."
        )
    return [ReaderState.from_dict(values) for values in saved["readers"][rank]]


class StreamLoader(WatchedLoader):
    """DataLoader of a stream that knows the positions of its readers after the last batch.

    Args:
        args: Positional arguments of `WatchedLoader`.
        readers: States of the readers of this process at the start.
        partition: Partition of the stream.
        options: Keyword arguments of `WatchedLoader`.
    """

    def __init__(
        self,
        *args: Any,
        readers: list[ReaderState],
        partition: StreamPartition,
        **options: Any,
    ):
        super().__init__(*args, **options)
        self._readers = list(readers)
        self._partition = partition

    def __iter__(self) -> Iterator[Any]:
        """Yield batches without end.

        Raises:
            TimeoutError: If a worker hangs.
        """
        for batch in super().__iter__():
            reader, state = batch.pop("reader")
            self._readers[reader] = state
            yield batch

    def gathered_state(self) -> dict[str, Any]:
        """Return the states of the readers of all processes, as JSON values; collective."""
        return {
            "num_shards": self._partition.source.num_shards,
            "num_processes": self._partition.num_processes,
            "num_workers": self._partition.num_workers,
            "readers": gather_object([[reader.to_dict() for reader in self._readers]]),
        }


def stream_state(loader: DataLoader) -> dict[str, Any] | None:
    """Return the state of a stream to save in a checkpoint, None for other data; collective."""
    return loader.gathered_state() if isinstance(loader, StreamLoader) else None


__all__ = [
    "ReaderState",
    "StreamLoader",
    "StreamPartition",
    "partition_stream",
    "restore_readers",
    "stream_state",
]
