"""Inputs of a picture: the checkpoint, images spread over a source, and denormalized pixels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import AutoImageProcessor, PreTrainedModel

from ..data.decoding import AnyImage, decode_pixels
from ..data.image_source import ImageRecord, ImageSource
from ..data.inventory import SkippedImage
from ..data.pixel_format import DecodedPixels, PixelFormat
from ..data.reading import read_spread_images
from ..embedding.preparation import preprocess, warn_of_findings
from ..embedding.preprocessing import (
    needed_size,
    pixel_format_of,
    pixel_values_of,
    resized_processor,
)
from ..modeling.checkpoints.loading import load_strictly
from ..modeling.checkpoints.resolve import resolve_checkpoint

# B images · C channels · H, W pixels

Picture = AnyImage | DecodedPixels
TARGET = (1024, 1024)  # height and width in pixels that any model needs at most

ModelT = TypeVar("ModelT", bound=PreTrainedModel)


def open_checkpoint(
    model_class: type[ModelT],
    checkpoint: str | os.PathLike[str],
    *,
    image_size: int | tuple[int, int] | None = None,
    **kwargs: Any,
) -> tuple[ModelT, Any]:
    """Load a model and its image processor.

    Args:
        model_class: Model class to load.
        checkpoint: Checkpoint folder, Hub id, or USER/NAME@REVISION.
        image_size: Size of the preprocessed images in pixels, one number or (height, width),
            multiples of the patch size; None for the size stored in the checkpoint.
        kwargs: Keyword arguments of `load_strictly`.

    Returns:
        The model, in float32 and in evaluation mode, and the image processor.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If the weights do not match the model.
    """
    checkpoint = resolve_checkpoint(checkpoint)
    model = load_strictly(model_class, checkpoint, dtype=torch.float32, **kwargs)
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    return model, processor if image_size is None else resized_processor(processor, image_size)


def choose_images(
    source: ImageSource,
    num_images: int,
    *,
    num_workers: int = 0,
    processor: Any = None,
    pixel_range: tuple[float, float] | None = None,
) -> tuple[list[DecodedPixels], list[SkippedImage]]:
    """Decode images spread evenly over a source, as `read_spread_images` chooses them.

    Args:
        source: Source of images, see `open_images`.
        num_images: Maximum number of images; all images of a smaller source are used.
        num_workers: Number of processes that decode; 0 uses the current process.
        processor: Image processor of the model; None for RGB images without a declared range.
        pixel_range: Values of black and white, as in `preprocess`.

    Returns:
        The images, and those that were skipped because they cannot be read.

    Raises:
        ValueError: If no image can be read, or `num_images` is below 1.
    """
    decode = partial(
        _decode,
        pixel_format=pixel_format_of(processor, pixel_range),
        target=needed_size(processor) or TARGET,
    )
    images, skipped = read_spread_images(source, decode, num_images, num_workers=num_workers)
    warn_of_findings({name: decoded.findings for name, decoded in images})
    return [decoded for _, decoded in images], skipped


def _decode(
    record: ImageRecord, pixel_format: PixelFormat, target: tuple[int, int]
) -> tuple[str, DecodedPixels]:
    return record.id, decode_pixels(record.image, pixel_format, target)


def preprocess_images(images: Sequence[Picture], processor: Any) -> Tensor:
    """Preprocess images for a model.

    Args:
        images: Images of any size: decoded, or as `preprocess` takes them.
        processor: Image processor of the checkpoint.

    Returns:
        Normalized pixels, (B, C, H, W).

    Raises:
        ValueError: If there is no image.
        UnreadableImageError: If an image cannot be decoded.
    """
    if len(images) == 0:
        raise ValueError("images must not be empty; pass at least one image to draw.")
    return torch.stack(
        [
            pixel_values_of(image, processor)
            if isinstance(image, DecodedPixels)
            else preprocess(image, processor)
            for image in images
        ]
    )


def denormalize(pixel_values: Tensor, processor: Any) -> np.ndarray:
    """Undo the normalization of pixels, with the mean and std of the processor.

    Args:
        pixel_values: Normalized pixels, (B, C, H, W). One or two channels are drawn as gray, by
            the first one; of four or more, the first three are drawn as red, green and blue.
        processor: Image processor that normalized the pixels.

    Returns:
        Images, (B, H, W, 3), float32, in [0, 1].
    """
    images = pixel_values.movedim(1, -1).cpu().float()
    if getattr(processor, "do_normalize", True):
        images = images * torch.tensor(processor.image_std) + torch.tensor(processor.image_mean)
    shown = images[..., :3] if images.shape[-1] >= 3 else images[..., :1]
    return shown.clamp(0, 1).expand(-1, -1, -1, 3).numpy()


__all__ = ["Picture", "choose_images", "denormalize", "open_checkpoint", "preprocess_images"]
