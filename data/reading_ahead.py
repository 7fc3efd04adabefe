"""Read ahead in a thread, so that slow storage and computation overlap."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import Any, TypeVar

T = TypeVar("T")

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


__all__ = ["read_ahead"]
