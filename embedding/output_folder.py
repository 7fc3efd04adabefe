"""Output folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_or_not_at_all(output: Path) -> Iterator[Path]:
    """Give a folder beside `output` that takes its place at the end.

    On any exception it vanishes, an interrupt included.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = output.parent / f".{output.name}.unfinished-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    try:
        yield folder
        for path in folder.iterdir():
            _sync(path)
        _sync(folder)
        _replace(output, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    _sync(output.parent)


def _replace(output: Path, folder: Path) -> None:
    if not output.exists():
        folder.rename(output)
        return
    # A folder that is not empty cannot be renamed over. The old one steps aside first, so that at
    # no time is there neither.
    aside = folder.with_name(folder.name.replace("unfinished", "replaced"))
    output.rename(aside)
    try:
        folder.rename(output)
    except BaseException:
        aside.rename(output)
        raise
    shutil.rmtree(aside)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows does not open folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = ["whole_or_not_at_all"]
