"""Files and folders that appear whole or not at all.

A leaf that every folder may import; it needs the standard library only.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .file_modes import apply_umask


@contextmanager
def atomic_output(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` at the end, or nothing after an exception.

    The caller creates a file or a folder there. An earlier file or folder at `path` is replaced,
    parent folders are created, and file modes follow the umask. A process that is killed leaves a
    hidden `.NAME.unfinished-*` in the same folder and does not change `path`, except for the
    instant between two renames in which one folder replaces another.

    Args:
        path: Path of the file or folder to write.

    Yields:
        A path that does not exist yet, in the same folder: a rename is atomic only within one file
        system.

    Raises:
        OSError: If it cannot be written, or a file is to replace a folder.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished-{uuid.uuid4().hex[:8]}")
    try:
        yield unfinished
        if unfinished.exists():
            apply_umask([unfinished])
        flush_to_disk(unfinished)
        _replace(path, unfinished)
    except BaseException:
        _remove(unfinished)
        raise
    flush_entry(path.parent)


def names_to_replace(folder: Path, overwrite: bool) -> list[str]:
    """Return what lies in a folder that is to be written; nothing, if it is not there yet.

    Ask before any work is done, and refuse names that are not those of an earlier result.

    Args:
        folder: to be written.
        overwrite: whether an earlier result may be replaced.

    Raises:
        FileExistsError: if it is a file or a link, or not empty and may not be replaced.
    """
    if not folder.exists() and not folder.is_symlink():
        return []
    if not folder.is_dir() or folder.is_symlink():
        raise FileExistsError(f"{str(folder)!r} is a file or a link; give a new folder.")
    names = sorted(entry.name for entry in folder.iterdir())
    if names and not overwrite:
        raise FileExistsError(
            f"{str(folder)!r} is not empty; give a new folder, or --overwrite (overwrite=True) to "
            "replace an earlier result."
        )
    return names


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
    held = names_to_replace(output, overwrite)
    if held and marker not in held:
        raise FileExistsError(
            f"{str(output)!r} is not replaced: it has no {marker}, so it holds something else "
            f"({', '.join(held[:3])}). Give a new folder."
        )


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or a folder and the files in it, are on the disk.

    Before a rename: after a power cut there could otherwise be the new name and no content.
    """
    if path.is_dir():
        for inside in path.iterdir():
            flush_to_disk(inside)
    flush_entry(path)


def flush_entry(path: Path) -> None:
    """Wait until one file, or the names in a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows does not open folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(path: Path, unfinished: Path) -> None:
    if not (unfinished.is_dir() and path.exists()):
        os.replace(unfinished, path)
        return
    # A folder that is not empty cannot be renamed over. The old one steps aside first, and comes
    # back if the new one cannot take its place.
    aside = unfinished.with_name(unfinished.name.replace("unfinished", "replaced"))
    path.rename(aside)
    try:
        unfinished.rename(path)
    except BaseException:
        aside.rename(path)
        raise
    shutil.rmtree(aside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


__all__ = ["atomic_output", "check_output", "flush_entry", "flush_to_disk", "names_to_replace"]
