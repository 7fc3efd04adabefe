"""Training in processes of their own, which can be killed, forked from one that imported all."""

from __future__ import annotations

import itertools
import multiprocessing
import os
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
from selfvit.cli import app

PATIENCE = 240  # seconds, for machines with other things to do

# Not fork: torch cannot train in a process forked from one that has trained.
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload([__name__])

Hook = Callable[[str, tuple[Any, ...]], None]  # of sys.addaudithook: an event and its arguments


@dataclass
class TrainingProcess:
    """A run that was started, the leader of a group of processes."""

    process: BaseProcess
    printed_to: Path

    @property
    def printed(self) -> str:
        """What it and its workers wrote to the terminal."""
        return self.printed_to.read_text(errors="replace")

    def signal_group(self, number: int) -> None:
        """Signal it and its workers, as a terminal, torchrun and cluster managers do."""
        os.killpg(self.process.pid, number)

    def exit_code(self) -> int:
        """Wait for its end; minus the signal's number if one ended it."""
        self.process.join(PATIENCE)
        if self.process.exitcode is None:
            self.signal_group(signal.SIGKILL)
            raise AssertionError(f"it hangs: {self.printed}")
        return self.process.exitcode


def start_training(
    command: list[str],
    printed_to: Path,
    hook: Hook | None = None,
    before: Callable[[], None] | None = None,
    context: ForkServerContext | SpawnContext = FORKSERVER,
    **environment: str,
) -> TrainingProcess:
    """Start `selfvit train` with a command line, on the CPU; `before` is called there first.

    WORKERS is how workers of the DataLoader are started; by default as Python did up to 3.13.
    What a library reads of the environment when it is imported takes a spawned process.
    """
    environment = {"ACCELERATE_USE_CPU": "true", "WORKERS": "fork", **environment}
    process = context.Process(target=_train, args=(command, printed_to, hook, before, environment))
    process.start()
    return TrainingProcess(process, printed_to)


def start_two(
    command: list[str], folder: Path, hooks: tuple[Hook | None, ...] = (None, None)
) -> list[TrainingProcess]:
    """Start a run of two processes without a launcher that would watch over them."""
    return start_several(command, folder, hooks)


def free_port() -> str:
    """Return a port that nobody listens on."""
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
    """Start a run of as many processes as hooks are given."""
    launched = launched_environments(len(hooks))
    return [
        start_training(
            command, folder / f"printed-{rank}.txt", hook, before, **environment, **launched[rank]
        )
        for rank, hook in enumerate(hooks)
    ]


def launched_environments(world_size: int) -> list[dict[str, str]]:
    """Return the variables that a launcher sets, for each of its processes."""
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
    # as in a terminal; in the background of a shell script, Ctrl-C is ignored
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
    """Wait for a condition while a run goes on."""
    deadline = time.monotonic() + PATIENCE
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
    """Counts accesses to files since the first checkpoint was begun."""

    count: int = -1

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not _changes_files(event, arguments):
            return
        if self.count >= 0 or "/.unfinished-0" in str(arguments[0]):
            self.count += 1
            self.before(self.count, event, arguments)

    def before(self, number: int, event: str, arguments: tuple[Any, ...]) -> None:
        """Do something before an access, numbered from 0."""


@dataclass
class KilledInSave(SaveWatcher):
    """SIGKILL just before an access to files."""

    at: int = 0

    def before(self, number: int, event: str, arguments: tuple[Any, ...]) -> None:
        if number == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class NotedSaves(SaveWatcher):
    """Writes each access to files down, a line of event and path."""

    path: Path = Path()

    def before(self, number: int, event: str, arguments: tuple[Any, ...]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            print(event, arguments[0], file=file)


@dataclass
class AtLogLine:
    """Does something when the n-th line of the log is about to be written, at the end of a step."""

    number: int
    action: Callable[[], None]
    count: int = 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).endswith("log.jsonl") and arguments[1] == "a":
            self.count += 1
            if self.count == self.number:
                self.action()


@dataclass
class Wait:
    """Tells that it waits by a file, and goes on when that is gone."""

    path: Path

    def __call__(self) -> None:
        self.path.touch()
        for _ in itertools.takewhile(lambda _: self.path.exists(), itertools.count()):
            time.sleep(0.005)


def kill_self() -> None:
    """As the machine does when memory is full."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_a_worker() -> None:
    """Kill a worker of the DataLoader."""
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
