"""Functions that run in a forked process."""

import gc
import multiprocessing
from collections.abc import Callable
from typing import Any


def start_fork(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function in a fork of this process, and return the fork, a multiprocessing.Process.

    Earlier tests leave objects here, and the fork has a copy of them. It must not free them: some
    wait for threads that the fork does not have.
    """
    process = multiprocessing.get_context("fork").Process(
        target=_call, args=(function, args, kwargs)
    )
    process.start()
    return process


def _call(function: Callable[..., Any], args: Any, kwargs: Any) -> None:
    gc.freeze()
    function(*args, **kwargs)
