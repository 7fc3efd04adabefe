"""A folder of results that appears whole or not at all, and replaces only its own kind."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_output(output: Path, marker: str, overwrite: bool = False) -> None:
    """Check that a folder can be written, before any work is done.

    Args:
        output: the folder.
        marker: name of the file that tells an earlier result from anything else.
        overwrite: whether an earlier result may be replaced.

    Raises:
        FileExistsError: if it is a file or a link, or holds what may not be replaced: a folder
            without the marker is never deleted.
    """
    if not output.exists() and not output.is_symlink():
        return
    if not output.is_dir() or output.is_symlink():
        raise FileExistsError(f"{str(output)!r} is a file or a link; give a new folder.")
    held = sorted(entry.name for entry in output.iterdir())
    if not held:
        return
    if not overwrite:
        raise FileExistsError(
            f"{str(output)!r} is not empty; give a new folder, or --overwrite (overwrite=True) to "
            "replace an earlier result."
        )
    if marker not in held:
        raise FileExistsError(
            f"{str(output)!r} is not replaced: it has no {marker}, so it holds something else "
            f"({', '.join(held[:3])}). Give a new folder."
        )


@contextmanager
def whole_or_not_at_all(output: Path) -> Iterator[Path]:
    """Give a folder beside `output` that takes its place at the end.

    On any exception it vanishes, an interrupt included.

    Args:
        output: a folder that `check_output` has passed.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = output.parent / f".{output.name}.unfinished-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    try:
        yield folder
        for path in [*folder.rglob("*"), folder]:
            _sync(path)
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


__all__ = ["check_output", "whole_or_not_at_all"]
