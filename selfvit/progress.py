"""Progress of long operations: a bar on a terminal, separate lines elsewhere.

A bar redraws itself in place, which a file, a pipe or the log of a cluster shows as one long line.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm.auto import tqdm

SECONDS_BETWEEN_LINES = 30
LINES_PER_RUN = 20  # one per 5 %


def progress_bar(
    iterable: Iterable[Any] | None = None,
    *,
    total: int | None = None,
    description: str | None = None,
    unit: str = "images",
    initial: int = 0,
    disable: bool = False,
) -> Any:
    """Return a tqdm bar if standard error is a terminal, otherwise `ProgressLines`.

    All of them can be iterated over, are context managers, and have `update(n)`,
    `set_postfix(**values)`, `write(text)` and `close()`.

    Args:
        iterable: Items to iterate over; None if `update` is called instead.
        total: Number of items; the length of `iterable` by default. None if unknown.
        description: Name of the operation, at the start of the line.
        unit: Plural noun for the items.
        initial: Number of items that were done before.
        disable: Whether to show no progress.
    """
    if sys.stderr.isatty() and not disable:
        return tqdm(
            iterable,
            total=total,
            desc=description,
            unit=f" {unit}",
            initial=initial,
            dynamic_ncols=True,
        )
    # A disabled bar of tqdm would take its lock, which a forked process that was killed may hold.
    lines = NoProgress if disable else ProgressLines
    return lines(iterable, total=total, description=description, unit=unit, initial=initial)


class ProgressLines:
    """Progress as separate lines on standard error, one per 5 % and at least one per 30 seconds.

    The arguments are those of `progress_bar`.
    """

    def __init__(
        self,
        iterable: Iterable[Any] | None = None,
        *,
        total: int | None = None,
        description: str | None = None,
        unit: str = "images",
        initial: int = 0,
    ):
        if total is None and hasattr(iterable, "__len__"):
            total = len(iterable)  # type: ignore[arg-type]
        self.iterable = iterable
        self.total = total
        self.description = description
        self.unit = unit
        self.initial = self.n = initial
        self.postfix: dict[str, Any] = {}
        self.started = self.shown_at = time.monotonic()
        self.shown = initial
        self.closed = False

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self.iterable or ():
                yield item
                self.update()

    def __enter__(self) -> ProgressLines:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def update(self, n: int = 1) -> None:
        """Count `n` more items as done."""
        self.n += n
        if self._is_due():
            self._show()

    def set_postfix(self, refresh: bool = True, **values: Any) -> None:
        """Set values that are shown at the end of the next lines.

        Args:
            refresh: Ignored; a bar redraws itself.
            values: Values by name.
        """
        self.postfix = values

    def write(self, text: str, **kwargs: Any) -> None:
        """Print a line of text, as `tqdm.write` does."""
        tqdm.write(text, **kwargs)

    def close(self) -> None:
        """Show the last state, unless the last line shows it."""
        if not self.closed and self.n > self.shown:
            self._show()
        self.closed = True

    def _is_due(self) -> bool:
        if time.monotonic() - self.shown_at >= SECONDS_BETWEEN_LINES:
            return True
        return self.total is not None and (self.n - self.shown) * LINES_PER_RUN >= self.total

    def _show(self) -> None:
        now = time.monotonic()
        rate = (self.n - self.initial) / max(now - self.started, 1e-9)
        parts = [f"{self.n:,} {self.unit}"]
        if self.total:
            parts = [f"{self.n:,} of {self.total:,} {self.unit} ({self.n / self.total:.0%})"]
        parts.append(f"{rate:.1f} {self.unit}/s")
        if self.total and rate and self.n < self.total:
            parts.append(f"{tqdm.format_interval((self.total - self.n) / rate)} left")
        parts += [f"{name} {value}" for name, value in self.postfix.items()]
        start = f"{self.description}: " if self.description else ""
        # One write per line: other processes may write to the same file.
        sys.stderr.write(f"{start}{', '.join(parts)}\n")
        sys.stderr.flush()
        self.shown, self.shown_at = self.n, now


class NoProgress(ProgressLines):
    """Progress that is not shown; the arguments are those of `progress_bar`."""

    def _is_due(self) -> bool:
        return False

    def close(self) -> None:
        """Show nothing."""
        self.closed = True


__all__ = ["NoProgress", "ProgressLines", "progress_bar"]
