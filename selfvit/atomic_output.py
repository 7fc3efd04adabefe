"""Atomic output: write files and folders completely or not at all.

Every folder of the package may import this module; it needs `file_modes` and the standard library.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from .file_modes import apply_umask


@contextmanager
def atomic_output(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` when the block ends without an exception.

    The caller creates either a file or a folder at the temporary path. Content for a device or a
    pipe, such as /dev/stdout, is copied to it at the end. Missing parent folders are
    created, and file modes follow the umask. After an exception, `path` is unchanged. A process
    that is killed leaves a hidden `.NAME.unfinished-*` next to `path`; `path` itself is unchanged,
    except in the instant between the two renames that replace an existing folder.

    Args:
        path: File or folder to write.

    Yields:
        A path that does not exist yet, in the same folder as `path`: renaming is atomic only within
        one file system.

    Raises:
        OSError: If the output cannot be written, or if a file would replace a folder.
    """
    path = Path(path)
    if _is_special(path):
        with tempfile.TemporaryDirectory() as folder:
            yield (unfinished := Path(folder) / "output")
            with open(unfinished, "rb") as source, open(path, "wb") as target:
                shutil.copyfileobj(source, target)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished-{uuid.uuid4().hex[:8]}")
    try:
        yield unfinished
        commit_output(unfinished, path)
    except BaseException:
        _remove(unfinished)
        raise


def _is_special(path: Path) -> bool:
    """Return whether a path is a device or a pipe, which a rename would replace by a file."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def commit_output(unfinished: Path, path: Path) -> None:
    """Let a complete file or folder replace another one, as `atomic_output` does at its end.

    For output that several processes write into one temporary folder; one of them commits it.

    Args:
        unfinished: Complete file or folder, in the same folder as `path`.
        path: File or folder to replace, or to create.

    Raises:
        OSError: If it cannot be replaced. `path` is then unchanged.
    """
    if unfinished.exists():
        apply_umask([unfinished])
    flush_to_disk(unfinished)
    _replace(path, unfinished)
    flush_entry(path.parent)


def check_output(
    output: Path,
    marker: str,
    overwrite: bool = False,
    *,
    files: Sequence[str] | None = None,
    created_by: str | None = None,
) -> None:
    """Check that an output folder can be written, before any work is done.

    The folder must be new or empty. With `overwrite`, it may hold an earlier result, which the
    marker file identifies; a folder that holds anything else is never deleted.

    Args:
        output: Folder to write.
        marker: Name of a file that every earlier result contains.
        overwrite: Whether an earlier result may be replaced.
        files: Patterns for the names that an earlier result may contain, see `is_named`; None
            allows any.
        created_by: Value of `created_by` that the marker, a JSON file, must contain; None accepts
            any file.

    Raises:
        FileExistsError: If `output` is a file or a link, or contains something that may not be
            replaced.
    """
    if not output.exists() and not output.is_symlink():
        return
    if not output.is_dir() or output.is_symlink():
        raise FileExistsError(
            f"the output must be a folder, but {str(output)!r} is a file or a link; choose a new "
            "folder."
        )
    entries = sorted(output.iterdir())
    names = [entry.name for entry in entries]
    if not names:
        return
    if not overwrite:
        raise FileExistsError(
            f"{str(output)!r} is not empty; choose a new folder, or use --overwrite "
            "(overwrite=True) to replace an earlier result."
        )
    author = "" if created_by is None else f" created by {created_by!r}"
    if not _is_marker(output / marker, created_by):
        raise FileExistsError(
            f"{str(output)!r} is not replaced, because it contains {', '.join(names[:3])} but no "
            f"{marker}{author}; choose a new folder."
        )
    foreign = [entry.name for entry in entries if files is not None and not is_named(entry, files)]
    if foreign:
        raise FileExistsError(
            f"{str(output)!r} is not replaced, because it contains {', '.join(foreign[:3])}, which "
            f"{(created_by or 'selfvit')!r} did not write; choose a new folder."
        )


def is_named(entry: Path, patterns: Iterable[str]) -> bool:
    """Return whether the name of a file or folder matches a pattern.

    Args:
        entry: File or folder.
        patterns: Patterns as in `fnmatch`; those of folders end with a slash.
    """
    is_folder = entry.is_dir()
    name = entry.name + "/" * is_folder
    return any(
        fnmatchcase(name, pattern) for pattern in patterns if pattern.endswith("/") == is_folder
    )


def _is_marker(path: Path, created_by: str | None) -> bool:
    if created_by is None:
        return path.is_file()
    try:
        return json.loads(path.read_text(encoding="utf-8"))["created_by"] == created_by
    except (OSError, ValueError, KeyError, TypeError):
        return False


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or a folder and all files in it, are on the disk.

    Call this before a rename; otherwise a power failure can leave the new name without its content.

    Args:
        path: File or folder.
    """
    if path.is_dir():
        for inside in path.iterdir():
            flush_to_disk(inside)
    flush_entry(path)


def flush_entry(path: Path) -> None:
    """Wait until one file, or the list of names in a folder, is on the disk.

    Args:
        path: File or folder.
    """
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open folders.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(path: Path, unfinished: Path) -> None:
    if not (unfinished.is_dir() and path.exists()):
        os.replace(unfinished, path)
        return
    # A rename cannot replace a folder that is not empty. The old folder is moved away first, and
    # moved back if the new one cannot take its place.
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


__all__ = [
    "atomic_output",
    "check_output",
    "commit_output",
    "flush_entry",
    "flush_to_disk",
    "is_named",
]
