"""Attention computed unfused is the same, and is chosen where the fused form is slow."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from selfvit.modeling.attention_functions import (
    attention_function,
    eager_attention_forward,
    unfused_attention_forward,
)


def heads(
    num_queries: int = 7, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query (2, 3, Q, 4), key and value (2, 3, 7, 4), laid out as the projections give them."""
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(2, count, 12, dtype=dtype).unflatten(-1, (3, 4)).transpose(1, 2)
        for count in (num_queries, 7, 7)
    )
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


def unfused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, None]:
    return unfused_attention_forward(nn.Module(), query, key, value, None, scaling=0.3)


def fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(query, key, value, scale=0.3)


@pytest.mark.parametrize("num_queries", [1, 7])
def test_unfused_attention_has_values_and_gradients_of_the_fused_one(num_queries):
    tensors = heads(num_queries)
    attended, weights = unfused(*tensors)
    expected = fused(*tensors).transpose(1, 2)
    assert weights is None
    torch.testing.assert_close(attended, expected)
    downstream = torch.randn_like(attended)
    gradients = torch.autograd.grad(attended, tensors, downstream)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, tensors, downstream))


def test_unfused_attention_keeps_bfloat16():
    tensors = heads(dtype=torch.bfloat16)
    attended, _ = unfused(*tensors)
    assert attended.dtype == torch.bfloat16
    expected = fused(*(tensor.float() for tensor in tensors))
    torch.testing.assert_close(attended.float(), expected.transpose(1, 2), rtol=0, atol=0.02)


def test_attention_is_unfused_only_with_gradients_in_bfloat16():
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
    query = heads(dtype=torch.bfloat16)[0]
    assert attention_function("sdpa", query) is unfused_attention_forward
    assert attention_function("sdpa", query.detach()) is sdpa
    assert attention_function("sdpa", query.float()) is sdpa
    assert attention_function("sdpa", query.to("meta")) is sdpa
    assert attention_function("eager", query) is eager_attention_forward
