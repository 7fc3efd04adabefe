"""Read ahead in threads, so that slow storage, decoding and computation overlap."""

from __future__ import annotations

import queue
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

SECONDS_BETWEEN_LOOKS = 0.1  # of the thread, whether it is still needed


def read_ahead(items: Iterable[T], num_items: int) -> Generator[T, None, None]:
    """Yield items that a thread takes before they are asked for.

    Args:
        items: Items; a generator is closed by the thread.
        num_items: Maximum number of items to have in store.

    Yields:
        The items, in order.

    Raises:
        Exception: Any error that `items` raises, after the items before it.
    """
    store: queue.Queue[tuple[str, Any]] = queue.Queue(num_items)
    is_needed = threading.Event()
    is_needed.set()

    def put(kind: str, value: Any) -> None:
        while is_needed.is_set():
            try:
                return store.put((kind, value), timeout=SECONDS_BETWEEN_LOOKS)
            except queue.Full:
                continue

    def take() -> None:
        try:
            for item in items:
                put("item", item)
                if not is_needed.is_set():
                    break
            put("end", None)
        except BaseException as error:
            put("error", error)
        finally:
            if isinstance(items, Generator):
                items.close()

    thread = threading.Thread(target=take, daemon=True, name="read-ahead")
    thread.start()
    try:
        while True:
            kind, value = store.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        is_needed.clear()
        thread.join()


def map_in_threads(
    items: Iterable[T], function: Callable[[T], R], num_threads: int
) -> Generator[R, None, None]:
    """Yield the result of a function for each item, in order, with few of them in memory.

    Args:
        items: Items, taken in this thread.
        function: Function to call in other threads.
        num_threads: Number of threads; with less than 2, this thread calls the function.

    Yields:
        The results.

    Raises:
        Exception: Any error that `items` or `function` raises, after the results before it.
    """
    if num_threads < 2:
        yield from map(function, items)
        return
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def decode_in_threads(items: Iterable[T], function: Callable[[T], R], num_threads: int) -> list[R]:
    """Return the results of a function that decodes images, as `map_in_threads`.

    Decoders replace the filters of warnings for a while, and all threads share them. Here they are
    restored once no thread decodes any more.

    Args:
        items: Items, taken in this thread.
        function: Function to call in other threads.
        num_threads: Number of threads; with less than 2, this thread calls the function.

    Raises:
        Exception: Any error that `items` or `function` raises.
    """
    if num_threads < 2:
        return list(map(function, items))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(map_in_threads(items, function, num_threads))


__all__ = ["decode_in_threads", "map_in_threads", "read_ahead"]
