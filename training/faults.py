"""What a run dies of, said so that one knows what to do: torch's own words name no cause."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch.distributed as dist
from accelerate import Accelerator

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

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


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
            raise ChildProcessError(_worker_died(_one_line(its_death))) from its_death
        raise ChildProcessError(
            _worker_died(f"DataLoader worker gave no batch ({error}).")
        ) from error
    except RuntimeError as error:
        text = _one_line(error)
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


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def is_disk_full(error: BaseException, folder: Path) -> bool:
    """Say whether an error of writing is due to a full disk, or quota.

    torch and safetensors do not raise OSError: of theirs, the words and the free space tell.
    """
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, OSError) and chain.errno in DISK_FULL:
            return True
        if "No space left" in str(chain) or "quota exceeded" in str(chain).lower():
            return True
        chain = chain.__cause__ or chain.__context__
    is_of_a_writer = type(error).__name__ == "SafetensorError" or any(
        name in str(error) for name in ("PytorchStreamWriter", "inline_container", "iostream error")
    )
    return is_of_a_writer and shutil.disk_usage(folder).free < 2**20


def meet(accelerator: Accelerator) -> None:
    """Wait for the other processes: who leaves while others are on their way breaks theirs.

    gloo raises in a barrier that all have reached, if another process is gone before this one has
    woken up.
    """
    with suppress(RuntimeError):
        if accelerator.num_processes > 1:
            accelerator.wait_for_everyone()
        elif dist.is_available() and dist.is_initialized():  # launched together, to train alone
            dist.barrier()


def end_together(accelerator: Accelerator) -> None:
    """Leave a run whose files are all written, with the others."""
    meet(accelerator)
    accelerator.end_training()


__all__ = ["GO_ON", "end_together", "explained_faults", "is_disk_full", "meet"]
