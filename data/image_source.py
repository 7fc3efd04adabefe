"""What a source of images is: encoded images by position, decoded where they are wanted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

NO_LABEL = -1  # as `datasets` marks it in unlabelled splits


@dataclass(frozen=True)
class ImageRecord:
    """One image, not decoded.

    Args:
        id: what names it in reports and results: the path within the folder, or an id or row.
        image: content of the file, its path, or an image opened already.
        label: index into the source's `label_names`, or None.
    """

    id: str
    image: bytes | str | Image.Image
    label: int | None = None


class ImageSource:
    """Images by position. Can be pickled, so that DataLoader workers can have it.

    Args:
        description: of the data, for logs and model cards.
        label_names: names of the classes, or None if the images are unlabelled.
        id_column: what ids are called in tables: "path" or "id".
    """

    def __init__(self, description: str, label_names: list[str] | None, id_column: str):
        self.description = description
        self.label_names = label_names
        self.id_column = id_column

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, position: int) -> ImageRecord:
        raise NotImplementedError

    def labels(self) -> np.ndarray | None:
        """Return labels (N,), int64, -1 where an image has none; None if no image has."""
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        """Hash of the number of images, their names and labels: it notices a changed data set.

        Not of their content, so that it is cheap.
        """
        raise NotImplementedError

    def sample(self, limit: int) -> ImageSource:
        """Return at most `limit` images, drawn evenly at random, the same each time; in order."""
        return self if len(self) <= limit else SampledSource(self, limit)


class SampledSource(ImageSource):
    """Some images of a source, drawn at random with a fixed seed.

    Not the first ones: sources are often sorted by class.

    Args:
        source: to draw from.
        size: images; at most those of the source.
    """

    def __init__(self, source: ImageSource, size: int):
        description = f"{size} of the {source.description}"
        super().__init__(description, source.label_names, source.id_column)
        self._source = source
        self._positions = np.sort(np.random.default_rng(0).permutation(len(source))[:size])

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, position: int) -> ImageRecord:
        return self._source[int(self._positions[position])]

    def labels(self) -> np.ndarray | None:
        """Return labels (N,), as the source's."""
        labels = self._source.labels()
        return None if labels is None else labels[self._positions]

    @property
    def fingerprint(self) -> str:
        """Hash of the source's and the size."""
        return hash_of([self._source.fingerprint.encode(), str(len(self)).encode()])


def hash_of(parts: Iterable[bytes]) -> str:
    """Return 16 hexadecimal digits that change with any part."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:16]


__all__ = ["NO_LABEL", "ImageRecord", "ImageSource", "SampledSource", "hash_of"]
