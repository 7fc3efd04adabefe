"""All of Fashion-MNIST (arXiv 1708.07747), from Debian's package."""

# N images

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from selfvit.data.image_source import ImageRecord, ImageSource, short_hash

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
# of the training images, as in `dino_demo`
MEAN, STD = 0.2860, 0.3530


@dataclass(frozen=True)
class LabeledImages:
    """Gray images and their classes.

    Args:
        pixels: (N, 28, 28) uint8.
        labels: (N,) class indices, 0 to 9.
    """

    pixels: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, positions: np.ndarray | slice) -> LabeledImages:
        """Return the images at some positions, in their order."""
        return LabeledImages(self.pixels[positions], self.labels[positions])


@dataclass(frozen=True)
class Splits:
    """What is trained on, what choices are made on, and what is measured on, once, at the end."""

    train: LabeledImages
    held_out: LabeledImages
    test: LabeledImages

    @property
    def all_train(self) -> LabeledImages:
        """The training part, held-out images included: for neighbors and linear probe."""
        return LabeledImages(
            np.concatenate([self.train.pixels, self.held_out.pixels]),
            np.concatenate([self.train.labels, self.held_out.labels]),
        )


def load_splits(folder: Path = DEBIAN_FOLDER, limit: int | None = None) -> Splits:
    """Read the data and hold out a twelfth of the training part (5,000 of 60,000).

    Args:
        folder: of the four files, gzipped IDX.
        limit: images of the training part, drawn evenly at random; a sixth as many of the test
            part, as the whole has. None takes all.

    Raises:
        FileNotFoundError: if a file is missing; the message says how to get it.
        ValueError: if a file is not what its name says, or the limit leaves too few images.
    """
    train = _read_part(folder, "train")
    test = _read_part(folder, "t10k")
    limit = len(train) if limit is None else limit
    if not 120 <= limit <= len(train):
        raise ValueError(
            f"images ({limit}) must be between 120, of which 10 are held out, and {len(train)}."
        )
    rng = np.random.default_rng(0)
    train = train.take(rng.permutation(len(train))[:limit])
    test = test.take(rng.permutation(len(test))[: limit // 6])
    num_held_out = limit // 12
    return Splits(
        train=train.take(slice(num_held_out, None)),
        held_out=train.take(slice(num_held_out)),
        test=test,
    )


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped IDX file of bytes (format: Y. LeCun, "The MNIST database").

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it is not such a file.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: install Fashion-MNIST with "
            "`sudo apt install dataset-fashion-mnist`, or name the folder of its four .gz files "
            "with --data."
        )
    content = gzip.decompress(path.read_bytes())
    num_axes = content[3] if len(content) > 3 else 0
    header = 4 + 4 * num_axes
    shape = tuple(np.frombuffer(content[4:header], dtype=">u4").tolist())
    # two zeros, then 8: the items are unsigned bytes
    if content[:3] != b"\x00\x00\x08" or len(content) != header + int(np.prod(shape)):
        raise ValueError(f"{path} is not an IDX file of bytes; install the package anew.")
    return np.frombuffer(content[header:], dtype=np.uint8).reshape(shape)


def _read_part(folder: Path, name: str) -> LabeledImages:
    return LabeledImages(
        pixels=read_idx(folder / f"{name}-images-idx3-ubyte.gz"),
        labels=read_idx(folder / f"{name}-labels-idx1-ubyte.gz").astype(np.int64),
    )


class GrayImageSource(ImageSource):
    """Gray images in memory, as a source that selfvit trains on."""

    def __init__(self, images: LabeledImages):
        super().__init__(f"{len(images)} images of Fashion-MNIST", None, "id")
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> ImageRecord:
        """Return one image."""
        return ImageRecord(str(position), Image.fromarray(self.images.pixels[position]))

    def labels(self) -> np.ndarray | None:
        """Return none: training is without labels."""
        return None

    @property
    def fingerprint(self) -> str:
        """Hash of the pixels."""
        return short_hash([self.images.pixels.tobytes()])
