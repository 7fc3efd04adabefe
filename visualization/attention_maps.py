"""What the class token attends to in the last block (DINO, arXiv 2104.14294, Fig. 1 and 3)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from .figures import new_figure, save_png

# B images · A heads · T tokens · N patches = rows x columns

MAX_HEADS = 6
PANEL = 200  # pixels, width and height of one picture
GAP = 8  # pixels
HEADER = 34  # pixels


def attention_maps(model: PreTrainedModel, pixel_values: Tensor) -> Tensor:
    """Return the class token's attention to every patch in the last block, head by head.

    The model is left as it was: attention implementation, and training or evaluation mode.

    Args:
        model: an encoder, or any model around one (of a model with a teacher, its teacher is used).
        pixel_values: (B, C, H, W), normalised.

    Returns:
        (B, A, rows, columns), float32; a map sums to at most 1, what is missing goes to the class
        and register tokens.
    """
    encoder = cast(PreTrainedModel, model.base_model)
    patch_size = encoder.config.patch_size
    rows, columns = (size // patch_size for size in pixel_values.shape[-2:])
    with _eager_evaluation(encoder), torch.no_grad():
        outputs = encoder(pixel_values.to(encoder.device), output_attentions=True)
    last = outputs.attentions[-1]  # (B, A, T, T)
    return last[:, :, 0, -rows * columns :].unflatten(2, (rows, columns)).float()


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
    if len(images) == 0:
        raise ValueError("images is empty; hand over at least one image to draw.")
    pixel_values = processor(list(images), return_tensors="pt")["pixel_values"]
    maps = attention_maps(model, pixel_values).cpu()
    num_heads = min(maps.shape[1], MAX_HEADS)
    titles = ["image", "mean of heads"] + [f"head {head + 1}" for head in range(num_heads)]
    width = len(titles) * (PANEL + GAP) + GAP
    height = len(images) * (PANEL + GAP) + GAP + HEADER
    figure = new_figure(width, height)
    for row, (values, image_maps) in enumerate(zip(pixel_values, maps, strict=True)):
        panels = [_as_seen(values, processor), image_maps.mean(dim=0), *image_maps[:num_heads]]
        bottom = height - HEADER - (row + 1) * (PANEL + GAP)
        for column, (title, panel) in enumerate(zip(titles, panels, strict=True)):
            left = GAP + column * (PANEL + GAP)
            axes = figure.add_axes(
                (left / width, (bottom + GAP) / height, PANEL / width, PANEL / height)
            )
            axes.imshow(np.asarray(panel), cmap="magma", interpolation="nearest")
            axes.set_axis_off()
            if row == 0:
                axes.set_title(title, fontsize=11)
    save_png(figure, path)


@contextmanager
def _eager_evaluation(encoder: PreTrainedModel) -> Iterator[None]:
    """Run with the one implementation that returns attention, without dropping anything."""
    implementation = encoder.config._attn_implementation
    # module by module: a frozen part of a model in training may be in evaluation mode already
    training = [module for module in encoder.modules() if module.training]
    # "" is the encoder alone: an objective's part of the configuration has no attention
    encoder.set_attn_implementation({"": "eager"})
    encoder.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
        encoder.set_attn_implementation({"": implementation})


def _as_seen(pixel_values: Tensor, processor: Any) -> np.ndarray:
    """Undo the normalisation: (C, H, W) to (H, W, 3), in [0, 1]."""
    image = pixel_values.movedim(0, -1).cpu().float()
    if getattr(processor, "do_normalize", True):
        image = image * torch.tensor(processor.image_std) + torch.tensor(processor.image_mean)
    return image.clamp(0, 1).expand(-1, -1, 3).numpy()
