"""SIGTERM and Ctrl-C: a run saves at the end of its step, and stops.

Exit codes are the shell's: 143 after SIGTERM, 130 after Ctrl-C (128 and the number of the signal).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator

# torchrun hands on the Ctrl-C that the terminal has already sent to all: that is not a second one.
SECONDS_TO_A_SECOND_CTRL_C = 2.0


class Interruption:
    """Takes SIGTERM and SIGINT for a run, as a context manager; the handlers before come back.

    Until `defer` is called they end the process at once, since there is nothing to save; from then
    on they are noted for `agreed`. A second Ctrl-C ends the process at once, too.
    """

    def __init__(self) -> None:
        self._received = 0  # number of the signal
        self._received_at = 0.0
        self._deferring = False
        self._handlers_before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is not threading.main_thread():
            return self  # Python lets no other thread take signals
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
        """From here on there is something to save: signals wait for the end of the step."""
        self._deferring = True

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
            more = ", Ctrl-C again ends it at once" if is_ctrl_c else ""
            # not print: a handler may run in the middle of another one's
            os.write(2, f"\nthe run saves at the end of this step and stops{more}\n".encode())

    def agreed(self, accelerator: Accelerator) -> int:
        """Return the signal to stop for, or 0; the same in all processes, which all must ask."""
        if accelerator.num_processes == 1:
            return self._received
        received = torch.tensor([self._received], device=accelerator.device)
        return int(accelerator.gather(received).max())


def leave_signals_to_the_run() -> None:
    """Keep a worker of the DataLoader alive, until the process that feeds on it says otherwise.

    Ctrl-C, torchrun and cluster managers signal every process of a group: without its workers a run
    could not finish its step. SIGTERM from the run itself ends the worker, as it would have.
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


__all__ = ["Interruption", "leave_signals_to_the_run"]
