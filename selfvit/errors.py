"""Errors for users: printed in one line, with long lists shortened.

Every folder of the package may import this module; it needs the standard library only.
"""

from __future__ import annotations

import os
import re
import select
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from unicodedata import category

SIGPIPE_CODE = 128 + 13
# Errors about values, files, extras and losses.
USER_ERRORS: tuple[type[Exception], ...] = (ValueError, OSError, ImportError, FloatingPointError)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print an error that the user can fix as `error: ...` on standard error, without a traceback.

    If the program that reads the output ends early, as in `selfvit ... | head`, nothing is printed.

    Raises:
        SystemExit: With code 2 after such an error, and with code 141, as shells report SIGPIPE, if
            the output has no reader anymore.
    """
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _has_no_reader():
            raise SystemExit(SIGPIPE_CODE) from None
        if not isinstance(error, _user_errors()):
            raise
        # The line and its end are one write: other processes write to the same terminal.
        _print_error(f"error: {one_line(error)}\n")
        raise SystemExit(2) from error


def _has_no_reader() -> bool:
    """Return whether standard output is a pipe without a reader; it is discarded from then on."""
    try:
        descriptor = sys.stdout.fileno()
        poll = select.poll()
    except (AttributeError, OSError, ValueError):  # no file, or Windows
        return False
    poll.register(descriptor, select.POLLOUT)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
        return False
    # otherwise the interpreter prints an error when it flushes the output at its end
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return True


def _user_errors() -> tuple[type[Exception], ...]:
    """Return the types of errors about values, files, extras, configurations and losses."""
    # An error of this module can only occur once the module is imported.
    hub_errors = sys.modules.get("huggingface_hub.errors")
    return USER_ERRORS if hub_errors is None else (*USER_ERRORS, hub_errors.StrictDataclassError)


def _print_error(line: str) -> None:
    if "tqdm" not in sys.modules:
        sys.stderr.write(line)
        return
    from tqdm.auto import tqdm

    tqdm.write(line, file=sys.stderr, end="")  # above a progress bar instead of behind it


def one_line(error: BaseException) -> str:
    """Return the message of an error in one line, or the name of its type if it has no message.

    `@strict` of huggingface_hub adds a line about its validator before the message; it is left out.
    """
    hub_errors = sys.modules.get("huggingface_hub.errors")
    if hub_errors is not None and isinstance(error, hub_errors.StrictDataclassError):
        error = error.__cause__ or error
    return " ".join(str(error).split()) or type(error).__name__


def printable(path: str) -> str:
    """Replace bytes of a file name that are not UTF-8, as tables and JSON require UTF-8."""
    if path.isascii():
        return path
    try:
        return os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return path.encode("utf-8", "backslashreplace").decode()


def printable_line(text: str) -> str:
    """Return a text in one line that can be printed, as names of files can hold any byte.

    Args:
        text: Text.
    """
    line = " ".join(printable(text).split())
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def without_line_breaks(text: str) -> str:
    """Return a text with line breaks and control characters escaped, and all else as it is.

    Args:
        text: Text, for example a line with the name of a file.
    """
    if text.isprintable():
        return text
    return "".join(
        c.encode("unicode_escape").decode() if category(c) in {"Cc", "Zl", "Zp"} else c
        for c in text
    )


def hub_id_in(url: str) -> str | None:
    """Return the USER/NAME in the address of a page of the Hub.

    Args:
        url: Address, such as https://huggingface.co/facebook/dinov2-small/tree/main.

    Returns:
        None for other addresses.
    """
    page = re.match(r"https?://(?:huggingface|hf)\.co/(?:datasets/)?([\w.-]+/[\w.-]+)", url)
    return None if page is None else page[1]


def shorten(names: Iterable[str], limit: int = 8) -> str:
    """Join names into one line, at most `limit` of them: "a, b and 3 more"."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


__all__ = [
    "USER_ERRORS",
    "hub_id_in",
    "one_line",
    "one_line_errors",
    "printable",
    "printable_line",
    "shorten",
    "without_line_breaks",
]
