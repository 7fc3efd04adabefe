"""What a run dies of, said so that one knows what to do: torch's own words name no cause."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from ...errors import one_line

GO_ON = "Nothing before the last checkpoint is lost: go on with --resume true."

# What gloo, NCCL and torch.distributed say when another process is gone or silent.
LOST_PROCESS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "remote process exited",
    "Watchdog caught collective operation timeout",
)

# A batch is handed over through a socket of the worker, where workers are not forked: what reading
# it raises, if the worker died in between. (The Hub's failures are a plain ConnectionError.)
WORKER_GONE = (ConnectionResetError, ConnectionRefusedError, EOFError)

# A dying process closes its sockets first, and is dead a little later.
SECONDS_TO_DIE = 5


@contextmanager
def explained_faults() -> Iterator[None]:
    """Turn torch's RuntimeErrors about other processes into errors that name cause and way on.

    Raises:
        ChildProcessError: if a worker of the DataLoader died.
        ConnectionError: if another process of the run died or hangs.
    """
    try:
        yield
    except WORKER_GONE as error:
        # Its death is signalled, and torch's handler raises then, wherever this process is: let it
        # be here, where it also says how the worker died, and not in what prints the error.
        try:
            time.sleep(SECONDS_TO_DIE)
        except RuntimeError as its_death:
            raise ChildProcessError(_worker_died(one_line(its_death))) from its_death
        raise ChildProcessError(
            _worker_died(f"DataLoader worker gave no batch ({error}).")
        ) from error
    except RuntimeError as error:
        text = one_line(error)
        if "DataLoader worker" in text and ("killed by" in text or "exited" in text):
            raise ChildProcessError(_worker_died(text)) from error
        if any(sign in text for sign in LOST_PROCESS):
            raise ConnectionError(
                "another process of this run died or hangs; its own output, or the launcher's, "
                f"says why. {GO_ON} ({text})"
            ) from error
        raise


def _worker_died(text: str) -> str:
    return (
        f"a process that loads images died: {text} If nobody killed it, memory was full: "
        f"use fewer --num_workers or a smaller batch_size. {GO_ON}"
    )


__all__ = ["GO_ON", "explained_faults"]
