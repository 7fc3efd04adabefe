"""Functions that compute attention, and the choice between them."""

# B batch · T key tokens · Q query tokens · D hidden · A attention heads

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[Tensor, Tensor]:
    """Compute attention with explicit weights, which `output_attentions` needs.

    query, key and value are (B, A, T, D/A), or (B, A, Q, D/A) for the query.
    """
    weights = query @ key.transpose(2, 3) * scaling  # (B, A, T, T)
    weights = weights.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def unfused_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[Tensor, None]:
    """Compute attention as two matrix products with a softmax between them.

    Shapes are those of `eager_attention_forward`. The softmax computes in float32, and its result
    has the dtype of the query.
    """
    batch_size, num_heads, num_queries, _ = query.shape
    weights = torch.baddbmm(
        query.new_empty(()).expand(batch_size * num_heads, num_queries, key.shape[2]),  # not read
        query.flatten(0, 1),
        key.flatten(0, 1).transpose(1, 2),
        beta=0,
        alpha=scaling,
    )
    attended = weights.softmax(dim=-1) @ value.flatten(0, 1)  # (B * A, Q, D/A)
    return attended.unflatten(0, (batch_size, num_heads)).transpose(1, 2).contiguous(), None


def attention_function(implementation: str, query: Tensor) -> Callable:
    """Return the function that computes attention.

    It is the implementation of the configuration, with one exception: in bfloat16 on a CPU the
    backward pass of `scaled_dot_product_attention` is slow. Forward and backward, 8 images of 197
    tokens take 33 ms, and 16 ms unfused; 24 crops of 37 tokens take 32 ms, and 5 ms unfused
    (6 heads, one core with AMX, 2026-11-29). Without gradients, it is the faster one.

    Args:
        implementation: Name of the attention implementation, from the configuration.
        query: (B, A, Q, D/A).
    """
    is_slow = query.dtype == torch.bfloat16 and query.device.type == "cpu" and query.requires_grad
    if implementation == "sdpa" and is_slow:
        return unfused_attention_forward
    return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)


__all__ = ["attention_function", "eager_attention_forward", "unfused_attention_forward"]
