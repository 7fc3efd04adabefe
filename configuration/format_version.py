"""Format version of checkpoints: refuse those that this version of selfvit cannot open."""

import re
from collections.abc import Mapping
from typing import Any

VERSION = "0.1.0"  # version of the package; pyproject.toml reads it from here

# Increase it if the previous release cannot open a checkpoint written now, or computes something
# else from it. A new objective does not need this, nor does a field whose default keeps the old
# behavior.
FORMAT_VERSION = 1

WRITTEN_BY = ("format_version", "selfvit_version")  # keys in config.json


def check_format(stored: Mapping[str, Any], folder: Any = None) -> None:
    """Check that this version of selfvit can read a stored configuration.

    Args:
        stored: Content of config.json. The format version is 1 if it has none.
        folder: Checkpoint folder or Hub id for the error message, if known.

    Raises:
        ValueError: If the format is newer (the message names the version to install) or invalid.
    """
    found = stored.get("format_version", 1)
    where = "" if folder is None else f" in config.json of {str(folder)!r}"
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ValueError(
            f"format_version ({found!r}){where} must be an integer of at least 1; copy or "
            "download config.json again."
        )
    if found > FORMAT_VERSION:
        writer = str(stored.get("selfvit_version", ""))
        # anybody can write this value: only a version number may enter the message
        known = re.fullmatch(r"[0-9]+(\.[0-9]+)*((a|b|rc|\.dev|\.post)[0-9]+)*", writer)
        needed = f"selfvit {writer} or newer" if known else "a newer version of selfvit"
        raise ValueError(
            f"format_version ({found}){where} is newer than selfvit {VERSION} can read "
            f"(up to {FORMAT_VERSION}); install {needed} to open this checkpoint."
        )


__all__ = ["FORMAT_VERSION", "VERSION", "WRITTEN_BY", "check_format"]
