"""Places of a folder of vectors: a folder of this machine, or object storage behind a URL."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from ...atomic_output import atomic_output, flush_entry
from ...data.remote.file_system import (
    StorageError,
    check_package,
    file_system,
    is_url,
    missing_package,
    storage_errors,
)
from ...file_modes import apply_umask

LOCKS, UNFINISHED = ".locks", ".*.unfinished-*"  # only while a process writes


class LocalStorage:
    """Folder of this machine; a file appears in it when it is complete.

    Args:
        folder: Folder, which may not exist yet.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.locks = folder / LOCKS
        self._is_new = False

    def is_usable(self) -> bool:
        """Return whether the folder is one, or can be created."""
        is_link = self.folder.is_symlink()
        return not is_link and (self.folder.is_dir() or not self.folder.exists())

    def prepare(self) -> None:
        """Create the folder and that of the locks."""
        self._is_new = not self.folder.exists()
        self.locks.mkdir(parents=True, exist_ok=True)

    def clean(self) -> None:
        """Remove the locks, and a new folder that has stayed empty."""
        shutil.rmtree(self.locks, ignore_errors=True)
        if self._is_new and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def sizes(self) -> dict[str, int | None]:
        """Return the names in the folder, with the sizes of the files in bytes; None for others."""
        if not self.folder.is_dir():
            return {}
        with os.scandir(self.folder) as entries:
            return {e.name: e.stat().st_size if e.is_file() else None for e in entries}

    def new_file(self) -> Path:
        """Return the path of a new temporary file."""
        return self.folder / f".part.unfinished-{uuid.uuid4().hex[:8]}"

    def add(self, unfinished: Path, name: str, replace: bool = False) -> None:
        """Let a complete temporary file appear under its name.

        Args:
            unfinished: File from `new_file`.
            name: Name in the folder.
            replace: Whether a file of that name may exist.
        """
        apply_umask([unfinished])
        flush_entry(unfinished)
        os.replace(unfinished, self.folder / name)
        flush_entry(self.folder)

    @contextmanager
    def output(self, name: str) -> Iterator[Path]:
        """Yield a temporary path, whose file replaces that of a name when the block ends."""
        with atomic_output(self.folder / name) as unfinished:
            yield unfinished

    def delete(self, names: Sequence[str]) -> None:
        """Delete files of the folder, in this order."""
        for name in names:
            (self.folder / name).unlink(missing_ok=True)

    def remove_unfinished(self) -> None:
        """Remove the temporary files of processes that were killed."""
        for leftover in self.folder.glob(UNFINISHED):
            leftover.unlink()


class RemoteStorage:
    """Objects below a URL. Temporary files and locks are in a local folder.

    An object is written by one request (a large one by a multipart upload), so it appears whole or
    not at all. The locks hold for the processes of one user of this machine. A part is never
    replaced by that of a process on another machine, where the storage knows conditional writes.

    Args:
        folder: Universal path of the URL.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.url = str(folder)
        key = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        user = getattr(os, "getuid", lambda: "user")()
        self.locks = Path(tempfile.gettempdir(), f"selfvit-{user}", key)

    def is_usable(self) -> bool:
        """Return whether the URL does not name an object.

        Raises:
            StorageError: If there is no such bucket, or it cannot be read.
        """
        system, path = _opened(self.folder)
        try:
            with storage_errors(self.url):
                system.invalidate_cache()
                return system.info(path)["type"] != "file"
        except FileNotFoundError:
            return True

    def prepare(self) -> None:
        """Create the folder of the locks."""
        self.locks.mkdir(parents=True, exist_ok=True, mode=0o700)

    def clean(self) -> None:
        """Remove the locks."""
        shutil.rmtree(self.locks, ignore_errors=True)

    def sizes(self) -> dict[str, int | None]:
        """Return the names below the URL, with the sizes of the objects in bytes; None for others.

        Raises:
            StorageError: If they cannot be listed.
        """
        system, path = _opened(self.folder)
        try:
            with storage_errors(self.url):
                system.invalidate_cache()
                entries = system.ls(path, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        start = f"{path.rstrip('/')}/"
        return {
            name: entry.get("size") if entry["type"] == "file" else None
            for entry in entries
            if (name := entry["name"].removeprefix(start).rstrip("/")) and entry["name"] != start
        }

    def new_file(self) -> Path:
        """Return the path of a new temporary file."""
        self.prepare()
        return self.locks / f".part.unfinished-{uuid.uuid4().hex[:8]}"

    def add(self, unfinished: Path, name: str, replace: bool = False) -> None:
        """Upload a complete temporary file, and remove it.

        Args:
            unfinished: File from `new_file`.
            name: Name below the URL.
            replace: Whether an object of that name may exist.

        Raises:
            FileExistsError: If another process has written an object of that name.
            StorageError: If it cannot be written.
        """
        system, path = _opened(self.folder / name)
        mode = "overwrite" if replace else "create"
        with storage_errors(f"{self.url}/{name}", "written"):
            try:
                system.put_file(str(unfinished), path, mode=mode)
            except FileExistsError as error:
                # a request whose answer was lost is sent again, and finds its own object
                if system.cat_file(path) != unfinished.read_bytes():
                    raise FileExistsError(
                        f"another process is writing vectors to {self.url!r}; wait for its end, or "
                        "choose another folder."
                    ) from error
            found, expected = system.info(path)["size"], unfinished.stat().st_size
        if found != expected:
            raise StorageError(
                f"{self.url}/{name} must have {expected} bytes, but has {found} after it was "
                "written; repeat the command."
            )
        unfinished.unlink()

    @contextmanager
    def output(self, name: str) -> Iterator[Path]:
        """Yield a temporary path, whose file replaces the object of a name when the block ends."""
        unfinished = self.new_file()
        try:
            yield unfinished
            self.add(unfinished, name, replace=True)
        finally:
            unfinished.unlink(missing_ok=True)

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects, in this order.

        Raises:
            StorageError: If one cannot be deleted.
        """
        for name in names:
            system, path = _opened(self.folder / name)
            with storage_errors(f"{self.url}/{name}", "deleted"):
                system.rm_file(path)

    def remove_unfinished(self) -> None:
        """Remove the temporary files of processes that were killed."""
        for leftover in self.locks.glob(UNFINISHED):
            leftover.unlink()


Storage = LocalStorage | RemoteStorage


def storage_of(folder: Path) -> Storage:
    """Return the place of a folder.

    Args:
        folder: Folder from `resolve`.
    """
    return RemoteStorage(folder) if is_remote(folder) else LocalStorage(Path(folder))


def resolve(folder: str | os.PathLike[str]) -> Path:
    """Return the path of a folder: a `UPath`, which has the same methods, for a URL.

    Args:
        folder: Local folder, URL, or `UPath`.

    Raises:
        ImportError: If the packages for the URL are missing.
        ValueError: If the URL is not a valid one.
    """
    if is_remote(folder):
        _check_segments(str(folder))
        return cast(Path, folder)
    if not is_url(folder):
        return Path(folder)
    url = str(folder).rstrip("/")
    _check_segments(url)
    check_package(url)
    try:
        from upath import UPath
    except ImportError as error:
        raise missing_package(url) from error
    return cast(Path, UPath(url))


def _check_segments(url: str) -> None:
    """Check that no segment of a URL is empty: s3fs lists nothing below such a URL.

    Raises:
        ValueError: If one is.
    """
    protocol, _, path = url.partition("://")
    if "//" in path:
        fixed = re.sub("/+", "/", path)
        raise ValueError(
            f"the URL of a folder of vectors must not have an empty segment, but {url!r} has one; "
            f"use {f'{protocol}://{fixed}'!r}, or set the variable that is empty."
        )


def is_remote(path: Any) -> bool:
    """Return whether a path is a `UPath` of a URL."""
    module = sys.modules.get("upath")
    return module is not None and isinstance(path, module.UPath) and not isinstance(path, Path)


def check_local(folder: Path) -> None:
    """Check that several processes can write to a folder.

    Raises:
        ValueError: If it is not a folder of this machine.
    """
    if is_remote(folder):
        raise ValueError(
            "several processes (--devices, torchrun, accelerate launch) must write to a local "
            f"folder, but the output is {str(folder)!r}; use one process, or write to a local "
            "folder and copy it."
        )


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading; of an object, only the parts that are read are transferred.

    Args:
        path: Path below a folder from `resolve`.

    Raises:
        OSError: If it cannot be read; a StorageError if that is not the fault of the object.
    """
    if not is_remote(path):
        with open(path, "rb") as file:
            yield file
        return
    system, name = _opened(path)
    with storage_errors(str(path)):
        remote = system.open(name, "rb", cache_type="none")
    with remote:
        yield cast(BinaryIO, _RemoteFile(remote, str(path)))


@contextmanager
def parquet_input(path: Path) -> Iterator[Any]:
    """Yield what pyarrow reads a file from: the path itself of a local one."""
    if not is_remote(path):
        yield path
        return
    with opened(path) as file:
        yield file


def read_text(path: Path) -> str | None:
    """Return the text of a file, UTF-8; None if there is none.

    Args:
        path: Path below a folder from `resolve`.
    """
    if not is_remote(path):
        return path.read_text(encoding="utf-8") if path.is_file() else None
    system, name = _opened(path)
    try:
        with storage_errors(str(path)):
            return system.cat_file(name).decode("utf-8")
    except FileNotFoundError:
        return None


class _RemoteFile(io.RawIOBase):
    """Object that is read; errors of the client name its URL."""

    def __init__(self, file: Any, url: str):
        self._file = file
        self._url = url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        with storage_errors(self._url):
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


def _opened(path: Any) -> tuple[Any, str]:
    """Return the file system and the path in it; the options of a `UPath` are kept."""
    return (path.fs, path.path) if path.storage_options else file_system(str(path))


__all__ = [
    "LOCKS",
    "UNFINISHED",
    "LocalStorage",
    "RemoteStorage",
    "Storage",
    "check_local",
    "is_remote",
    "opened",
    "parquet_input",
    "read_text",
    "resolve",
    "storage_of",
]
