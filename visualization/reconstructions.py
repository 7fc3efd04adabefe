"""What a masked autoencoder fills in (MAE, arXiv 2111.06377, Fig. 2 and 3)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..configuration.configuration_selfvit import SelfViTConfig
from ..embedding.embedder import evaluating
from ..modeling.checkpoints.hub_revision import resolve_checkpoint
from ..modeling.checkpoints.loading import stored_config
from ..modeling.modeling_mae import SelfViTForMAE
from .figures import draw_panels
from .inputs import as_seen, open_checkpoint, preprocess_images

# B images · N patches = rows x columns · H, W pixels

GRAY = 0.5  # of masked patches


def open_mae(
    checkpoint: str | os.PathLike[str],
    *,
    image_size: int | tuple[int, int] | None = None,
    mask_ratio: float | None = None,
) -> tuple[SelfViTForMAE, Any]:
    """Load a MAE checkpoint, decoder included, and its image processor.

    Args:
        checkpoint: folder, Hub id, or USER/NAME@REVISION.
        image_size: as for `open_checkpoint`.
        mask_ratio: fraction of the patches to mask; the checkpoint's own if None.

    Returns:
        the model, float32 and in evaluation mode; the image processor.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if it has no decoder, its weights do not fit, or an argument is out of range.
    """
    checkpoint = resolve_checkpoint(checkpoint)
    stored = stored_config(checkpoint)
    architecture = (stored.get("architectures") or ["unnamed"])[0]
    if architecture != "SelfViTForMAE":
        raise ValueError(
            f"{str(checkpoint)!r} is a {architecture} checkpoint, without the decoder that "
            "reconstructs images; train one that has it, by a MAE recipe: "
            "selfvit train mae_demo --data FOLDER --output OUT."
        )
    config = SelfViTConfig.from_pretrained(checkpoint)
    if mask_ratio is not None:
        config.mae_config.mask_ratio = mask_ratio
        config.mae_config.validate()
    return open_checkpoint(SelfViTForMAE, checkpoint, image_size=image_size, config=config)


def plot_reconstructions(
    model: SelfViTForMAE,
    processor: Any,
    images: Sequence[Image.Image],
    path: str | os.PathLike[str],
    *,
    seed: int = 0,
) -> None:
    """Draw reconstructions as a PNG: one row an image, as it was, masked and filled in.

    Masked patches are gray. Visible patches of the last panel are the image's own. A model trained
    with `norm_pix_loss` predicts no brightness and no contrast: its patches are drawn with those of
    the true ones.

    Args:
        model: its `mask_ratio` is used; its training or evaluation mode is left as it was.
        processor: an image processor of transformers, the checkpoint's own.
        images: RGB, of any size.
        path: of the PNG.
        seed: of the masks: the same gives the same masks.

    Raises:
        ImportError: without matplotlib.
        ValueError: if there is no image, the patch size does not divide what the processor makes
            of them, or the mask ratio leaves no patch visible or none masked.
    """
    pixel_values = preprocess_images(images, processor)
    rows, columns = (size // model.config.patch_size for size in pixel_values.shape[-2:])
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(len(pixel_values), rows * columns, generator=generator)  # (B, N)
    panels = reconstruction_panels(model, processor, pixel_values, noise)
    draw_panels(["image", "masked", "reconstructed"], panels, path)


def reconstruction_panels(
    model: SelfViTForMAE, processor: Any, pixel_values: Tensor, noise: Tensor
) -> list[list[np.ndarray]]:
    """Return a row of panels an image: as it was, masked, and filled in.

    Args:
        model: its training or evaluation mode is left as it was.
        processor: whose normalization is undone.
        pixel_values: (B, C, H, W), normalized.
        noise: (B, N), the patches with the lowest numbers stay visible.

    Returns:
        B rows of three panels (H, W, 3), in [0, 1].
    """
    rows, columns = (size // model.config.patch_size for size in pixel_values.shape[-2:])
    panels = []
    with evaluating(model), torch.no_grad():
        for values, draws in zip(pixel_values.split(1), noise.split(1), strict=True):
            filled, mask = model.reconstruct(values.to(model.device), draws.to(model.device))
            seen = as_seen(values, processor)[0]  # (H, W, 3)
            masked = _masked(seen, mask.reshape(rows, columns).bool().cpu().numpy())
            panels.append([seen, masked, as_seen(filled, processor)[0]])
    return panels


def _masked(image: np.ndarray, is_masked: np.ndarray) -> np.ndarray:
    """Cover patches with gray: (H, W, 3), (rows, columns) -> (H, W, 3)."""
    patch_size = len(image) // len(is_masked)
    pixels = np.kron(is_masked, np.ones((patch_size, patch_size), dtype=bool))  # (H, W)
    return np.where(pixels[..., None], GRAY, image)


__all__ = ["open_mae", "plot_reconstructions", "reconstruction_panels"]
