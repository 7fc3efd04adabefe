"""A DataLoader that says what it waits for: the file that hangs, instead of silence for ever."""

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
SECONDS_BETWEEN_LOOKS = 5.0  # as torch looks whether workers are alive, where no timeout is set


class ReadingBoard:
    """What each worker reads at the moment, and since when; in memory that they share.

    Args:
        num_workers: of the DataLoader; 0 if nobody watches them.
    """

    def __init__(self, num_workers: int):
        # (workers, 2): position in the source (of a stream: shard), or IDLE; seconds of the clock
        self._entries = torch.full((num_workers, 2), IDLE, dtype=torch.float64).share_memory_()

    @contextmanager
    def reading(self, position: int) -> Iterator[None]:
        """Note what this worker reads, for as long as it does."""
        self._note(position)
        try:
            yield
        finally:
            self._note(IDLE)

    def _note(self, position: float) -> None:
        worker = get_worker_info()
        if worker is not None and worker.id < len(self._entries):  # else nobody watches it
            # the time first: a new position with an old time would look like one that hangs
            self._entries[worker.id, 1] = time.monotonic()
            self._entries[worker.id, 0] = position

    def longest(self) -> tuple[int, float] | None:
        """Return the position that has been read the longest, and the seconds; None if all idle."""
        now = time.monotonic()
        reads = [
            (int(position), now - since)
            for position, since in self._entries.tolist()
            if position != IDLE
        ]
        return max(reads, key=lambda read: read[1], default=None)


class WatchedLoader(DataLoader):
    """Ends with an error that names the image, when a worker hangs on one.

    A worker that is slow, but goes from image to image, may take as long as it likes.

    Args:
        board: where the data set notes what it reads.
        name_of: what to call a position of the source.
        data_timeout: seconds that one image may take; 0 is for ever. Without workers there is
            nobody to watch.
    """

    def __init__(
        self,
        *args: Any,
        board: ReadingBoard,
        name_of: Callable[[int], str],
        data_timeout: float,
        **options: Any,
    ):
        options["timeout"] = SECONDS_BETWEEN_LOOKS if options["num_workers"] else 0
        super().__init__(*args, **options)
        self._data_timeout = data_timeout or math.inf
        self._board = board
        self._name_of = name_of

    def __iter__(self) -> Iterator[Any]:
        """Yield batches.

        Raises:
            TimeoutError: if a worker hangs.
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
                read = self._board.longest()
                seconds = time.monotonic() - waiting_since if read is None else read[1]
                if seconds < self._data_timeout:
                    continue
                name = "the next images" if read is None else self._name_of(read[0])
                raise TimeoutError(
                    f"reading {name} has taken {seconds:.0f} seconds: the disk, network or process "
                    "hangs. Mend or remove it, or give a longer --data-timeout (0 waits for ever). "
                    f"{RESUME_HINT}"
                ) from error
            yield batch
            waiting_since = time.monotonic()


__all__ = ["ReadingBoard", "WatchedLoader"]
