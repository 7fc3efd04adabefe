"""File in object storage: opened in place, or copied to the disk while it is needed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

from .file_system import file_system, storage_errors


class RemoteFile:
    """File in object storage.

    Args:
        url: URL of the file.
        size: Number of bytes.
    """

    def __init__(self, url: str, size: int):
        self.url = url
        self.size = size
        self._copy: Future[tempfile.TemporaryDirectory[str]] | None = None

    def __str__(self) -> str:
        return self.url

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_copy": None}

    @property
    def name(self) -> str:
        """Last part of the URL."""
        return self.url.rpartition("/")[2]

    def open(self) -> BinaryIO:
        """Open the file for reading; only the parts that are read are transferred.

        Raises:
            StorageError: If it cannot be read.
        """
        system, path = file_system(self.url)
        with storage_errors(self.url):
            return system.open(path, "rb", cache_type="none")

    def start_copy(self) -> None:
        """Start to copy the file, so that it is there when `copied` asks for it."""
        if self._copy is None:
            pool = ThreadPoolExecutor(1)
            self._copy = pool.submit(self._download)
            pool.shutdown(wait=False)

    @contextmanager
    def copied(self) -> Iterator[Path]:
        """Yield a copy of the file on the disk, which is deleted afterwards.

        Raises:
            StorageError: If it cannot be read.
            ValueError: If the block raises one; the message names the URL and not the copy.
        """
        self.start_copy()
        assert self._copy is not None
        copy, self._copy = self._copy, None
        with copy.result() as folder:
            try:
                yield Path(folder, self.name)
            except ValueError as error:
                text = str(error).replace(str(Path(folder, self.name)), self.url)
                raise ValueError(text) from error

    def _download(self) -> tempfile.TemporaryDirectory[str]:
        folder = tempfile.TemporaryDirectory(prefix="selfvit-shard-")
        system, path = file_system(self.url)
        with storage_errors(self.url):
            system.get_file(path, str(Path(folder.name, self.name)))
        return folder


def local_copy(file: Path | RemoteFile) -> AbstractContextManager[Path]:
    """Return a context manager of a file on the disk: the file itself, or a copy.

    Args:
        file: File.
    """
    return file.copied() if isinstance(file, RemoteFile) else nullcontext(file)


__all__ = ["RemoteFile", "local_copy"]
