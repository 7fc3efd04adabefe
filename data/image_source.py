"""Interface of image sources: encoded images by position, decoded by the consumer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .inventory import Inventory

NO_LABEL = -1  # the value that `datasets` uses in unlabeled splits


@dataclass(frozen=True)
class UnreadableContent:
    """Content of an image that its container cannot return.

    Args:
        reason: Reason, without the name of the image.
    """

    reason: str


@dataclass(frozen=True)
class ImageRecord:
    """One image that is not decoded yet.

    Args:
        id: Name of the image in reports and results: its path within the folder, its id, or its
            row. The frames of a video have the same one.
        image: Content of the file, path of the file, an open image, pixels (H, W, C), or why there
            is none.
        label: Index into `label_names` of the source, or None.
        seconds: Time of a frame from the first frame of its video; None for any other image.
    """

    id: str
    image: bytes | str | Image.Image | np.ndarray | UnreadableContent
    label: int | None = None
    seconds: float | None = None

    @property
    def name(self) -> str:
        """Name in messages, which is different for each frame of a video."""
        return self.id if self.seconds is None else f"{self.id} at {self.seconds:.7g} s"


class ImageSource:
    """Images by position. A source can be pickled, so that DataLoader workers can use it.

    Args:
        description: Description of the data for logs and model cards.
        label_names: Names of the classes, or None if the images are unlabeled.
        id_column: Name of the id column in tables: "path" or "id".
        inventory: Images that were found when the source was opened; None if all were taken.
        label_rule: Rule that the labels were derived by, or None.
    """

    is_video = False
    numbers_rows = False  # see `StreamingImageSource`

    def __init__(
        self,
        description: str,
        label_names: list[str] | None,
        id_column: str,
        inventory: Inventory | None = None,
        label_rule: str | None = None,
    ):
        self.description = description
        self.label_names = label_names
        self.id_column = id_column
        self.label_rule = label_rule
        self._inventory = inventory

    @property
    def inventory(self) -> Inventory:
        """Images that were found, taken and left out when the source was opened."""
        if self._inventory is None:
            self._inventory = Inventory(found=len(self), taken=len(self))
        return self._inventory

    @inventory.setter
    def inventory(self, inventory: Inventory) -> None:
        """Set the inventory of a source that left something out."""
        self._inventory = inventory

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, position: int) -> ImageRecord:
        raise NotImplementedError

    @property
    def num_images(self) -> int:
        """Number of images."""
        return len(self)

    @property
    def num_positions(self) -> int:
        """Number of positions: that of images."""
        return len(self)

    def name_of(self, position: int) -> str:
        """Return the name of an image, if possible without reading the image."""
        return f"image {position}"

    def names(self) -> list[str]:
        """Return the names of all images, in their order."""
        return [self.name_of(position) for position in range(len(self))]

    def labels(self) -> np.ndarray | None:
        """Return the labels (N,), int64, -1 for an image without one, or None if there are none."""
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        """Hash of the number of images, their names and their labels, to detect changed data.

        The content of the images is not part of the hash, so it is fast to compute.
        """
        raise NotImplementedError

    def sample(self, limit: int) -> ImageSource:
        """Return at most `limit` images in their stored order, drawn with a fixed seed."""
        return self if len(self) <= limit else SampledSource(self, limit)


class ChosenSource(ImageSource):
    """Subset of the images of a source, in the order of their positions.

    Args:
        source: Source of the images.
        positions: Positions in the source, (N,).
    """

    def __init__(self, source: ImageSource, positions: np.ndarray):
        description = f"{len(positions)} of the {source.description}"
        super().__init__(description, source.label_names, source.id_column)
        self._source = source
        self._positions = np.sort(positions)
        left_out = source.inventory.left_out
        self.label_rule = source.label_rule
        self.inventory = Inventory(
            len(positions) + len(left_out), len(positions), left_out, source.inventory.notes
        )

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, position: int) -> ImageRecord:
        return self._source[int(self._positions[position])]

    def name_of(self, position: int) -> str:
        """Return the name of an image, as the source does."""
        return self._source.name_of(int(self._positions[position]))

    def names(self) -> list[str]:
        """Return the names of all images, as the source does."""
        names = self._source.names()
        return [names[position] for position in self._positions.tolist()]

    def labels(self) -> np.ndarray | None:
        """Return the labels (N,), int64, as the source does."""
        labels = self._source.labels()
        return None if labels is None else labels[self._positions]

    @property
    def fingerprint(self) -> str:
        """Hash of the fingerprint of the source and the positions."""
        return short_hash([self._source.fingerprint.encode(), self._positions.tobytes()])


class SampledSource(ChosenSource):
    """Random subset of the images of a source, drawn with a fixed seed.

    The first images would not be representative: sources are often sorted by class.

    Args:
        source: Source of the images.
        size: Number of images; a smaller source is used completely.
    """

    def __init__(self, source: ImageSource, size: int):
        super().__init__(source, np.random.default_rng(0).permutation(len(source))[:size])


class RecordSource(ImageSource):
    """Source of records in memory, for example the first ones of a stream.

    Args:
        records: Images.
        description: Description of the data for logs and model cards.
        label_names: Names of the classes, or None.
    """

    def __init__(self, records: list[ImageRecord], description: str, label_names: list[str] | None):
        super().__init__(description, label_names, "id")
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, position: int) -> ImageRecord:
        return self._records[position]

    def name_of(self, position: int) -> str:
        """Return the name of an image."""
        return self._records[position].id

    def labels(self) -> np.ndarray | None:
        """Return the labels (N,), int64, -1 for an image without one, or None if there are none."""
        labels = [NO_LABEL if image.label is None else image.label for image in self._records]
        is_labeled = self.label_names is not None and any(label != NO_LABEL for label in labels)
        return np.array(labels, dtype=np.int64) if is_labeled else None

    @property
    def fingerprint(self) -> str:
        """Hash of the description, the ids and the labels."""
        parts = [self.description, *(f"{image.id} {image.label}" for image in self._records)]
        return short_hash(part.encode() for part in parts)


def short_hash(parts: Iterable[bytes]) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 hash of all parts."""
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
    "short_hash",
]
