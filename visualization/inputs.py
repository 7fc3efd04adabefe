"""What goes into a picture: a checkpoint, images spread over a source, pixels as the model saw."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, PreTrainedModel

from ..data.decoding import UnreadableImageError, decode_image
from ..data.image_source import ImageSource
from ..embedding.embedder import SkippedImage
from ..embedding.preprocessing import resized_processor
from ..modeling.checkpoints.hub_revision import resolve_checkpoint
from ..modeling.checkpoints.loading import load_strictly

# B images · C channels · H, W pixels

ModelT = TypeVar("ModelT", bound=PreTrainedModel)


def open_checkpoint(
    model_class: type[ModelT],
    checkpoint: str | os.PathLike[str],
    *,
    image_size: int | tuple[int, int] | None = None,
    **kwargs: Any,
) -> tuple[ModelT, Any]:
    """Load a model and its image processor, for pictures.

    Args:
        model_class: class to load.
        checkpoint: folder, Hub id, or USER/NAME@REVISION.
        image_size: Size that images are brought to, in pixels: one number or (height, width),
            multiples of the patch size; the processor's own if None.
        kwargs: as for `load_strictly`.

    Returns:
        the model, float32 and in evaluation mode; the image processor.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if its weights do not fit.
    """
    checkpoint = resolve_checkpoint(checkpoint)
    model = load_strictly(model_class, checkpoint, dtype=torch.float32, **kwargs)
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    return model, processor if image_size is None else resized_processor(processor, image_size)


def choose_images(
    source: ImageSource, num_images: int
) -> tuple[list[Image.Image], list[SkippedImage]]:
    """Decode some images of a source: the first that can be read of each of equal stretches.

    Not the first ones of all: sources are often sorted by class.

    Args:
        source: of images, see `open_images`.
        num_images: at most; of a smaller source, all.

    Returns:
        the images, RGB, and those that could not be read on the way.

    Raises:
        ValueError: if none can be read, or `num_images` is below 1.
    """
    if num_images < 1:
        raise ValueError(f"num_images ({num_images}) must be at least 1.")
    bounds = np.linspace(0, len(source), min(num_images, len(source)) + 1).astype(int)
    images: list[Image.Image] = []
    skipped: list[SkippedImage] = []
    for start, end in zip(bounds[:-1], bounds[1:], strict=True):
        for position in range(start, end):
            record = source[position]
            try:
                images.append(decode_image(record.image))
                break
            except UnreadableImageError as error:
                skipped.append(SkippedImage(record.id, str(error)))
    if not images:
        last = skipped[-1]
        raise ValueError(
            f"none of the {len(skipped)} images can be read ({source.description}); the last, "
            f"{last.id}: {last.reason}. There is nothing to draw."
        )
    return images, skipped


def preprocess_images(images: Sequence[Image.Image], processor: Any) -> Tensor:
    """Return images as the model takes them, (B, C, H, W), normalized.

    Raises:
        ValueError: if there is no image.
    """
    if len(images) == 0:
        raise ValueError("images is empty; hand over at least one image to draw.")
    return processor(list(images), return_tensors="pt")["pixel_values"]


def as_seen(pixel_values: Tensor, processor: Any) -> np.ndarray:
    """Undo the normalization by the processor's own mean and deviation.

    Args:
        pixel_values: (B, C, H, W), C = 1 or 3.
        processor: the image processor that normalized them, or would have.

    Returns:
        (B, H, W, 3), float32, in [0, 1].
    """
    images = pixel_values.movedim(1, -1).cpu().float()
    if getattr(processor, "do_normalize", True):
        images = images * torch.tensor(processor.image_std) + torch.tensor(processor.image_mean)
    return images.clamp(0, 1).expand(-1, -1, -1, 3).numpy()


__all__ = ["as_seen", "choose_images", "open_checkpoint", "preprocess_images"]
