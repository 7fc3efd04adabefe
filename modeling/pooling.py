"""Pooling: from the tokens of an image to its embedding."""

# B batch · N patches · D hidden

from __future__ import annotations

import torch
from torch import Tensor


def generalized_mean(patches: Tensor, power: float = 3.0, minimum: float = 1e-6) -> Tensor:
    """GeM pooling (arXiv 1711.02512, Sec. 3.2), in float32.

    Args:
        patches: (B, N, D).
        power: 1 is the mean, infinity the maximum; the paper's learned values are close to 3.
        minimum: tokens are clamped to it first, so that the power is defined.

    Returns:
        (B, D), same dtype.
    """
    clamped = patches.float().clamp(min=minimum)
    return clamped.pow(power).mean(dim=1).pow(1 / power).to(patches.dtype)


def pool(class_tokens: list[Tensor], patches: Tensor | None, pooling: str) -> Tensor:
    """Return the embedding that `SelfViTConfig.pooling` describes.

    Args:
        class_tokens: normalized class tokens (B, D) of the last blocks, as many as the pooling
            takes.
        patches: normalized patch tokens (B, N, D), class and register tokens excluded; None where
            the pooling takes class tokens only.
        pooling: "cls", "mean", "cls+mean", "gem" or "concat:n".

    Returns:
        (B, E), with E = `SelfViTConfig.embedding_size`.
    """
    parts = list(class_tokens)
    if pooling in ("mean", "cls+mean", "gem"):
        assert patches is not None
        parts.append(generalized_mean(patches) if pooling == "gem" else patches.mean(dim=1))
    return torch.cat(parts, dim=-1)


__all__ = ["generalized_mean", "pool"]
