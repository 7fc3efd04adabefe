"""Pooling of the tokens of an image to its embedding."""

# B batch · N patches · D hidden

from __future__ import annotations

import torch
from torch import Tensor


def generalized_mean(patches: Tensor, power: float = 3.0, minimum: float = 1e-6) -> Tensor:
    """Return the generalized mean (GeM, arXiv 1711.02512, Sec. 3.2), computed in float32.

    Args:
        patches: (B, N, D).
        power: Exponent; 1 is the mean, infinity the maximum. The paper's learned values are close
            to 3.
        minimum: Lower bound that values are clamped to, so that the power is defined.

    Returns:
        (B, D), same dtype.
    """
    clamped = patches.float().clamp(min=minimum)
    return clamped.pow(power).mean(dim=1).pow(1 / power).to(patches.dtype)


def pool(class_tokens: list[Tensor], patches: Tensor | None, pooling: str) -> Tensor:
    """Return the embedding that `SelfViTConfig.pooling` describes.

    Args:
        class_tokens: Normalized class tokens (B, D) of the `SelfViTConfig.num_class_blocks` last
            blocks.
        patches: Normalized patch tokens (B, N, D), without class and register tokens. May be None
            if the pooling uses class tokens only.
        pooling: Kind of pooling: "cls", "mean", "cls+mean", "gem" or "concat:n".

    Returns:
        (B, E), with E = `SelfViTConfig.embedding_size`.
    """
    parts = list(class_tokens)
    if pooling in ("mean", "cls+mean", "gem"):
        assert patches is not None
        parts.append(generalized_mean(patches) if pooling == "gem" else patches.mean(dim=1))
    return torch.cat(parts, dim=-1)


__all__ = ["generalized_mean", "pool"]
