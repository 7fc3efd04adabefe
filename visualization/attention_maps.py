"""Attention maps of the class token in the last block (DINO, arXiv 2104.14294, Fig. 1 and 3)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..embedding.embedder import eval_mode
from .figures import draw_panels, heatmap, require_matplotlib
from .inputs import Picture, denormalize, preprocess_images

# B images · A heads · T tokens · N patches = rows x columns

MAX_HEADS = 6


def attention_maps(model: PreTrainedModel, pixel_values: Tensor) -> Tensor:
    """Return the attention of the class token to every patch in the last block, for each head.

    The attention implementation and the mode (training or evaluation) of the model do not change.

    Args:
        model: Encoder, or model that contains one (if the model has a teacher, the teacher).
        pixel_values: Normalized pixels, (B, C, H, W).

    Returns:
        Attention, (B, A, rows, columns), float32. A map sums to at most 1; the rest is the
        attention to the class and register tokens.
    """
    encoder = cast(Any, model.base_model)
    patch_size = encoder.config.patch_size
    rows, columns = (size // patch_size for size in pixel_values.shape[-2:])
    by_class_token: list[Tensor] = []

    def keep(module: nn.Module, arguments: Any, outputs: tuple[Tensor, Tensor]) -> None:
        by_class_token.append(outputs[1][:, :, 0])  # (B, A, T, T) -> (B, A, T)

    # `output_attentions` would keep the attention of all blocks: gigabytes for a large image.
    hook = encoder.layers[-1].attention.register_forward_hook(keep)
    try:
        with eval_mode(encoder), _eager(encoder), torch.no_grad():
            encoder(pixel_values.to(encoder.device))
    finally:
        hook.remove()
    return by_class_token[0][..., -rows * columns :].unflatten(2, (rows, columns)).float()


def plot_attention_maps(
    model: PreTrainedModel,
    processor: Any,
    images: Sequence[Picture],
    path: str | os.PathLike[str],
) -> None:
    """Draw attention maps as a PNG with one row per image.

    A row shows the preprocessed image, the mean over all heads, and up to six heads. Each map has
    its own color scale, from its smallest to its largest value.

    Args:
        model: Model, as in `attention_maps`.
        processor: Image processor of the checkpoint.
        images: Images of any size, as in `preprocess_images`.
        path: PNG file to write.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is no image.
    """
    rows = attention_panels(model, processor, preprocess_images(images, processor))
    titles = ["image", "mean of heads"] + [f"head {head + 1}" for head in range(len(rows[0]) - 2)]
    draw_panels(titles, rows, path)


def attention_panels(
    model: PreTrainedModel, processor: Any, pixel_values: Tensor
) -> list[list[np.ndarray]]:
    """Return a row of panels per image: the image, the mean over all heads, the first heads.

    Args:
        model: Model, as in `attention_maps`.
        processor: Image processor that normalized the pixels.
        pixel_values: Normalized pixels, (B, C, H, W).

    Returns:
        B rows of at most eight panels with values in [0, 1]: the image, (H, W, 3), then the maps,
        (rows, columns, 3).

    Raises:
        ImportError: If matplotlib is not installed.
    """
    require_matplotlib()
    # One image at a time, to limit the memory for attention.
    maps = [attention_maps(model, values)[0].cpu().numpy() for values in pixel_values.split(1)]
    return [
        [image, heatmap(heads.mean(axis=0)), *map(heatmap, heads[:MAX_HEADS])]
        for image, heads in zip(denormalize(pixel_values, processor), maps, strict=True)
    ]


@contextmanager
def _eager(encoder: PreTrainedModel) -> Iterator[None]:
    """Use the eager implementation, the only one that returns attention."""
    implementation = encoder.config._attn_implementation
    # "" selects the encoder only; the sub-configuration of an objective has no attention.
    encoder.set_attn_implementation({"": "eager"})
    try:
        yield
    finally:
        encoder.set_attn_implementation({"": implementation})


__all__ = ["attention_maps", "attention_panels", "plot_attention_maps"]
