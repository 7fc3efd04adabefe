"""Permissions of new files.

Every folder of the package may import this module; it needs the standard library only.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from pathlib import Path


def apply_umask(paths: Iterable[Path]) -> None:
    """Give files the mode that `open` gives a new file: 0666 without the bits of the umask.

    safetensors creates its files with mode 0600, so other users could not read a model.

    Args:
        paths: Files. For a folder, the files in it and below it.

    Raises:
        OSError: If a mode cannot be changed, or nothing can be written beside a file.
    """
    for path in paths:
        if path.is_symlink():
            continue
        if path.is_dir():
            apply_umask(path.iterdir())
        else:
            path.chmod(_mode_of_a_new_file(path.parent))


def _mode_of_a_new_file(folder: Path) -> int:
    # os.umask reads the umask only by setting it, which another thread could observe. A new file
    # also shows the default access control list of its folder.
    path = folder / f".mode.unfinished-{uuid.uuid4().hex[:8]}"
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return os.fstat(descriptor).st_mode & 0o777
    finally:
        os.close(descriptor)
        path.unlink()


__all__ = ["apply_umask"]
