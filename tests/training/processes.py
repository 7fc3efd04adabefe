"""Training runs in separate processes that tests can signal and kill.

The processes are forked from a server process that has already imported selfvit.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

import selfvit.training.train  # noqa: F401 - imported before processes are forked
import tests.warm_caches  # noqa: F401
from selfvit.cli import app

TIMEOUT = 240  # seconds; long, for busy machines

# Not fork: torch cannot train in a process forked from one that has trained.
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload([__name__])

Hook = Callable[[str, tuple[Any, ...]], None]  # for sys.addaudithook: event name and arguments


@dataclass
class TrainingProcess:
    """Started training process, the leader of a process group with its workers."""

    process: BaseProcess
    printed_to: Path

    @property
    def printed(self) -> str:
        """Return the output of the process and its workers (stdout and stderr)."""
        return self.printed_to.read_text(errors="replace")

    def signal_group(self, number: int) -> None:
        """Send a signal to the process and its workers, as terminals and cluster managers do."""
        os.killpg(self.process.pid, number)

    def exit_code(self) -> int:
        """Wait for the process to end; return its exit code, or minus the signal that killed it."""
        self.process.join(TIMEOUT)
        if self.process.exitcode is None:
            self.signal_group(signal.SIGKILL)
            raise AssertionError(f"the process hangs: {self.printed}")
        return self.process.exitcode


def start_training(
    command: list[str],
    printed_to: Path,
    hook: Hook | None = None,
    before: Callable[[], None] | None = None,
    context: ForkServerContext | SpawnContext = FORKSERVER,
    **environment: str,
) -> TrainingProcess:
    """Start `selfvit train` on the CPU in a new process.

    Args:
        command: Arguments of `selfvit train`.
        printed_to: File for stdout and stderr.
        hook: Audit hook of the new process.
        before: Function to call in the new process before training.
        context: Start method of the process. Libraries that read the environment on import need
            a spawned process.
        environment: Environment variables. WORKERS sets the start method of DataLoader workers
            ("fork" by default, the default of Python up to 3.13).
    """
    environment = {"ACCELERATE_USE_CPU": "true", "WORKERS": "fork", **environment}
    process = context.Process(target=_train, args=(command, printed_to, hook, before, environment))
    process.start()
    return TrainingProcess(process, printed_to)


def start_two(
    command: list[str], folder: Path, hooks: tuple[Hook | None, ...] = (None, None)
) -> list[TrainingProcess]:
    """Start a run of two processes without a launcher, so that nothing else ends them."""
    return start_several(command, folder, hooks)


def run_two(command: list[str], folder: Path) -> tuple[list[int], str]:
    """Run two processes to their end; return their exit codes and the output of both."""
    processes = start_two(command, folder)
    codes = [training.exit_code() for training in processes]
    return codes, "".join(training.printed for training in processes)


def call_in_two(function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Call `function(rank, *arguments)` in two processes, and wait until they end."""
    torch.multiprocessing.start_processes(function, arguments, 2, start_method="forkserver")


def free_port() -> str:
    """Return an unused port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def start_several(
    command: list[str],
    folder: Path,
    hooks: tuple[Hook | None, ...],
    before: Callable[[], None] | None = None,
    **environment: str,
) -> list[TrainingProcess]:
    """Start a run with one process for each hook."""
    launched = launched_environments(len(hooks))
    return [
        start_training(
            command, folder / f"printed-{rank}.txt", hook, before, **environment, **launched[rank]
        )
        for rank, hook in enumerate(hooks)
    ]


def launched_environments(world_size: int) -> list[dict[str, str]]:
    """Return the environment variables that a launcher sets for each of its processes."""
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
    }
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]


def _train(
    command: list[str],
    printed_to: Path,
    hook: Hook | None,
    before: Callable[[], None] | None,
    environment: dict[str, str],
) -> None:
    os.setsid()
    # as in a terminal; background jobs of a shell script ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(printed_to, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    multiprocessing.set_start_method(environment["WORKERS"], force=True)
    torch.set_num_threads(1)
    if hook is not None:
        sys.addaudithook(hook)
    if before is not None:
        before()
    app(["train", *command])


def wait_until(condition: Callable[[], bool], training: TrainingProcess) -> None:
    """Wait until the condition is true; fail if the run ends before that."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if not training.process.is_alive() or time.monotonic() > deadline:
            training.process.kill()
            raise AssertionError(training.printed)
        time.sleep(0.005)


def _changes_files(event: str, arguments: tuple[Any, ...]) -> bool:
    if event == "open":
        return isinstance(arguments[0], str) and "checkpoints" in arguments[0]
    return event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")


@dataclass
class SaveWatcher:
    """Audit hook that counts file accesses from the start of the first save."""

    count: int = -1

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not _changes_files(event, arguments):
            return
        if self.count >= 0 or "/.unfinished-0" in str(arguments[0]):
            self.count += 1
            self.before_access(self.count, event, arguments)

    def before_access(self, number: int, event: str, arguments: tuple[Any, ...]) -> None:
        """Run before each file access, numbered from 0."""


@dataclass
class KillDuringSave(SaveWatcher):
    """Kill the process with SIGKILL just before file access number `at`."""

    at: int = 0

    def before_access(self, number: int, event: str, arguments: tuple[Any, ...]) -> None:
        if number == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class SaveRecorder(SaveWatcher):
    """Before each file access, write a line with its event and path, and copy the checkpoints.

    The copy, in a folder with the number of the access, is what a killed run would leave.
    """

    path: Path = Path()
    checkpoints: Path = Path()
    copies: Path = Path()
    is_copying: bool = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_copying:
            super().__call__(event, arguments)

    def before_access(self, number: int, event: str, arguments: tuple[Any, ...]) -> None:
        self.is_copying = True
        with open(self.path, "a", encoding="utf-8") as file:
            print(event, arguments[0], file=file)
        if self.checkpoints.is_dir():
            shutil.copytree(self.checkpoints, self.copies / str(number))
        self.is_copying = False


@dataclass
class AtLogLine:
    """Call a function before log line `number` is written, which happens at the end of a step."""

    number: int
    action: Callable[[], None]
    count: int = 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).endswith("log.jsonl") and arguments[1] == "a":
            self.count += 1
            if self.count == self.number:
                self.action()


@dataclass
class Pause:
    """Create a file and wait until the test deletes it."""

    path: Path

    def __call__(self) -> None:
        self.path.touch()
        for _ in itertools.takewhile(lambda _: self.path.exists(), itertools.count()):
            time.sleep(0.005)


def kill_self() -> None:
    """Kill this process with SIGKILL, as the kernel does when memory is full."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_a_worker() -> None:
    """Kill one worker of the DataLoader."""
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
