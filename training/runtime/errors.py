"""Translate low-level torch errors into messages that name the cause and the fix."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from ...errors import one_line

RESUME_HINT = "Nothing before the last checkpoint is lost: continue with --resume."

# Messages of gloo, NCCL and torch.distributed when another process has exited or hangs.
LOST_PROCESS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "remote process exited",
    "Watchdog caught collective operation timeout",
)

# If workers are not forked, a worker sends a batch through a socket. These are raised when the
# worker died in between. (Failures of the Hub are plain ConnectionErrors.)
WORKER_LOST = (ConnectionResetError, ConnectionRefusedError, EOFError)

# A dying process closes its sockets shortly before it is reported dead.
SECONDS_TO_DIE = 5


@contextmanager
def translate_errors() -> Iterator[None]:
    """Translate torch's RuntimeErrors about other processes.

    Raises:
        ChildProcessError: If a worker of the DataLoader died.
        ConnectionError: If another process of the run died or hangs.
    """
    try:
        yield
    except WORKER_LOST as error:
        # torch's SIGCHLD handler raises wherever this process is when the death is reported. Wait
        # for it here, since it also says how the worker died.
        try:
            time.sleep(SECONDS_TO_DIE)
        except RuntimeError as death:
            raise ChildProcessError(_worker_died(one_line(death))) from death
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
                f"has the reason. {RESUME_HINT} ({text})"
            ) from error
        raise


def _worker_died(text: str) -> str:
    return (
        f"a process that loads images died: {text} If nobody killed it, the memory was full: use "
        f"fewer --num-workers or a smaller --batch-size. {RESUME_HINT}"
    )


__all__ = ["RESUME_HINT", "translate_errors"]
