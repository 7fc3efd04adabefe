"""Errors that the user can mend, told in one line.

A leaf below the entry points: the command line, and training under a launcher.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import StrictDataclassError

# Values, files, missing extras, a configuration, a loss that is no number, outputs that collapsed.
MISTAKES = (ValueError, OSError, ImportError, StrictDataclassError, FloatingPointError)


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """Print a mistake of the user's as `error: ...` on the standard error, without a traceback.

    Raises:
        SystemExit: with code 2, after a mistake.
    """
    try:
        yield
    except MISTAKES as error:
        from tqdm.auto import tqdm

        # above a progress bar, not behind it; the end of the line in the same write, as other
        # processes write, too
        tqdm.write(f"error: {' '.join(str(error).split())}\n", file=sys.stderr, end="")
        raise SystemExit(2) from error


__all__ = ["told_in_one_line"]
