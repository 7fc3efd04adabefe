"""Raw pixels as vectors: the baseline that an encoder must pass to be of use."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..embedding.embedder import Embedder

# B batch · C channels · H, W pixels

MAX_SIDE = 32  # pixels; larger images are averaged over blocks, as more pixels compare worse


class RawPixelEmbedder(Embedder):
    """Embedder whose vectors are the pixels of the preprocessed images, in 0 to 1.

    Arguments are those of `Embedder`; the model only determines the size of the images.
    """

    @property
    def embedding_size(self) -> int:
        """Number of values per vector."""
        height, width = self._size(self.model.config.image_height_width)
        return self.model.config.num_channels * height * width

    def embed_tokens(self, pixel_values: Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the pixels of preprocessed images.

        Args:
            pixel_values: Normalized pixels, (B, C, H, W).

        Returns:
            Vectors, (B, C * h * w), float32, with at most 32 pixels a side; no patch tokens.
        """
        processor: Any = self.processor
        mean, std = (
            torch.tensor(values, dtype=torch.float32)[:, None, None]
            for values in (processor.image_mean, processor.image_std)
        )
        pixels = pixel_values.cpu().float() * std + mean
        small = F.adaptive_avg_pool2d(pixels, self._size(tuple(pixels.shape[-2:])))
        return small.flatten(1).numpy(), None

    @staticmethod
    def _size(size: tuple[int, ...]) -> tuple[int, int]:
        """Return height and width of the pixels that a vector has."""
        scale = min(1.0, MAX_SIDE / max(size))
        return max(1, round(scale * size[0])), max(1, round(scale * size[1]))


__all__ = ["RawPixelEmbedder"]
