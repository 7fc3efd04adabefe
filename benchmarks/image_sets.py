"""Labeled images in memory: what to train on, and how encoders are measured on them."""

# N images · H, W pixels · C channels · K, M images of a split · E embedding

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.model_selection import StratifiedKFold

from benchmarks.duplicates_images import STAMPS
from benchmarks.fashion_mnist import (
    DEBIAN_FOLDER,
    MEAN,
    STD,
    GrayImageSource,
    LabeledImages,
    load_splits,
)
from selfvit.data.decoding import decode_image
from selfvit.data.image_source import ImageRecord, ImageSource, short_hash
from selfvit.data.sources import open_images
from selfvit.embedding.embedder import Embedder
from selfvit.evaluation.knn import weighted_knn_hits
from selfvit.evaluation.linear_probe import linear_probe_hits
from selfvit.training.dataloader.collate import normalize

SAMPLE = Path(__file__).parent.parent / "examples" / "fashion_mnist_sample"
NUM_FOLDS = 5
NUM_NEIGHBORS = 20  # DINO, arXiv 2104.14294, App. F.1
MAX_KNOWN = 10_000  # images to choose settings by; embedding all would take as long as training
MAX_RAW_SIZE = 28  # pixels
STORED = 1.5  # shorter side of a stored image, as a multiple of the encoder's; crops are half of it


@dataclass(frozen=True)
class Split:
    """Images to classify, and the labeled images that classify them.

    Args:
        known: Positions of the labeled images, (K,).
        queries: Positions of the images to classify, (M,).
    """

    known: np.ndarray
    queries: np.ndarray


@dataclass(frozen=True)
class LabeledSet:
    """Images to train on, and images with labels to measure encoders on.

    Args:
        name: Name for files.
        title: Title for tables, with the number of images.
        source: Training images, without labels.
        pixels: Images to measure on, at the size of the encoder, (N, H, W, C) uint8, C 1 or 3.
        labels: Class indices of the same images, (N,).
        choosing: Splits by which settings are chosen.
        reporting: Splits whose accuracy is reported. Their queries are not among those of
            `choosing`.
        patch_size: Side of the encoder's patches, pixels.
        image_mean: Mean of each channel, for pixels in 0 to 1.
        image_std: Std of each channel, for pixels in 0 to 1.
        augmentation: Options of the augmentation that differ from the demo recipes.
        note: How it is measured, in a sentence.
    """

    name: str
    title: str
    source: ImageSource
    pixels: np.ndarray
    labels: np.ndarray
    choosing: Sequence[Split]
    reporting: Sequence[Split]
    patch_size: int
    image_mean: list[float]
    image_std: list[float]
    augmentation: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def image_size(self) -> int:
        """Side of the images to measure on, pixels."""
        return self.pixels.shape[1]

    def raw_pixels(self) -> np.ndarray:
        """Return the pixels as vectors (N, E), at a size of at most 28 pixels.

        More of them make the linear probe slow: minutes for a few hundred images.
        """
        step = -(-self.image_size // MAX_RAW_SIZE)
        count, rows, columns, channels = self.pixels.shape
        blocks = self.pixels.reshape(count, rows // step, step, columns // step, step, channels)
        return blocks.mean(axis=(2, 4), dtype=np.float32).reshape(count, -1) / 255


class ArraySource(ImageSource):
    """Source of decoded images in memory, which selfvit can train on.

    Args:
        images: Images, each (H, W, 3) uint8.
        description: Description of the images.
    """

    def __init__(self, images: Sequence[np.ndarray], description: str):
        super().__init__(description, None, "id")
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> ImageRecord:
        """Return one image."""
        return ImageRecord(str(position), self.images[position])

    def labels(self) -> np.ndarray | None:
        """Return None, because the labels are not used in training."""
        return None

    @property
    def fingerprint(self) -> str:
        """Hash of the pixels."""
        return short_hash([image.tobytes() for image in self.images])


def fashion_mnist(folder: Path = DEBIAN_FOLDER, limit: int | None = None) -> LabeledSet:
    """Return Fashion-MNIST: 5,000 of the training images choose settings, and are not trained on.

    Args:
        folder: Folder of the four gzipped IDX files.
        limit: Number of training images; None uses all 60,000.

    Raises:
        FileNotFoundError: If a file is missing; the message explains how to install it.
        ValueError: If a file has another format, or the limit is out of range.
    """
    splits = load_splits(folder, limit)
    parts = (splits.train, splits.held_out, splits.test)
    train, held_out, test = np.split(
        np.arange(sum(map(len, parts))), np.cumsum([len(part) for part in parts])[:-1]
    )
    return LabeledSet(
        name="fashion_mnist",
        title=f"Fashion-MNIST ({len(splits.all_train):,} training and {len(test):,} test images)",
        source=GrayImageSource(splits.train),
        pixels=np.concatenate([part.pixels for part in parts])[..., None],
        labels=np.concatenate([part.labels for part in parts]),
        choosing=[Split(train[:MAX_KNOWN], held_out)],
        reporting=[Split(np.concatenate([train, held_out]), test)],
        patch_size=7,
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
        note=(
            f"Trained on {len(train):,} images; learning rates are chosen by the {len(held_out):,} "
            "others. Accuracies are those of the test images, classified by all training images."
        ),
    )


def fashion_mnist_sample(limit: int | None = None) -> LabeledSet:
    """Return the sample of Fashion-MNIST in examples/: 8,000 training and 2,000 test images.

    Args:
        limit: Number of training images; None uses all. Test images are a fourth as many.
    """
    parts = []
    for name, part_limit in (("train", limit), ("test", limit and limit // 4)):
        opened = open_images(SAMPLE / f"{name}.parquet")
        source = opened if part_limit is None else opened.sample(part_limit)
        labels = source.labels()
        assert labels is not None
        images = [decode_image(source[position].image) for position in range(len(source))]
        pixels = np.stack([np.asarray(image)[..., 0] for image in images])
        parts.append(LabeledImages(pixels, labels))
    train, test = parts
    positions = np.arange(len(train) + len(test))
    return LabeledSet(
        name="fashion_mnist",
        title=f"Fashion-MNIST sample ({len(train):,} training and {len(test):,} test images)",
        source=GrayImageSource(train),
        pixels=np.concatenate([train.pixels, test.pixels])[..., None],
        labels=np.concatenate([train.labels, test.labels]),
        choosing=[],
        reporting=[Split(positions[: len(train)], positions[len(train) :])],
        patch_size=7,
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
    )


def stamps(
    folder: Path = STAMPS,
    limit: int | None = None,
    image_size: int = 56,
    patch_size: int = 14,
) -> LabeledSet:
    """Return the stamps of Tux Paint, as `selfvit train` reads them, with their folders as classes.

    The images are in five folds, stratified by class. Images of one fold are classified by those of
    the four others. The first fold chooses settings, and the four others are reported. A class of
    fewer than five images is in as many folds as it has images.

    Args:
        folder: Folder of the Debian package tuxpaint-stamps-default.
        limit: Number of images; None uses all.
        image_size: Side of the images, pixels.
        patch_size: Side of the encoder's patches, pixels.

    Raises:
        FileNotFoundError: If the folder is missing; the message explains how to install it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is missing: install the stamps with "
            "`sudo apt install tuxpaint-stamps-default`."
        )
    opened = open_images(folder)
    source = opened if limit is None else opened.sample(limit)
    labels = source.labels()
    assert labels is not None
    images = [decode_image(source[position].image) for position in range(len(source))]
    stored = [_shrink(image, round(STORED * image_size)) for image in images]
    size = (image_size, image_size)
    pixels = np.stack([np.asarray(im.resize(size, Image.Resampling.BICUBIC)) for im in images])
    folds = _folds(labels)
    scaled = pixels.reshape(-1, 3) / 255
    return LabeledSet(
        name="stamps",
        title=f"stamps of Tux Paint ({len(images):,} color images in {labels.max() + 1} folders)",
        source=ArraySource([np.asarray(image) for image in stored], f"{len(images)} stamps"),
        pixels=pixels,
        labels=labels,
        choosing=folds[:1],
        reporting=folds[1:],
        patch_size=patch_size,
        image_mean=scaled.mean(axis=0).tolist(),
        image_std=scaled.std(axis=0).tolist(),
        augmentation={  # colors tell the folders apart better than those of garments do
            "color_jitter": [0.4, 0.4, 0.2, 0.1],
            "grayscale_probability": 0.2,
        },
        note=(
            f"Trained on all images without labels, at {image_size} pixels. Images of one of five "
            "folds, stratified by class, are classified by the others; the first fold chooses "
            "learning rates, the four others are reported. A class of fewer than five images is in "
            "as many folds as it has images. Images that occur twice were not removed. Raw pixels "
            "are those of images of 28 pixels."
        ),
    )


def _shrink(image: Image.Image, shorter_side: int) -> Image.Image:
    scale = shorter_side / min(image.size)
    if scale >= 1:
        return image
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _folds(labels: np.ndarray) -> list[Split]:
    folds = StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        return [Split(known, queries) for known, queries in folds.split(labels, labels)]


def embed(checkpoint: Path, images: LabeledSet, positions: np.ndarray | None = None) -> np.ndarray:
    """Return the vectors (N, E) of the images with a checkpoint; rows that are not needed are 0.

    Args:
        checkpoint: Checkpoint folder.
        images: Images.
        positions: Positions of the images that are needed; None for all.
    """
    embedder = Embedder.from_pretrained(checkpoint, device="cpu")
    processor: Any = embedder.processor
    positions = np.arange(len(images.pixels)) if positions is None else positions
    size = (images.image_size, images.image_size)
    if embedder.model.config.image_height_width != size:
        raise ValueError(
            f"the encoder of {checkpoint} takes images of other sizes than {images.name} has "
            f"({size[0]} x {size[1]}); load the images at its size."
        )
    vectors = np.zeros((len(images.pixels), embedder.embedding_size), dtype=np.float32)
    for start in range(0, len(positions), 250):
        chosen = positions[start : start + 250]
        pixels = torch.from_numpy(images.pixels[chosen]).movedim(-1, 1).expand(-1, 3, -1, -1)
        normalized = normalize(pixels, list(processor.image_mean), list(processor.image_std))
        vectors[chosen] = embedder.embed_pixels(normalized)
    return vectors


def accuracies(
    vectors: np.ndarray, labels: np.ndarray, splits: Sequence[Split], *, with_probe: bool = True
) -> dict[str, float]:
    """Return the accuracies "knn_20" and "linear_probe" over the queries of all splits, in [0, 1].

    Args:
        vectors: (N, E).
        labels: (N,) class indices.
        splits: Splits.
        with_probe: Whether to measure the linear probe, which takes longer.
    """
    hits: dict[str, list[np.ndarray]] = {}
    for split in splits:
        known, queries = split.known, split.queries
        arrays = (vectors[known], labels[known], vectors[queries], labels[queries])
        by_k = weighted_knn_hits(*arrays, ks=[NUM_NEIGHBORS])
        hits.setdefault(f"knn_{NUM_NEIGHBORS}", []).append(by_k[NUM_NEIGHBORS])
        if with_probe:
            hits.setdefault("linear_probe", []).append(linear_probe_hits(*arrays))
    return {name: float(np.concatenate(parts).mean()) for name, parts in hits.items()}


def needed(splits: Sequence[Split]) -> np.ndarray:
    """Return the positions of all images of some splits, in ascending order."""
    return np.unique(np.concatenate([part for s in splits for part in (s.known, s.queries)]))


__all__ = [
    "ArraySource",
    "LabeledSet",
    "Split",
    "accuracies",
    "embed",
    "fashion_mnist",
    "fashion_mnist_sample",
    "needed",
    "stamps",
]
