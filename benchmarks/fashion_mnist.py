"""The complete Fashion-MNIST (arXiv 1708.07747), read from the files of the Debian package."""

# N images

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from selfvit.data.image_source import ImageRecord, ImageSource, short_hash

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
# Mean and std of the training images, as in `dino_demo`.
MEAN, STD = 0.2860, 0.3530


@dataclass(frozen=True)
class LabeledImages:
    """Gray images with labels.

    Args:
        pixels: Pixels, (N, 28, 28), uint8.
        labels: Class indices, (N,), 0 to 9.
    """

    pixels: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, positions: np.ndarray | slice) -> LabeledImages:
        """Return the images at the given positions, in the order of the positions."""
        return LabeledImages(self.pixels[positions], self.labels[positions])


@dataclass(frozen=True)
class Splits:
    """Images for training, for choosing hyperparameters, and for the final test.

    Args:
        train: Images for training.
        held_out: Images for choosing hyperparameters.
        test: Images for the final measurement.
    """

    train: LabeledImages
    held_out: LabeledImages
    test: LabeledImages

    @property
    def all_train(self) -> LabeledImages:
        """Training and held-out images together, for k-NN and the linear probe."""
        return LabeledImages(
            np.concatenate([self.train.pixels, self.held_out.pixels]),
            np.concatenate([self.train.labels, self.held_out.labels]),
        )


def load_splits(folder: Path = DEBIAN_FOLDER, limit: int | None = None) -> Splits:
    """Read the data and hold out a twelfth of the training images (5,000 of 60,000).

    Args:
        folder: Folder of the four gzipped IDX files.
        limit: Number of random images from the training part; the test part is limited to a sixth
            of it, as in the complete data. None uses all images.

    Raises:
        FileNotFoundError: If a file is missing; the message explains how to install it.
        ValueError: If a file has another format, or the limit is out of range.
    """
    train = _read_part(folder, "train")
    test = _read_part(folder, "t10k")
    limit = len(train) if limit is None else limit
    if not 120 <= limit <= len(train):
        raise ValueError(
            f"images ({limit}) must be between 120 (10 of them are held out) and {len(train)}."
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
        FileNotFoundError: If the file is missing.
        ValueError: If the file has another format.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: install Fashion-MNIST with "
            "`sudo apt install dataset-fashion-mnist`, or pass the folder of its four .gz files "
            "as --data."
        )
    content = gzip.decompress(path.read_bytes())
    num_axes = content[3] if len(content) > 3 else 0
    header = 4 + 4 * num_axes
    shape = tuple(np.frombuffer(content[4:header], dtype=">u4").tolist())
    # Two zero bytes, then 8 for the type unsigned byte.
    if content[:3] != b"\x00\x00\x08" or len(content) != header + int(np.prod(shape)):
        raise ValueError(f"{path} is not an IDX file of bytes; reinstall the package.")
    return np.frombuffer(content[header:], dtype=np.uint8).reshape(shape)


def _read_part(folder: Path, name: str) -> LabeledImages:
    return LabeledImages(
        pixels=read_idx(folder / f"{name}-images-idx3-ubyte.gz"),
        labels=read_idx(folder / f"{name}-labels-idx1-ubyte.gz").astype(np.int64),
    )


class GrayImageSource(ImageSource):
    """Source of gray images in memory, which selfvit can train on."""

    def __init__(self, images: LabeledImages):
        super().__init__(f"{len(images)} images of Fashion-MNIST", None, "id")
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> ImageRecord:
        """Return one image."""
        return ImageRecord(str(position), Image.fromarray(self.images.pixels[position]))

    def labels(self) -> np.ndarray | None:
        """Return None, because the labels are not used in training."""
        return None

    @property
    def fingerprint(self) -> str:
        """Hash of the pixels."""
        return short_hash([self.images.pixels.tobytes()])
