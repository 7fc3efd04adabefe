"""Checksums of image files, by which changed files are found."""

from __future__ import annotations

import hashlib
import os
from functools import partial
from typing import Any

NUM_BYTES = 8  # 64 bits: of a million files, two share a checksum with probability 3e-8


def checksum_of(image: Any) -> str | None:
    """Return the BLAKE2b hash of a file's content, 16 hexadecimal digits.

    The path and the time of a file do not tell whether its content has changed.

    Args:
        image: Path or content of an image file; None is returned for anything else.

    Raises:
        OSError: If the file cannot be read.
    """
    if isinstance(image, bytes):
        return hashlib.blake2b(image, digest_size=NUM_BYTES).hexdigest()
    if not isinstance(image, (str, os.PathLike)):
        return None
    digest = hashlib.blake2b(digest_size=NUM_BYTES)
    with open(image, "rb") as file:
        for block in iter(partial(file.read, 1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


__all__ = ["checksum_of"]
