"""What config.json says of the selfvit that wrote it, and which of these this one can open."""

import re
from collections.abc import Mapping
from typing import Any

VERSION = "0.1.0"  # of the package; pyproject.toml reads it here

# Raise it when the package before could not open a checkpoint written now, or would compute
# something else from it. A new objective needs none, nor does a field whose default is what was.
FORMAT_VERSION = 1

WRITTEN_BY = ("format_version", "selfvit_version")  # the two keys in config.json


def check_format(stored: Mapping[str, Any], folder: Any = None) -> None:
    """Refuse a configuration that a newer selfvit wrote in a format that this one does not know.

    Args:
        stored: what config.json says; without a `format_version` it is of format 1.
        folder: where it lies, or its Hub id, if that is known.

    Raises:
        ValueError: if the format is newer, naming the version to install, or is no format.
    """
    found = stored.get("format_version", 1)
    where = "" if folder is None else f" in config.json of {str(folder)!r}"
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ValueError(
            f"format_version ({found!r}){where} must be a whole number from 1; copy or download "
            "config.json again."
        )
    if found > FORMAT_VERSION:
        writer = str(stored.get("selfvit_version", ""))
        # it goes into a command that people paste
        known = re.fullmatch(r"[0-9]+(\.[0-9]+)*((a|b|rc|\.dev|\.post)[0-9]+)*", writer)
        install = f'pip install "selfvit>={writer}"' if known else "pip install --upgrade selfvit"
        raise ValueError(
            f"format_version ({found}){where} is newer than selfvit {VERSION} knows "
            f"(up to {FORMAT_VERSION}); {install} to open it."
        )


__all__ = ["FORMAT_VERSION", "VERSION", "WRITTEN_BY", "check_format"]
