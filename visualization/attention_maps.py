"""What the class token attends to in the last block (DINO, arXiv 2104.14294, Fig. 1 and 3)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..embedding.embedder import evaluating
from .figures import draw_panels, heat, require_matplotlib
from .inputs import as_seen, preprocess_images

# B images · A heads · T tokens · N patches = rows x columns

MAX_HEADS = 6


def attention_maps(model: PreTrainedModel, pixel_values: Tensor) -> Tensor:
    """Return the class token's attention to every patch in the last block, head by head.

    The model is left as it was: attention implementation, and training or evaluation mode.

    Args:
        model: an encoder, or any model around one (of a model with a teacher, its teacher is used).
        pixel_values: (B, C, H, W), normalized.

    Returns:
        (B, A, rows, columns), float32; a map sums to at most 1, what is missing goes to the class
        and register tokens.
    """
    encoder = cast(Any, model.base_model)
    patch_size = encoder.config.patch_size
    rows, columns = (size // patch_size for size in pixel_values.shape[-2:])
    by_class_token: list[Tensor] = []

    def keep(module: nn.Module, arguments: Any, outputs: tuple[Tensor, Tensor]) -> None:
        by_class_token.append(outputs[1][:, :, 0])  # of (B, A, T, T)

    # not by output_attentions, which would hold those of all blocks, gigabytes for a large image
    hook = encoder.layers[-1].attention.register_forward_hook(keep)
    try:
        with evaluating(encoder), _eager(encoder), torch.no_grad():
            encoder(pixel_values.to(encoder.device))
    finally:
        hook.remove()
    return by_class_token[0][..., -rows * columns :].unflatten(2, (rows, columns)).float()


def plot_attention_maps(
    model: PreTrainedModel,
    processor: Any,
    images: Sequence[Image.Image],
    path: str | os.PathLike[str],
) -> None:
    """Draw attention maps as a PNG: one row an image.

    A row has the image as the model saw it, the mean over all heads, and the first heads, six at
    most. Each map has its own scale, from its smallest to its largest value.

    Args:
        model: as for `attention_maps`.
        processor: an image processor of transformers, the checkpoint's own.
        images: RGB, of any size.
        path: of the PNG.

    Raises:
        ImportError: without matplotlib.
        ValueError: if there is no image.
    """
    rows = attention_panels(model, processor, preprocess_images(images, processor))
    titles = ["image", "mean of heads"] + [f"head {head + 1}" for head in range(len(rows[0]) - 2)]
    draw_panels(titles, rows, path)


def attention_panels(
    model: PreTrainedModel, processor: Any, pixel_values: Tensor
) -> list[list[np.ndarray]]:
    """Return a row of panels an image: as it was seen, the mean over all heads, the first heads.

    Args:
        model: as for `attention_maps`.
        processor: whose normalization is undone.
        pixel_values: (B, C, H, W), normalized.

    Returns:
        B rows of at most eight panels: (H, W, 3), then (rows, columns, 3), in [0, 1].

    Raises:
        ImportError: without matplotlib.
    """
    require_matplotlib()
    # image by image, for the same reason as above
    maps = [attention_maps(model, values)[0].cpu().numpy() for values in pixel_values.split(1)]
    return [
        [seen, heat(heads.mean(axis=0)), *map(heat, heads[:MAX_HEADS])]
        for seen, heads in zip(as_seen(pixel_values, processor), maps, strict=True)
    ]


@contextmanager
def _eager(encoder: PreTrainedModel) -> Iterator[None]:
    """Use the one implementation that returns attention."""
    implementation = encoder.config._attn_implementation
    # "" is the encoder alone: an objective's part of the configuration has no attention
    encoder.set_attn_implementation({"": "eager"})
    try:
        yield
    finally:
        encoder.set_attn_implementation({"": implementation})


__all__ = ["attention_maps", "attention_panels", "plot_attention_maps"]
