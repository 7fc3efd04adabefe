"""Functions that run in a forked process."""

import multiprocessing
import signal
from collections.abc import Callable
from typing import Any

from selfvit.data.workers import blocked_interrupts, initialize_worker, unblock_interrupts


def start_fork(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function in a fork of this process, and return the fork, a multiprocessing.Process.

    Earlier tests leave objects and thread pools here, and the fork has a copy of them. It must not
    free or use them, as they wait for threads that the fork does not have; so it starts as a worker
    does, with one thread. It takes SIGINT as a process in a terminal does, but not before
    `function` is called: the KeyboardInterrupt would go up through pytest, which would report from
    the fork that the tests were interrupted.
    """
    process = multiprocessing.get_context("fork").Process(
        target=_call, args=(function, args, kwargs)
    )
    with blocked_interrupts():
        process.start()
    return process


def _call(function: Callable[..., Any], args: Any, kwargs: Any) -> None:
    initialize_worker()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
    unblock_interrupts()
    function(*args, **kwargs)
