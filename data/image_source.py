"""What a source of images is: encoded images by position, decoded where they are wanted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

NO_LABEL = -1  # as `datasets` marks it in unlabeled splits


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
        label_names: names of the classes, or None if the images are unlabeled.
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


class ChosenSource(ImageSource):
    """Some images of a source, in the order of their positions.

    Args:
        source: that has them.
        positions: (N,), of the source.
    """

    def __init__(self, source: ImageSource, positions: np.ndarray):
        description = f"{len(positions)} of the {source.description}"
        super().__init__(description, source.label_names, source.id_column)
        self._source = source
        self._positions = np.sort(positions)

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
        """Hash of the source's and the positions."""
        return hash_of([self._source.fingerprint.encode(), self._positions.tobytes()])


class SampledSource(ChosenSource):
    """Some images of a source, drawn at random with a fixed seed.

    Not the first ones: sources are often sorted by class.

    Args:
        source: to draw from.
        size: images; at most those of the source.
    """

    def __init__(self, source: ImageSource, size: int):
        super().__init__(source, np.random.default_rng(0).permutation(len(source))[:size])


class RecordSource(ImageSource):
    """Images at hand, for example the first ones of a stream.

    Args:
        records: the images.
        description: of the data.
        label_names: names of the classes, or None.
    """

    def __init__(self, records: list[ImageRecord], description: str, label_names: list[str] | None):
        super().__init__(description, label_names, "id")
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, position: int) -> ImageRecord:
        return self._records[position]

    def labels(self) -> np.ndarray | None:
        """Return labels (N,), int64, -1 where an image has none; None if no image has."""
        labels = [NO_LABEL if image.label is None else image.label for image in self._records]
        is_labeled = self.label_names is not None and any(label != NO_LABEL for label in labels)
        return np.array(labels, dtype=np.int64) if is_labeled else None

    @property
    def fingerprint(self) -> str:
        """Hash of the description, the ids and the labels."""
        parts = [self.description, *(f"{image.id} {image.label}" for image in self._records)]
        return hash_of(part.encode() for part in parts)


def hash_of(parts: Iterable[bytes]) -> str:
    """Return 16 hexadecimal digits that change with any part."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:16]


__all__ = [
    "NO_LABEL",
    "ChosenSource",
    "ImageRecord",
    "ImageSource",
    "RecordSource",
    "SampledSource",
    "hash_of",
]
