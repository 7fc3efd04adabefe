"""SIGTERM and Ctrl-C: a run saves at the end of its step or stops measuring, and ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator

# torchrun forwards the Ctrl-C that the terminal has sent to all processes already, so a second one
# only counts after this time.
SECONDS_TO_A_SECOND_CTRL_C = 2.0


class StopSignal:
    """Context manager that handles SIGTERM and SIGINT, and restores the earlier handlers.

    Until `defer` is called, a signal ends the process at once, since there is nothing to save. From
    then on, until `release`, it is recorded for `agreed`. A second Ctrl-C ends the process at once.
    What runs within `interrupting` is interrupted by the first signal.
    """

    def __init__(self) -> None:
        self._received = 0  # number of the signal
        self._received_at = 0.0
        self._deferring = False
        self._interrupting = False
        self._announcement = "saving at the end of this step, then stopping"
        self._handlers_before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is not threading.main_thread():
            return self  # Python handles signals in the main thread only
        for number in (signal.SIGTERM, signal.SIGINT):
            before = signal.getsignal(number)
            if before != signal.SIG_IGN:  # as in a background job of a shell
                self._handlers_before[number] = before
                signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def defer(self) -> None:
        """Record signals from now on, because there is something to save."""
        self._deferring = True

    def release(self) -> None:
        """End the process at once at a signal from now on, because everything is saved."""
        self._deferring = False

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """End the block at a signal, which is recorded; what follows the block is saving."""
        self._announcement = "measuring stops, and the model is saved"
        self._interrupting = True
        try:
            yield
        except KeyboardInterrupt:
            if not self._received:  # not from this handler
                raise
        finally:
            self._interrupting = False
            self._announcement = "saving the model, then stopping"

    def _receive(self, number: int, frame: FrameType | None) -> None:
        is_ctrl_c = number == signal.SIGINT
        now = time.monotonic()
        is_second = self._received == number and (
            now - self._received_at > SECONDS_TO_A_SECOND_CTRL_C
        )
        if is_ctrl_c and (is_second or not self._deferring):
            raise KeyboardInterrupt
        if not self._deferring:
            raise SystemExit(128 + number)
        if not self._received:
            self._received, self._received_at = number, now
            more = "; press Ctrl-C again to stop at once" if is_ctrl_c else ""
            # not print: a signal handler may run in the middle of another print
            os.write(2, f"\n{self._announcement}{more}\n".encode())
            if self._interrupting:
                raise KeyboardInterrupt

    def agreed(self, accelerator: Accelerator) -> int | None:
        """Return the signal to stop for, or None; collective, the same in all processes."""
        if accelerator.num_processes == 1:
            return self._received or None
        received = torch.tensor([self._received], device=accelerator.device)
        return int(accelerator.gather(received).max()) or None


def ignore_signals_in_worker() -> None:
    """Keep a worker of the DataLoader alive until the training process ends it.

    Ctrl-C, torchrun and cluster managers signal every process of a group, and without its workers a
    run could not finish its step. SIGTERM from the training process still ends the worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS, Windows
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    run = multiprocessing.parent_process()  # not the system's parent, which may be a fork server

    def wait_for_run() -> None:
        while run is not None and signal.sigwaitinfo({signal.SIGTERM}).si_pid != run.pid:
            pass
        os._exit(0)

    threading.Thread(target=wait_for_run, daemon=True).start()


__all__ = ["StopSignal", "ignore_signals_in_worker"]
