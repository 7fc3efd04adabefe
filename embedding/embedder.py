"""Images to vectors: decoding and preprocessing in workers, the model in batches."""

# B batch · N images · E embedding

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import AutoImageProcessor, BaseImageProcessor

from ..data.decoding import UnreadableImageError, decode_image
from ..data.image_source import ImageRecord, ImageSource
from ..data.workers import use_one_thread
from ..modeling.checkpoints.hub_revision import resolve_checkpoint
from ..modeling.checkpoints.loading import DTYPES, load_strictly
from ..modeling.modeling_selfvit import SelfViTModel
from ..progress import progress_bar

AnyImage = bytes | str | Path | Image.Image


@dataclass(frozen=True)
class SkippedImage:
    """An image without a vector, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class EmbeddedBatch:
    """What one batch gives.

    Args:
        ids: of the images that could be read, at most B.
        labels: of the same images; None for an image without one.
        vectors: (len(ids), E), float32.
        skipped: the others.
    """

    ids: list[str]
    labels: list[int | None]
    vectors: np.ndarray
    skipped: list[SkippedImage]


@dataclass
class EmbeddedImages:
    """Vectors of a whole source, in its order.

    Args:
        vectors: (N, E), float32.
        ids: of the N images that could be read.
        labels: (N,), int64, -1 for an image without a label; None if the source is unlabeled.
        label_names: names of the classes, or None.
        skipped: images that could not be read.
    """

    vectors: np.ndarray
    ids: list[str]
    labels: np.ndarray | None
    label_names: list[str] | None
    skipped: list[SkippedImage]


class Embedder:
    """Embeds images with a model and the image processor of its checkpoint.

    Vectors equal those of `pipeline("image-feature-extraction", ...)(path, pool=True)`. A model
    that is being trained can be used: its modes and the global random state are left as they were.

    Args:
        model: the encoder; moved if `device` or `dtype` is given.
        processor: image processor.
        normalize: whether vectors are scaled to length 1.
        batch_size: images.
        num_workers: processes that decode and preprocess; 0 for this one.
        device: where to compute, or None for where the model is.
        dtype: what to compute in, or None for what the model is in. Vectors are float32 always.

    Raises:
        ValueError: if `batch_size` or `num_workers` is out of range.

    Example:
        >>> embedder = Embedder.from_pretrained("OUT")
        >>> vectors = embedder(["cat.jpg", "dog.jpg"])  # (2, E)
    """

    def __init__(
        self,
        model: SelfViTModel,
        processor: BaseImageProcessor,
        *,
        normalize: bool = False,
        batch_size: int = 64,
        num_workers: int = 0,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size ({batch_size}) must be at least 1.")
        if num_workers < 0:
            raise ValueError(f"num_workers ({num_workers}) must be 0 or more.")
        self.model = model if device is None and dtype is None else model.to(device, dtype)  # type: ignore[arg-type]
        self.processor = processor
        self.normalize = normalize
        self.batch_size = batch_size
        self.num_workers = num_workers

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | os.PathLike[str],
        *,
        network: str = "teacher",
        pooling: str | None = None,
        normalize: bool = False,
        batch_size: int = 64,
        num_workers: int = 0,
        device: str | None = None,
        dtype: str = "float32",
    ) -> Embedder:
        """Load the encoder of any selfvit checkpoint, and its image processor.

        Args:
            checkpoint: folder, Hub id, or USER/NAME@REVISION.
            network: "teacher" or "student", as for `SelfViTModel.from_pretrained`.
            pooling: what a vector is, as for `SelfViTConfig`; None for the checkpoint's own.
            normalize: whether vectors are scaled to length 1.
            batch_size: images.
            num_workers: processes that decode and preprocess; 0 for this one.
            device: None for CUDA where there is one, else MPS, else the CPU.
            dtype: "float32", "bfloat16" or "float16".

        Raises:
            FileNotFoundError: if there is no such checkpoint.
            ValueError: if its weights do not fit, or an argument is not one of those above.
        """
        if dtype not in DTYPES:
            raise ValueError(f"dtype ({dtype!r}) must be one of {', '.join(DTYPES)}.")
        device = best_device(device)
        checkpoint = resolve_checkpoint(checkpoint)
        overrides: dict[str, Any] = {} if pooling is None else {"pooling": pooling}
        model = load_strictly(
            SelfViTModel, checkpoint, network=network, dtype=DTYPES[dtype], **overrides
        )
        processor = AutoImageProcessor.from_pretrained(checkpoint)
        return cls(
            model,
            processor,
            normalize=normalize,
            batch_size=batch_size,
            num_workers=num_workers,
            device=device,
        )

    @property
    def embedding_size(self) -> int:
        """Length of a vector (E)."""
        return self.model.config.embedding_size

    def __call__(self, images: AnyImage | Sequence[AnyImage]) -> np.ndarray:
        """Embed images at hand.

        Args:
            images: one or several of: path, content of an image file, PIL image.

        Returns:
            (N, E), float32; (E,) for an image that is not in a list.

        Raises:
            UnreadableImageError: if one cannot be read; the message says which.
        """
        if isinstance(images, (bytes, str, Path, Image.Image)):
            return self([images])[0]
        vectors = [np.empty((0, self.embedding_size), dtype=np.float32)]
        for start in range(0, len(images), self.batch_size):
            pixels = []
            for position, image in enumerate(images[start : start + self.batch_size], start):
                name = repr(str(image)) if isinstance(image, (str, Path)) else f"image {position}"
                try:
                    pixels.append(preprocess(image, self.processor))
                except UnreadableImageError as error:
                    raise UnreadableImageError(f"{name} cannot be read: {error}") from error
            vectors.append(self.embed_pixels(torch.stack(pixels)))
        return np.concatenate(vectors)

    def embed(self, source: ImageSource, *, progress: bool = False) -> EmbeddedImages:
        """Embed all images of a source; holds all vectors in memory.

        Args:
            source: of images, see `open_images`.
            progress: whether to show a bar.
        """
        batches = list(self.stream(source, progress=progress))
        vectors = [batch.vectors for batch in batches if len(batch.ids)]
        labels = [label for batch in batches for label in batch.labels]
        return EmbeddedImages(
            vectors=np.concatenate([np.empty((0, self.embedding_size), np.float32), *vectors]),
            ids=[id for batch in batches for id in batch.ids],
            labels=None
            if source.label_names is None
            else np.array([-1 if label is None else label for label in labels], dtype=np.int64),
            label_names=source.label_names,
            skipped=[skipped for batch in batches for skipped in batch.skipped],
        )

    def stream(self, source: ImageSource, *, progress: bool = False) -> Iterator[EmbeddedBatch]:
        """Embed a source batch by batch, in its order.

        Args:
            source: of images, see `open_images`.
            progress: whether to show a bar, with images per second and the number skipped.

        Yields:
            Batches; one whose images are all unreadable has no vectors.

        Raises:
            ValueError: if vectors are not finite.
        """
        loader = DataLoader(
            _PreprocessedImages(source, self.processor),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=_collate,
            pin_memory=self.model.device.type == "cuda",
            worker_init_fn=use_one_thread,
            generator=torch.Generator(),  # a DataLoader draws a seed: not from the global state
        )
        num_skipped = 0
        with progress_bar(total=len(source), description="embedding", disable=not progress) as bar:
            for ids, labels, pixel_values, skipped in loader:
                vectors = np.empty((0, self.embedding_size), dtype=np.float32)
                if pixel_values is not None:
                    vectors = self.embed_pixels(pixel_values)
                num_skipped += len(skipped)
                bar.set_postfix(skipped=num_skipped, refresh=False)
                bar.update(len(ids) + len(skipped))
                yield EmbeddedBatch(ids, labels, vectors, skipped)

    def embed_pixels(self, pixel_values: Tensor) -> np.ndarray:
        """Embed preprocessed images.

        Args:
            pixel_values: (B, C, H, W), normalized.

        Returns:
            (B, E), float32.

        Raises:
            ValueError: if vectors are not finite.
        """
        with torch.inference_mode(), evaluating(self.model):
            pixel_values = pixel_values.to(self.model.device, non_blocking=True)
            vectors = self.model.embed(pixel_values).float()  # (B, E)
            if not vectors.isfinite().all():
                raise ValueError(
                    f"the model gives vectors that are not finite, in {self.model.dtype}; if "
                    "float32 does not, it is the precision, else the weights are broken."
                )
            if self.normalize:
                vectors = nn.functional.normalize(vectors, dim=-1)
        return vectors.cpu().numpy()


def preprocess(image: AnyImage, processor: BaseImageProcessor) -> Tensor:
    """Decode and preprocess one image.

    Args:
        image: path, content of an image file, or PIL image.
        processor: image processor.

    Returns:
        (C, H, W), float32.

    Raises:
        UnreadableImageError: if it cannot be decoded.
    """
    return processor(decode_image(image), return_tensors="pt")["pixel_values"][0]


class _PreprocessedImages(Dataset):
    """(record's id, its label, pixels or the reason why there are none), by position."""

    def __init__(self, source: ImageSource, processor: BaseImageProcessor):
        self.source = source
        self.processor = processor

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, position: int) -> tuple[str, int | None, Tensor | str]:
        record: ImageRecord = self.source[position]
        try:
            return record.id, record.label, preprocess(record.image, self.processor)
        except UnreadableImageError as error:
            return record.id, record.label, str(error)


def _collate(
    items: list[tuple[str, int | None, Tensor | str]],
) -> tuple[list[str], list[int | None], Tensor | None, list[SkippedImage]]:
    read = [(id, label, pixels) for id, label, pixels in items if isinstance(pixels, Tensor)]
    skipped = [SkippedImage(id, reason) for id, _, reason in items if isinstance(reason, str)]
    pixel_values = torch.stack([pixels for _, _, pixels in read]) if read else None
    return [id for id, _, _ in read], [label for _, label, _ in read], pixel_values, skipped


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode, and each back in its own.

    Each, for a frozen part of a model in training may have been in evaluation mode before.
    """
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def best_device(device: str | None = None) -> str:
    """Return the device to compute on.

    Args:
        device: Device to check, for example "cuda:1"; None for the best available.

    Raises:
        ValueError: If the device cannot be used.
    """
    if device is None:
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device ({device!r}) cannot be used: {reason}. Use cpu, or leave it out for the best "
            "available."
        ) from error
    return device


__all__ = [
    "EmbeddedBatch",
    "EmbeddedImages",
    "Embedder",
    "SkippedImage",
    "best_device",
    "evaluating",
    "preprocess",
]
