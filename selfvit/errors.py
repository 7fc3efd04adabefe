"""Errors for users: printed in one line, with long lists shortened.

A leaf that every folder may import; it needs the standard library only.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print an error that the user can fix as `error: ...` on standard error, without a traceback.

    Raises:
        SystemExit: with code 2, after such an error.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, _user_errors()):
            raise
        from tqdm.auto import tqdm

        # tqdm writes above a progress bar, not behind it. The line and its end are one write, since
        # other processes write to the same terminal.
        tqdm.write(f"error: {one_line(error)}\n", file=sys.stderr, end="")
        raise SystemExit(2) from error


def _user_errors() -> tuple[type[Exception], ...]:
    """Values, files, extras, configurations, and losses that are not finite or collapsed."""
    from huggingface_hub.errors import StrictDataclassError

    return (ValueError, OSError, ImportError, StrictDataclassError, FloatingPointError)


def one_line(error: BaseException) -> str:
    """Return the message of an error in one line, or the name of its type if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


def shorten(names: Iterable[str], limit: int = 8) -> str:
    """Join names into one line, at most `limit` of them: "a, b and 3 more"."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


__all__ = ["one_line", "one_line_errors", "shorten"]
