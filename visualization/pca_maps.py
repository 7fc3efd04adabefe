"""PCA maps: patch tokens colored by three principal components (DINOv2, arXiv 2304.07193, Fig. 1).

The components are computed from the patches of all images together, so patches with similar content
have similar colors in all images. The figure in the paper also removes the background with a
threshold that the authors chose manually; here, the background is kept.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..embedding.embedder import eval_mode
from .figures import draw_panels
from .inputs import Picture, denormalize, preprocess_images

# B images · D hidden · N patches in all images (B x rows x columns)

# The color range covers this fraction of the patches. Trained transformers have a few patches with
# a very large norm (2 to 3 %: arXiv 2309.16588, Sec. 2), which would compress all other colors.
COVERED = 0.95
# The color range is at least this fraction of the largest distance, so that rare patches show.
MIN_RANGE = 0.1
# A component with a std below this fraction of the token norm is float32 rounding error.
MIN_STD = 1e-5


def patch_tokens(model: PreTrainedModel, pixel_values: Tensor) -> Tensor:
    """Return the patch tokens of the last block after the final LayerNorm.

    The mode of the model (training or evaluation) does not change.

    Args:
        model: Encoder, or model that contains one (if the model has a teacher, the teacher).
        pixel_values: Normalized pixels, (B, C, H, W).

    Returns:
        Patch tokens, (B, rows, columns, D), float32, on the CPU.
    """
    encoder = cast(PreTrainedModel, model.base_model)
    config = encoder.config
    rows, columns = (size // config.patch_size for size in pixel_values.shape[-2:])
    with eval_mode(encoder), torch.no_grad():
        tokens = encoder(pixel_values.to(encoder.device)).last_hidden_state
    return tokens[:, config.num_prefix_tokens :].unflatten(1, (rows, columns)).float().cpu()


def pca_colors(tokens: Tensor) -> Tensor:
    """Color patch tokens: red, green and blue are the first three principal components.

    A component is 0.5 at the mean of all patches. Its range is symmetric around the mean and covers
    95 % of the patches; the values of the others are clipped. The sign of a component is arbitrary
    and is chosen so that its largest loading is positive.

    Args:
        tokens: Patch tokens, (B, rows, columns, D), with D >= 3.

    Returns:
        Colors, (B, rows, columns, 3), in [0, 1]; 0.5 for a component without variation.
    """
    flat = tokens.flatten(0, 2).double()  # (N, D)
    centered = flat - flat.mean(dim=0)
    _, vectors = torch.linalg.eigh(centered.T @ centered)  # eigenvalues ascend
    directions = vectors[:, -3:].flip(1)  # (D, 3)
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    scores = centered @ (directions * largest.sign())  # (N, 3)
    std = scores.square().mean(dim=0).sqrt()
    distances = scores.abs()
    bound = torch.maximum(distances.quantile(COVERED, dim=0), MIN_RANGE * distances.amax(dim=0))
    length = flat.square().sum(dim=1).mean().sqrt()
    spread = torch.where(std > MIN_STD * length, scores / bound, 0.0)
    return (0.5 + 0.5 * spread).clamp(0, 1).float().unflatten(0, tokens.shape[:3])


def plot_pca_maps(
    model: PreTrainedModel,
    processor: Any,
    images: Sequence[Picture],
    path: str | os.PathLike[str],
) -> None:
    """Draw PCA maps as a PNG with one row per image: the preprocessed image and its map.

    Args:
        model: Model, as in `patch_tokens`.
        processor: Image processor of the checkpoint.
        images: Images of any size, as in `preprocess_images`.
        path: PNG file to write.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is no image, or the patch size does not divide the size of the
            preprocessed images.
    """
    pixel_values = preprocess_images(images, processor)
    tokens = torch.cat([patch_tokens(model, values) for values in pixel_values.split(1)])
    panels = zip(denormalize(pixel_values, processor), pca_colors(tokens).numpy(), strict=True)
    draw_panels(["image", "PCA of patches"], list(panels), path)


__all__ = ["patch_tokens", "pca_colors", "plot_pca_maps"]
