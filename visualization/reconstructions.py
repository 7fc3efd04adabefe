"""Reconstructions of a masked autoencoder (MAE, arXiv 2111.06377, Fig. 2 and 3)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..configuration.configuration_selfvit import SelfViTConfig
from ..embedding.embedder import eval_mode
from ..modeling.checkpoints.loading import stored_config
from ..modeling.checkpoints.resolve import resolve_checkpoint
from ..modeling.modeling_mae import SelfViTForMAE
from .figures import draw_panels
from .inputs import Picture, denormalize, open_checkpoint, preprocess_images

# B images · N patches = rows x columns · H, W pixels

GRAY = 0.5  # value of masked patches


def open_mae(
    checkpoint: str | os.PathLike[str],
    *,
    image_size: int | tuple[int, int] | None = None,
    mask_ratio: float | None = None,
) -> tuple[SelfViTForMAE, Any]:
    """Load an MAE checkpoint with its decoder, and its image processor.

    Args:
        checkpoint: Checkpoint folder, Hub id, or USER/NAME@REVISION.
        image_size: Height and width of the preprocessed images in pixels, as in `open_checkpoint`.
        mask_ratio: Fraction of the patches to mask; None for the one stored in the checkpoint.

    Returns:
        The model, in float32 and in evaluation mode, and the image processor.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If the checkpoint has no decoder, its weights do not match the model, or an
            argument is out of range.
    """
    opened = resolve_checkpoint(checkpoint)
    stored = stored_config(opened)
    architecture = (stored.get("architectures") or ["unnamed"])[0]
    if architecture != "SelfViTForMAE":
        raise ValueError(
            "reconstructions need an MAE checkpoint, but "
            f"{str(checkpoint)!r} is a {architecture} checkpoint, without the decoder that "
            "reconstructs images; train one with an MAE recipe: "
            "selfvit train mae --data IMAGES --output RUN."
        )
    config = SelfViTConfig.from_pretrained(opened)
    if mask_ratio is not None:
        config.mae_config.mask_ratio = mask_ratio
        config.mae_config.validate()
    return open_checkpoint(SelfViTForMAE, opened, image_size=image_size, config=config)


def plot_reconstructions(
    model: SelfViTForMAE,
    processor: Any,
    images: Sequence[Picture],
    path: str | os.PathLike[str],
    *,
    seed: int = 0,
) -> None:
    """Draw reconstructions as a PNG with one row per image: original, masked, reconstructed.

    Masked patches are gray. In the reconstruction, visible patches are those of the original image.
    A model trained with `norm_pix_loss` does not predict brightness and contrast: its patches are
    drawn with the brightness and contrast of the original patches.

    Args:
        model: MAE model; its `mask_ratio` is used, and its mode (training or evaluation) does not
            change.
        processor: Image processor of the checkpoint.
        images: Images of any size, as in `preprocess_images`.
        path: PNG file to write.
        seed: Random seed of the masks.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is no image, the patch size does not divide the size of the
            preprocessed images, or the mask ratio masks all patches or none.
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
    """Return a row of panels per image: original, masked, reconstructed.

    Args:
        model: MAE model; its mode (training or evaluation) does not change.
        processor: Image processor that normalized the pixels.
        pixel_values: Normalized pixels, (B, C, H, W).
        noise: Random numbers, (B, N); the patches with the lowest ones stay visible.

    Returns:
        B rows of three panels, (H, W, 3), in [0, 1].
    """
    rows, columns = (size // model.config.patch_size for size in pixel_values.shape[-2:])
    panels = []
    with eval_mode(model), torch.no_grad():
        for values, draws in zip(pixel_values.split(1), noise.split(1), strict=True):
            filled, mask = model.reconstruct(values.to(model.device), draws.to(model.device))
            image = denormalize(values, processor)[0]  # (H, W, 3)
            masked = _masked(image, mask.reshape(rows, columns).bool().cpu().numpy())
            panels.append([image, masked, denormalize(filled, processor)[0]])
    return panels


def _masked(image: np.ndarray, is_masked: np.ndarray) -> np.ndarray:
    """Replace masked patches with gray: (H, W, 3), (rows, columns) -> (H, W, 3)."""
    patch_size = len(image) // len(is_masked)
    pixels = np.kron(is_masked, np.ones((patch_size, patch_size), dtype=bool))  # (H, W)
    return np.where(pixels[..., None], GRAY, image)


__all__ = ["open_mae", "plot_reconstructions", "reconstruction_panels"]
