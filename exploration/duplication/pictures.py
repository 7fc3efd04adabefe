"""Hash of the pixels, size and thumbnail of each image, for the search of duplicates."""

# N rows · S side of a thumbnail

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..collection import Collection, CollectionImages
from .alignment import SIDE
from .variants import LEAST_SHARE


@dataclass(frozen=True)
class Pictures:
    """Images of a collection in short: 7 KB each.

    Args:
        hashes: Hash of size and pixels of each image.
        sizes: Width and height in pixels, (N, 2).
        thumbnails: Images resized to a square, (N, S, S, 3), uint8.
    """

    hashes: list[bytes]
    sizes: np.ndarray
    thumbnails: np.ndarray

    @property
    def num_pixels(self) -> np.ndarray:
        """Number of pixels of each image, (N,)."""
        return self.sizes.prod(axis=1)


def read_pictures(collection: Collection, images: CollectionImages) -> Pictures:
    """Decode all images of a collection; files with the same checksum are decoded once.

    Args:
        collection: Vectors.
        images: Images of the collection.

    Raises:
        FileNotFoundError: If an image is no longer there.
        UnreadableImageError: If an image cannot be decoded.
    """
    hashes: list[bytes] = []
    sizes = np.empty((len(collection), 2), dtype=np.int64)
    thumbnails = np.empty((len(collection), SIDE, SIDE, 3), dtype=np.uint8)
    first_rows: dict[str, int] = {}
    for row, checksum in enumerate(collection.checksums):
        known = first_rows.setdefault(checksum, row) if checksum else row
        if known != row:
            hashes.append(hashes[known])
            sizes[row], thumbnails[row] = sizes[known], thumbnails[known]
            continue
        picture = images.picture(row)
        hashes.append(pixel_hash(picture))
        sizes[row], thumbnails[row] = picture.size, thumbnail(picture)
    return Pictures(hashes, sizes, thumbnails)


def pixel_hash(picture: Image.Image) -> bytes:
    """Return a hash of the size and of the pixels of an image.

    Args:
        picture: Image, RGB.
    """
    return hashlib.blake2b(repr(picture.size).encode() + picture.tobytes(), digest_size=16).digest()


def thumbnail(picture: Image.Image) -> np.ndarray:
    """Return an image resized to a square, (S, S, 3), uint8.

    Args:
        picture: Image, RGB.
    """
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def is_alike_in_shape(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return whether a resize and a small crop can turn one size into the other.

    Args:
        first: Widths and heights in pixels, (P, 2).
        second: Widths and heights in pixels, (P, 2).

    Returns:
        Whether the aspect ratios are close enough, (P,).
    """
    differences = np.log(first[:, 0] / first[:, 1]) - np.log(second[:, 0] / second[:, 1])
    smaller = np.where((first.prod(axis=1) < second.prod(axis=1))[:, None], first, second)
    rounding = (0.5 / smaller).sum(axis=1)  # half a pixel of each side of the image that was made
    return np.abs(differences) <= -np.log(LEAST_SHARE) + rounding


__all__ = ["Pictures", "is_alike_in_shape", "pixel_hash", "read_pictures", "thumbnail"]
