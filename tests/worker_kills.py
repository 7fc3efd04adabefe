"""Kill worker processes while they read, as the kernel does when the memory is full."""

import contextlib
import random
import threading
import time
from collections.abc import Iterator

import psutil


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """Return the forks of a process."""
    with contextlib.suppress(psutil.NoSuchProcess):
        command = process.cmdline()
        return [child for child in process.children() if _cmdline(child) == command]
    return []


def kill_workers(rng: random.Random, at_once: int = 1, pid: int | None = None) -> int:
    """Kill random forks of a process, and return their number.

    Args:
        rng: Random numbers.
        at_once: Number of forks to kill; all if there are fewer.
        pid: Process; this one by default.
    """
    workers = workers_of(psutil.Process(pid))
    for worker in rng.sample(workers, min(at_once, len(workers))):
        worker.kill()
    return min(at_once, len(workers))


@contextlib.contextmanager
def one_kill(seed: int, *, num_workers: int, at_once: int = 1) -> Iterator[list[int]]:
    """Kill forks of this process once, from a thread, up to 0.3 seconds after they have started.

    Args:
        seed: Seed of the moment and of the choice.
        num_workers: Number of forks to wait for.
        at_once: Number of forks to kill.

    Yields:
        Empty list, to which the number of killed forks is added.
    """
    rng = random.Random(seed)
    ended = threading.Event()
    killed: list[int] = []

    def kill() -> None:
        while len(workers_of(psutil.Process())) < num_workers:
            if ended.wait(0.005):
                return
        time.sleep(rng.uniform(0, 0.3))
        killed.append(kill_workers(rng, at_once))

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        ended.set()
        thread.join()


def _cmdline(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.cmdline()
    return []
