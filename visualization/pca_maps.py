"""Patch tokens by their first three principal components (DINOv2, arXiv 2304.07193, Fig. 1).

Patches of like content get like colors, in all images of a picture: the components are those of
all its patches together. The paper's figure also removes the background, by a threshold that was
chosen by eye; here nothing is removed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from ..embedding.embedder import evaluating
from .figures import draw_panels
from .inputs import as_seen, preprocess_images

# B images · D hidden · N patches = rows x columns, of all images

# Colors span the distances of this fraction of the patches from their mean, so that the few of
# very large norm that trained transformers have (2 to 3 %: arXiv 2309.16588, Sec. 2) leave the
# others apart; but not less than this fraction of the largest distance, so that a rare kind shows.
SPANNED, LEAST_SPAN = 0.95, 0.1
# A component of less deviation than this fraction of the tokens' length is float32's rounding.
MIN_DEVIATION = 1e-5


def patch_tokens(model: PreTrainedModel, pixel_values: Tensor) -> Tensor:
    """Return the normalized patch tokens of the last block.

    The model's training or evaluation mode is left as it was.

    Args:
        model: an encoder, or any model around one (of a model with a teacher, its teacher is used).
        pixel_values: (B, C, H, W), normalized.

    Returns:
        (B, rows, columns, D), float32, on the CPU.
    """
    encoder = cast(PreTrainedModel, model.base_model)
    config = encoder.config
    rows, columns = (size // config.patch_size for size in pixel_values.shape[-2:])
    with evaluating(encoder), torch.no_grad():
        tokens = encoder(pixel_values.to(encoder.device)).last_hidden_state
    return tokens[:, config.num_prefix_tokens :].unflatten(1, (rows, columns)).float().cpu()


def pca_colors(tokens: Tensor) -> Tensor:
    """Turn patch tokens into colors: red, green, blue are the first three principal components.

    A component is 0.5 at the mean of all patches, and its range is symmetric about it, cut off
    at the farthest of all patches but 5 %. Its sign, which is arbitrary, is such that its largest
    loading is positive.

    Args:
        tokens: (B, rows, columns, D), D >= 3.

    Returns:
        (B, rows, columns, 3), in [0, 1]; 0.5 where there is nothing to tell apart.
    """
    flat = tokens.flatten(0, 2).double()  # (N, D)
    centered = flat - flat.mean(dim=0)
    _, vectors = torch.linalg.eigh(centered.T @ centered)  # eigenvalues ascend
    directions = vectors[:, -3:].flip(1)  # (D, 3)
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    scores = centered @ (directions * largest.sign())  # (N, 3)
    deviation = scores.square().mean(dim=0).sqrt()
    distances = scores.abs()
    bound = torch.maximum(distances.quantile(SPANNED, dim=0), LEAST_SPAN * distances.amax(dim=0))
    length = flat.square().sum(dim=1).mean().sqrt()
    spread = torch.where(deviation > MIN_DEVIATION * length, scores / bound, 0.0)
    return (0.5 + 0.5 * spread).clamp(0, 1).float().unflatten(0, tokens.shape[:3])


def plot_pca_maps(
    model: PreTrainedModel,
    processor: Any,
    images: Sequence[Image.Image],
    path: str | os.PathLike[str],
) -> None:
    """Draw PCA maps as a PNG: one row an image, as the model saw it and its map.

    Args:
        model: as for `patch_tokens`.
        processor: an image processor of transformers, the checkpoint's own.
        images: RGB, of any size.
        path: of the PNG.

    Raises:
        ImportError: without matplotlib.
        ValueError: if there is no image, or the patch size does not divide what the processor
            makes of them.
    """
    pixel_values = preprocess_images(images, processor)
    tokens = torch.cat([patch_tokens(model, values) for values in pixel_values.split(1)])
    panels = zip(as_seen(pixel_values, processor), pca_colors(tokens).numpy(), strict=True)
    draw_panels(["image", "PCA of patches"], list(panels), path)


__all__ = ["patch_tokens", "pca_colors", "plot_pca_maps"]
