"""Source that reads the image files of a folder, labeled by the first-level folders if possible."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import shorten
from .image_source import ImageRecord, ImageSource, short_hash

# Formats that Pillow recognizes but cannot decode by itself.
UNDECODABLE_FORMATS = ("BUFR", "GRIB", "HDF5", "MPEG", "WMF")


class FolderSource(ImageSource):
    """All image files below a folder, sorted by path, without hidden files and folders.

    The images are labeled if there are at least two first-level folders and every image is in one
    of them.

    Args:
        folder: Folder of image files, flat or nested.

    Raises:
        ValueError: If the folder contains no image file.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.paths = sorted(image_files(folder))
        if not self.paths:
            raise ValueError(
                f"there are no images in {str(folder)!r}, which contains "
                f"{_list_contents(folder)}; the extension of an image file must be one of "
                f"{', '.join(sorted(image_extensions()))}."
            )
        first_folders = {path.split("/")[0] for path in self.paths}
        is_labeled = len(first_folders) > 1 and all("/" in path for path in self.paths)
        label_names = sorted(first_folders) if is_labeled else None
        super().__init__(f"{len(self.paths)} image files in {folder}", label_names, "path")
        self._label_of = {name: label for label, name in enumerate(label_names or [])}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> ImageRecord:
        path = self.paths[position]
        return ImageRecord(_printable(path), str(self.folder / path), self._label(path))

    def name_of(self, position: int) -> str:
        """Return the path of an image within the folder."""
        return _printable(self.paths[position])

    def _label(self, path: str) -> int | None:
        return self._label_of[path.split("/")[0]] if self._label_of else None

    def labels(self) -> np.ndarray | None:
        """Return the labels (N,), int64, or None if the images are unlabeled."""
        if self.label_names is None:
            return None
        return np.array([self._label(path) for path in self.paths], dtype=np.int64)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the paths."""
        return short_hash(_printable(path).encode() for path in self.paths)


@functools.cache
def image_extensions() -> frozenset[str]:
    """Return the extensions of the formats that Pillow can decode, in lower case, with the dot."""
    return frozenset(
        extension
        for extension, name in Image.registered_extensions().items()
        if name in Image.OPEN and name not in UNDECODABLE_FORMATS
    )


def image_files(folder: Path) -> Iterator[str]:
    """Yield the image files below a folder as relative POSIX paths, in no particular order."""
    extensions = image_extensions()
    for root, names, files in os.walk(folder, followlinks=True):
        names[:] = [
            name
            for name in names
            if not name.startswith(".") and not _links_to_ancestor(os.path.join(root, name))
        ]
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in extensions:
                yield Path(root, name).relative_to(folder).as_posix()


def _links_to_ancestor(path: str) -> bool:
    if not os.path.islink(path):
        return False
    return Path(os.path.realpath(os.path.dirname(path))).is_relative_to(os.path.realpath(path))


def _list_contents(folder: Path) -> str:
    found = sorted(
        entry.name + ("/" if entry.is_dir() else "")
        for entry in folder.iterdir()
        if not entry.name.startswith(".")
    )
    if not found:
        return "nothing"
    return shorten(found, 5)


def _printable(path: str) -> str:
    """Replace bytes of a file name that are not UTF-8, as tables and JSON require UTF-8."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


__all__ = ["FolderSource", "image_extensions", "image_files"]
