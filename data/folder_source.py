"""Source that reads image files by their paths below a folder, or from a zip file."""

from __future__ import annotations

import functools
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import printable
from .files.image_formats import (
    NOT_IMAGES,
    SIGNATURE_BYTES,
    extension_of,
    format_of,
    image_extensions,
    missing_support,
)
from .files.listing import is_hidden
from .image_source import NO_LABEL, ImageRecord, ImageSource, UnreadableContent, short_hash
from .inventory import Inventory
from .labels import Labels


class FolderSource(ImageSource):
    """Image files by their paths.

    Args:
        folder: Folder that the paths are relative to, or its URL. A local one is made absolute, as
            a process that reads the source can have another working directory.
        paths: Paths of the files, in the order of the source.
        description: Description of the data for logs and model cards.
        labels: Labels of the images.
        inventory: Files that were found, taken and left out.
    """

    def __init__(
        self,
        folder: Path | str,
        paths: list[str],
        description: str,
        labels: Labels,
        inventory: Inventory,
    ):
        super().__init__(description, labels.names, "path", inventory, labels.rule)
        self.folder = folder.absolute() if isinstance(folder, Path) else folder
        self.paths = paths
        self._labels = labels.values

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> ImageRecord:
        path = self.paths[position]
        label = None if self._labels is None else int(self._labels[position])
        content = self.read(path)
        return ImageRecord(printable(path), content, None if label == NO_LABEL else label)

    def name_of(self, position: int) -> str:
        """Return the path of an image within the folder."""
        return printable(self.paths[position])

    def read(self, path: str) -> str | bytes | UnreadableContent:
        """Return what the decoder opens: the path of the file, or its content."""
        return os.path.join(self.folder, path)

    def labels(self) -> np.ndarray | None:
        """Return the labels (N,), int64, -1 for an image without one, or None if there are none."""
        return None if self._labels is None else self._labels.copy()

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the paths, and of labels that do not follow from them."""
        parts = [printable(path).encode() for path in self.paths]
        if self._labels is not None and not (self.label_rule or "").startswith("folder names"):
            parts.append(self._labels.tobytes())
        return short_hash(parts)


class ListedSource(FolderSource):
    """Image files named by a list or table, whose folders are no labels."""


class ZipSource(FolderSource):
    """Image files in a zip file; a folder that contains all of them is not part of their names.

    Args:
        archive: Path of the zip file.
        members: Names of the members, in the order of the source.
        args: Positional arguments of `FolderSource` from `description` on.
    """

    def __init__(self, archive: Path, members: list[str], *args: Any):
        super().__init__(archive, members, *args)
        self._opened: zipfile.ZipFile | None = None
        self._opened_by = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def read(self, path: str) -> bytes | UnreadableContent:
        """Return the content of a member, or why it cannot be read."""
        # A file position that processes share would mix up their reads.
        if self._opened is None or self._opened_by != os.getpid():
            self._opened, self._opened_by = zipfile.ZipFile(self.folder), os.getpid()
        try:
            return self._opened.read(_member(self._opened, path))
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            NotImplementedError,
            RuntimeError,
        ) as error:
            return UnreadableContent(f"damaged or encrypted in the zip file: {error}")


def _member(archive: zipfile.ZipFile, path: str) -> zipfile.ZipInfo:
    try:
        return archive.getinfo(path)
    except KeyError:
        return archive.getinfo(path.replace("/", "\\"))


def members_of_zip(archive: Path) -> list[tuple[str, zipfile.ZipInfo]]:
    """Return the files in a zip file that are not hidden, with their names.

    A backslash separates folders if no name has "/", as in zip files of some old programs.

    Raises:
        ValueError: If the file is no zip file or is damaged.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise ValueError(
            f"{str(archive)!r} cannot be read as a zip file: {error}; repair or replace it."
        ) from error
    named = zip(_posix_names(members), members, strict=True)
    return [
        (name, entry) for name, entry in named if not name.endswith("/") and not is_hidden(name)
    ]


def _posix_names(members: Sequence[zipfile.ZipInfo]) -> list[str]:
    names = [entry.filename for entry in members]
    if any("/" in name for name in names):
        return names
    return [name.replace("\\", "/") for name in names]


def kind_of_member(archive: Path, entry: zipfile.ZipInfo) -> str:
    """Return the extension of a member; where that tells nothing, of the format of its content.

    Args:
        archive: Path of the zip file.
        entry: Member.
    """
    extension = extension_of(entry.filename)
    is_known = extension in image_extensions() or extension in NOT_IMAGES
    if is_known or missing_support(extension) is not None:
        return extension
    try:
        with zipfile.ZipFile(archive) as opened, opened.open(entry) as file:
            return format_of(file.read(SIGNATURE_BYTES)) or extension
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
        return extension


__all__ = ["FolderSource", "ListedSource", "ZipSource", "kind_of_member", "members_of_zip"]
