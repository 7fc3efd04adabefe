"""DataLoader with a timeout that names the image a worker hangs on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, get_worker_info

from ..runtime.errors import RESUME_HINT

IDLE = -1.0
POLL_SECONDS = 5.0  # torch checks as often whether workers are alive, if it has no timeout


class ReadingBoard:
    """Shared memory in which each worker writes what it reads, and since when.

    Args:
        num_workers: Number of workers of the DataLoader; 0 if they are not watched.
    """

    def __init__(self, num_workers: int):
        # (workers, 2): position in the source (for a stream: shard) or IDLE; start time in seconds
        self._entries = torch.full((num_workers, 2), IDLE, dtype=torch.float64).share_memory_()

    @contextmanager
    def reading(self, position: int) -> Iterator[None]:
        """Record that this worker reads a position, until the context ends."""
        self._record(position)
        try:
            yield
        finally:
            self._record(IDLE)

    def _record(self, position: float) -> None:
        worker = get_worker_info()
        if worker is not None and worker.id < len(self._entries):  # else it is not watched
            # Time first: a new position with an old time would look like a read that hangs.
            self._entries[worker.id, 1] = time.monotonic()
            self._entries[worker.id, 0] = position

    def longest_read(self) -> tuple[int, float] | None:
        """Return the position and seconds of the longest current read; None if all are idle."""
        now = time.monotonic()
        reads = [
            (int(position), now - since)
            for position, since in self._entries.tolist()
            if position != IDLE
        ]
        return max(reads, key=lambda read: read[1], default=None)


class WatchedLoader(DataLoader):
    """DataLoader that fails with the name of the image if a worker hangs on it.

    The limit is for one image. A slow worker that makes progress may take any time for a batch.

    Args:
        args: Positional arguments of `DataLoader`.
        board: Board that the dataset writes its reads on.
        name_of: Function that returns the name of a position in the source.
        data_timeout: Seconds that reading one image may take; 0 means no limit. Without workers,
            nothing is watched.
        options: Keyword arguments of `DataLoader`.
    """

    def __init__(
        self,
        *args: Any,
        board: ReadingBoard,
        name_of: Callable[[int], str],
        data_timeout: float,
        **options: Any,
    ):
        options["timeout"] = POLL_SECONDS if options["num_workers"] else 0
        super().__init__(*args, **options)
        self._data_timeout = data_timeout or math.inf
        self._board = board
        self._name_of = name_of

    def __iter__(self) -> Iterator[Any]:
        """Yield batches.

        Raises:
            TimeoutError: If a worker hangs.
        """
        batches = super().__iter__()
        waiting_since = time.monotonic()
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if "timed out" not in str(error):
                    raise
                read = self._board.longest_read()
                seconds = time.monotonic() - waiting_since if read is None else read[1]
                if seconds < self._data_timeout:
                    continue
                name = "the next images" if read is None else self._name_of(read[0])
                raise TimeoutError(
                    f"reading {name} has taken {seconds:.0f} seconds: the disk, the network or the "
                    "process hangs. Repair or remove the file, or set a longer --data-timeout (0 "
                    f"means no limit). "
                    f"{RESUME_HINT}"
                ) from error
            yield batch
            waiting_since = time.monotonic()


__all__ = ["ReadingBoard", "WatchedLoader"]
