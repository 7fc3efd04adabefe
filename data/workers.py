"""Start and initialization of worker processes that decode images."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

CAN_BLOCK = hasattr(signal, "pthread_sigmask")  # not on Windows, which does not fork


def initialize_worker(worker_id: int = 0) -> None:
    """Prepare a worker process, the `worker_init_fn` of a DataLoader.

    A worker uses one thread, because the workers already run in parallel. Objects of the main
    process are never freed here by garbage collection. Freeing one can wait forever: an inference
    session of ONNX Runtime waits for its threads, which a forked process does not have.

    Args:
        worker_id: Index of the worker, passed by DataLoader; unused.
    """
    gc.freeze()
    gc.enable()
    torch.set_num_threads(1)
    if "cv2" in sys.modules:  # OpenCV is optional
        sys.modules["cv2"].setNumThreads(0)


@contextmanager
def blocked_interrupts() -> Iterator[None]:
    """Block SIGINT in this thread, and in a process that it starts until `unblock_interrupts`.

    Until multiprocessing has called the function of a forked process, a KeyboardInterrupt in it
    would continue with the `except` and `finally` of the main process.
    """
    if not CAN_BLOCK:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock_interrupts() -> None:
    """Unblock SIGINT in a process that was started with `blocked_interrupts`."""
    if CAN_BLOCK:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


__all__ = ["blocked_interrupts", "initialize_worker", "unblock_interrupts"]
