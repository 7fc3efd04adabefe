"""Kill worker processes while they read, as the kernel does when the memory is full."""

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterator

import psutil


@contextlib.contextmanager
def kills(*, seed: int, count: int, at_once: int = 1) -> Iterator[list[int]]:
    """Kill children of this process at random moments, from a thread.

    Args:
        seed: Seed of the moments, and of the choice of the children.
        count: Number of times.
        at_once: Number of children that are killed each time.

    Yields:
        Ids of the killed processes so far.
    """
    rng = random.Random(seed)
    before = {child.pid for child in psutil.Process().children()}
    ended = threading.Event()
    killed: list[int] = []

    def kill() -> None:
        for _ in range(count):
            found: list[int] = []
            while len(found) < at_once:
                if ended.is_set():
                    return
                time.sleep(rng.uniform(0.005, 0.05))
                children = psutil.Process().children()
                found = [child.pid for child in children if child.pid not in {*before, *killed}]
            for pid in rng.sample(found, at_once):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        ended.set()
        thread.join()
