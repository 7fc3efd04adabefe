"""Attention computed unfused is the same, and is chosen where the fused form is slow."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from selfvit.modeling.attention_functions import (
    attention_function,
    eager_attention_forward,
    unfused_attention_forward,
)


def heads(num_queries: int = 7, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Query (2, 3, Q, 4), key and value (2, 3, 7, 4), laid out as the projections give them."""
    torch.manual_seed(0)
    tokens = [torch.randn(2, count, 12, dtype=dtype) for count in (num_queries, 7, 7)]
    return [rows.unflatten(-1, (3, 4)).transpose(1, 2).requires_grad_() for rows in tokens]


@pytest.mark.parametrize("num_queries", [1, 7])
def test_unfused_attention_has_values_and_gradients_of_the_fused_one(num_queries):
    tensors = heads(num_queries)
    attended, weights = unfused_attention_forward(None, *tensors, None, scaling=0.3)
    expected = F.scaled_dot_product_attention(*tensors, scale=0.3).transpose(1, 2)
    assert weights is None
    torch.testing.assert_close(attended, expected)
    downstream = torch.randn_like(attended)
    gradients = torch.autograd.grad(attended, tensors, downstream)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, tensors, downstream))


def test_unfused_attention_keeps_bfloat16():
    tensors = heads(dtype=torch.bfloat16)
    attended, _ = unfused_attention_forward(None, *tensors, None, scaling=0.3)
    assert attended.dtype == torch.bfloat16
    expected = F.scaled_dot_product_attention(*(t.float() for t in tensors), scale=0.3)
    torch.testing.assert_close(attended.float(), expected.transpose(1, 2), rtol=0, atol=0.02)


def test_attention_is_unfused_only_with_gradients_in_bfloat16():
    fused = ALL_ATTENTION_FUNCTIONS["sdpa"]
    query = heads(dtype=torch.bfloat16)[0]
    assert attention_function("sdpa", query) is unfused_attention_forward
    assert attention_function("sdpa", query.detach()) is fused
    assert attention_function("sdpa", query.float()) is fused
    assert attention_function("sdpa", query.to("meta")) is fused
    assert attention_function("eager", query) is eager_attention_forward
