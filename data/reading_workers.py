"""Worker processes that read images, and that may be killed at any time.

A DataLoader of torch cannot continue without a dead worker, raises the error wherever the main
process happens to be (in a signal handler), and shares one queue whose lock a killed worker may
hold. Here every worker has a pipe of its own, and shared memory says which image it reads.
"""

# An item is a position and what is read there: the position itself, or a record of a stream.

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import logging
import multiprocessing.pool
import multiprocessing.util
import os
import pickle
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.reduction import ForkingPickler
from multiprocessing.sharedctypes import RawValue
from typing import Any

import torch.multiprocessing

from ..errors import shorten
from .workers import blocked_interrupts, initialize_worker, unblock_interrupts

logger = logging.getLogger(__name__)

IDLE, SENDING = -1, -2  # in place of the position of an image
TASKS_PER_WORKER = 2  # one is read, the other one waits
MAX_READS = 2  # attempts to read an image whose worker was killed
MAX_DEATHS_IN_A_ROW = 40  # deaths of workers without any image read in between
MAX_IDLE_DEATHS_IN_A_ROW = 8  # the same, of workers that were not reading an image
MORE_DEATHS_PER_WORKER = 4  # added to both: all workers may be killed at once
SECONDS_BETWEEN_CHECKS = 1.0  # of a worker, whether the main process is alive
SECONDS_OF_SILENCE = 60.0  # of all workers, before a warning
NO_MEMORY_EXIT = errno.ENOMEM
SECONDS_TO_DIE = 5.0  # between the closing of a pipe and the end of its process


class LostWorkersError(ChildProcessError):
    """Too many workers in a row were killed; all batches before were returned."""


@dataclass(frozen=True)
class ReadItem:
    """One image after reading.

    Args:
        id: Name of the image.
        label: Label of the image, or None.
        pixels: Prepared image; None if it cannot be read.
        reason: Reason why the image cannot be read, or None.
        seconds: Time of a frame in its video, or None.
    """

    id: str
    label: int | None
    pixels: Any = None
    reason: str | None = None
    seconds: float | None = None


Item = tuple[int, Any]


@dataclass(frozen=True)
class Reading:
    """Functions that read images; every worker has a copy.

    Args:
        read: Function that reads what an item holds; it is passed a function to call with the name
            of the image as soon as it is known.
        name_of: Function that returns the name of what an item holds without reading the image.
        pack: Function that makes a batch of what was read.
    """

    read: Callable[[Any, Callable[[str], None]], ReadItem]
    name_of: Callable[[Any], str]
    pack: Callable[[list[ReadItem]], Any]


@dataclass(frozen=True)
class _Task:
    """Batch to read; without a number, one image whose worker was killed.

    Args:
        number: Number of the batch, or None.
        items: Items to read.
        is_whole: Whether the items are the whole batch, so that the worker packs it.
        through_pipe: Whether to send the result through the pipe and not as shared memory.
    """

    number: int | None
    items: Sequence[Item]
    is_whole: bool
    through_pipe: bool


class _Slot(ctypes.Structure):
    """Shared memory in which a worker writes what it is doing."""

    _fields_ = [("position", ctypes.c_int64), ("name", ctypes.c_char * 4096)]


@dataclass(eq=False)
class _Worker:
    process: Any
    connection: Any
    slot: Any
    tasks: deque[_Task] = field(default_factory=deque)


class ReadingWorkers:
    """Processes that read batches, in order.

    A worker that dies is replaced. The image that it was reading is read once more, while no other
    image is read; if that worker dies too, the image counts as unreadable.

    Args:
        reading: Functions that read.
        batches: Items of each batch; taken when a worker can read them.
        num_workers: Number of processes, at least 1.
    """

    def __init__(self, reading: Reading, batches: Iterable[Sequence[Item]], num_workers: int):
        self._reading = reading
        self._batches = iter(batches)
        self._num_workers = num_workers
        self._workers: list[_Worker] = []
        self._open: dict[int, Sequence[Item]] = {}  # batches that are not yielded yet, by number
        self._done: dict[int, Any] = {}  # results of these
        self._known: dict[int, ReadItem] = {}  # images read alone, by position
        self._again: set[int] = set()  # batches that a dead worker had
        self._suspects: deque[Item] = deque()  # images whose worker was killed once
        self._reads: Counter[int] = Counter()
        self._next_new = self._next_out = 0
        self._deaths = self._idle_deaths = 0  # in a row
        self._through_pipe = False
        self._has_warned = False

    def __iter__(self) -> Iterator[Any]:
        """Yield what `reading.pack` made of each batch.

        Raises:
            LostWorkersError: If too many workers in a row were killed.
            Exception: Any error that `reading.read` or `batches` raises.
        """
        # Workers share a temporary folder that exists before them. A killed worker would not remove
        # one of its own.
        multiprocessing.util.get_temp_dir()
        try:
            self._workers = [self._start() for _ in range(self._num_workers)]
            self._hand_out()
            while self._next_out in self._open:
                while self._next_out not in self._done:
                    self._wait()
                    self._hand_out()
                result = self._done.pop(self._next_out)
                del self._open[self._next_out]
                self._next_out += 1
                if isinstance(result, BaseException):
                    raise result
                self._hand_out()
                yield result
        finally:
            for worker in self._workers:
                worker.process.kill()
            for worker in self._workers:
                worker.process.join()
                worker.connection.close()

    def _start(self) -> _Worker:
        ours, theirs = torch.multiprocessing.Pipe()
        slot = RawValue(_Slot, IDLE, b"")
        process = torch.multiprocessing.Process(
            target=_work, args=(ours, theirs, slot, self._reading, os.getpid()), daemon=True
        )
        with _no_garbage_collection(), blocked_interrupts():  # the worker enables both again
            process.start()
        theirs.close()  # a dead worker then closes the pipe
        return _Worker(process, ours, slot)

    def _hand_out(self) -> None:
        """Give tasks to all workers that can take one; an image whose worker died is read alone."""
        if self._suspects:
            if not any(worker.tasks for worker in self._workers):
                self._send(self._workers[0], None, [self._suspects.popleft()])
            return
        if any(task.number is None for worker in self._workers for task in worker.tasks):
            return
        while True:
            worker = min(self._workers, key=lambda worker: len(worker.tasks))
            if len(worker.tasks) >= TASKS_PER_WORKER:
                return
            number = self._next_batch()
            if number is None:
                return
            new = [item for item in self._open[number] if item[0] not in self._known]
            self._send(worker, number, new)

    def _next_batch(self) -> int | None:
        """Return the number of the next batch to read; None if there is none for now."""
        if self._again:
            number = min(self._again)
            self._again.remove(number)
            return number
        if self._next_new >= self._next_out + TASKS_PER_WORKER * self._num_workers:
            return None
        try:
            batch = next(self._batches, None)
        except Exception as error:  # raised after the batches before
            self._batches = iter(())
            batch, self._done[self._next_new] = [], error
        if batch is None:
            return None
        number, self._next_new = self._next_new, self._next_new + 1
        self._open[number] = batch
        return None if number in self._done else number

    def _send(self, worker: _Worker, number: int | None, items: Sequence[Item]) -> None:
        is_whole = number is not None and len(items) == len(self._open[number])
        task = _Task(number, items, is_whole, self._through_pipe)
        worker.tasks.append(task)
        with contextlib.suppress(OSError):  # of a dead worker, which `_wait` will find
            worker.connection.send(task)

    def _wait(self) -> None:
        """Wait for a result or a death, and take in all that there are."""
        of_pipe = {worker.connection: worker for worker in self._workers}
        of_sentinel = {worker.process.sentinel: worker for worker in self._workers}
        ready = connection.wait([*of_pipe, *of_sentinel], SECONDS_OF_SILENCE)
        if not ready:
            self._warn_of_silence()
        for worker in [worker for pipe, worker in of_pipe.items() if pipe in ready]:
            self._receive(worker)
        for worker in [of_sentinel[sentinel] for sentinel in ready if sentinel in of_sentinel]:
            while worker in self._workers:  # what it sent before its death, then the end of file
                self._receive(worker)

    def _warn_of_silence(self) -> None:
        """Warn once that no worker has delivered anything for a while, with what they read."""
        if self._has_warned:
            return
        self._has_warned = True
        names = [self._name_at(worker) for worker in self._workers if worker.slot.position >= 0]
        logger.warning(
            "no worker process has delivered anything for %.0f seconds; they read %s. They are "
            "stopped, or the images are slow to read; waiting.",
            SECONDS_OF_SILENCE,
            shorten(names, 3) if names else "no image",
        )

    def _item_at(self, worker: _Worker) -> Item:
        """Return the item that a worker reads."""
        position = worker.slot.position
        return next(item for task in worker.tasks for item in task.items if item[0] == position)

    def _name_at(self, worker: _Worker) -> str:
        """Return the name of the image that a worker reads."""
        known = worker.slot.name.decode(errors="replace")
        return known or self._reading.name_of(self._item_at(worker)[1])

    def _receive(self, worker: _Worker) -> None:
        try:
            result = worker.connection.recv()
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError):
            # RuntimeError: torch cannot open the shared memory
            self._replace(worker)
            return
        task = worker.tasks.popleft()
        if task.items:
            self._deaths = self._idle_deaths = 0
        if task.number is None:
            if isinstance(result, BaseException):
                raise result
            self._known[task.items[0][0]] = result[0]
        elif task.is_whole or isinstance(result, BaseException):
            self._done[task.number] = result
        else:
            self._done[task.number] = self._merge(task, result)

    def _merge(self, task: _Task, items: list[ReadItem]) -> Any:
        """Make a batch of new items and those read before."""
        assert task.number is not None
        new = {place: item for (place, _), item in zip(task.items, items, strict=True)}
        return self._reading.pack(
            [
                new[place] if place in new else self._known[place]
                for place, _ in self._open[task.number]
            ]
        )

    def _replace(self, worker: _Worker) -> None:
        """Start a worker in place of a dead one, whose tasks are done again.

        Raises:
            LostWorkersError: If too many workers in a row were killed.
        """
        worker.process.join(SECONDS_TO_DIE)
        place = worker.slot.position
        if worker.process.is_alive():  # its result cannot be opened
            worker.process.kill()
            worker.process.join()
            place = SENDING
        worker.connection.close()
        self._again |= {task.number for task in worker.tasks if task.number is not None}
        self._through_pipe |= place == SENDING  # the shared memory may be full
        died = f"a worker process {_how(worker.process.exitcode)}"
        if place >= 0:
            died = self._blame(worker, died)
        else:
            self._suspects += [task.items[0] for task in worker.tasks if task.number is None]
            self._idle_deaths += 1
            logger.warning("%s while it read no image; another one takes over.", died)
        self._deaths += 1
        more = MORE_DEATHS_PER_WORKER * self._num_workers
        if (
            self._deaths >= MAX_DEATHS_IN_A_ROW + more
            or self._idle_deaths >= MAX_IDLE_DEATHS_IN_A_ROW + more
        ):
            raise LostWorkersError(
                f"worker processes must be able to read images, but {self._deaths} in a row died; "
                f"the last one: {died}. If nobody killed them, the memory is too small: use fewer "
                "--num-workers or a smaller --batch-size."
            )
        self._workers[self._workers.index(worker)] = self._start()

    def _blame(self, worker: _Worker, died: str) -> str:
        """Read an image whose worker died once more, or leave it out; return a line on it."""
        name, item = self._name_at(worker), self._item_at(worker)
        died = f"{died} while it read {name}"
        self._reads[item[0]] += 1
        if self._reads[item[0]] < MAX_READS:
            self._suspects.append(item)
            logger.warning("%s; the image is read once more.", died)
        else:
            reason = f"its worker process {_how(worker.process.exitcode, 'twice ')}"
            self._known[item[0]] = ReadItem(name, None, reason=f"{reason} while it was read")
            logger.warning("%s for the second time; the image is left out.", died)
        return died


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _how(exit_code: int | None, times: str = "") -> str:
    if exit_code is None:  # other code in this process has waited for the process
        return f"died {times}".rstrip()
    if exit_code == NO_MEMORY_EXIT:
        return f"ran out of memory {times}".rstrip()
    if exit_code >= 0:
        return f"ended {times}with exit code {exit_code}"
    cause = {
        -signal.SIGKILL: ", often too little memory",
        -signal.SIGBUS: ", often a full /dev/shm",
    }
    return f"was killed {times}(signal {-exit_code}{cause.get(exit_code, '')})"


def _work(main_end: Any, pipe: Any, slot: Any, reading: Reading, main_process: int) -> None:
    """Do tasks until the main process kills this one, or has died."""
    initialize_worker()
    main_end.close()  # a copy; with it open, the death of the main process would not close the pipe
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes of the terminal
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    unblock_interrupts()
    try:
        while True:
            while not pipe.poll(SECONDS_BETWEEN_CHECKS):
                if os.getppid() != main_process:
                    return
            task = pipe.recv()
            result = _do(task, slot, reading)
            slot.position = SENDING
            _send_result(pipe, result, task.through_pipe)
            slot.position = IDLE
    except (BrokenPipeError, ConnectionResetError, EOFError):
        return  # the main process has died
    except MemoryError:
        os._exit(NO_MEMORY_EXIT)


def _do(task: _Task, slot: Any, reading: Reading) -> Any:
    def set_name(name: str) -> None:
        slot.name = name.encode(errors="replace")[:4095]

    items = []
    try:
        for position, content in task.items:
            slot.name = b""
            slot.position = position
            items.append(reading.read(content, set_name))
            slot.position = IDLE
        return reading.pack(items) if task.is_whole else items
    except MemoryError:
        raise
    except Exception as error:
        return _portable(error)


def _portable(error: Exception) -> Any:
    """Return an error that can be sent to the main process, with its traceback as the cause."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__)
    return multiprocessing.pool.ExceptionWithTraceback(error, error.__traceback__)  # type: ignore[attr-defined]


def _send_result(pipe: Any, result: Any, through_pipe: bool) -> None:
    message = None
    if not through_pipe:
        try:
            message = ForkingPickler.dumps(result)  # moves tensors to shared memory
        except (RuntimeError, OSError):
            message = None  # the shared memory is full
    pipe.send_bytes(pickle.dumps(result, protocol=5) if message is None else message)


__all__ = ["Item", "LostWorkersError", "ReadItem", "Reading", "ReadingWorkers"]
