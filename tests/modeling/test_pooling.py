"""Pooling of the tokens of an image."""

from __future__ import annotations

import pytest
import torch

from selfvit.modeling.pooling import generalized_mean, pool


def test_generalized_mean_matches_hand_computed_values():
    # one image, two patches, one channel: ((1 + 27) / 2) ** (1 / 3) = 14 ** (1 / 3)
    patches = torch.tensor([[[1.0], [3.0]]])
    torch.testing.assert_close(generalized_mean(patches), torch.tensor([[14 ** (1 / 3)]]))


def test_power_one_is_the_mean_of_positive_tokens():
    patches = torch.rand(2, 5, 3) + 0.1
    torch.testing.assert_close(generalized_mean(patches, power=1.0), patches.mean(dim=1))


def test_a_large_power_approaches_the_maximum():
    patches = torch.rand(2, 5, 3) + 0.5
    pooled = generalized_mean(patches, power=100.0)  # at least max * 5 ** -0.01
    torch.testing.assert_close(pooled, patches.amax(dim=1), rtol=0.02, atol=0)


def test_negative_tokens_are_clamped():
    patches = torch.full((1, 4, 2), -3.0, requires_grad=True)
    pooled = generalized_mean(patches)
    torch.testing.assert_close(pooled, torch.full((1, 2), 1e-6), rtol=1e-3, atol=0)
    pooled.sum().backward()
    assert patches.grad.isfinite().all()


def test_generalized_mean_does_not_overflow_in_half_precision():
    patches = torch.full((1, 4, 2), 100.0, dtype=torch.float16)  # 100 ** 3 overflows fp16
    pooled = generalized_mean(patches)
    assert pooled.dtype == torch.float16
    torch.testing.assert_close(pooled, torch.full((1, 2), 100.0, dtype=torch.float16))


@pytest.mark.parametrize("pooling", ["mean", "gem", "cls+mean"])
def test_the_order_of_patches_does_not_matter(pooling):
    patches, class_token = torch.randn(2, 6, 4), torch.randn(2, 4)
    class_tokens = [class_token] if pooling == "cls+mean" else []
    shuffled = patches[:, torch.randperm(6)]
    torch.testing.assert_close(
        pool(class_tokens, shuffled, pooling), pool(class_tokens, patches, pooling)
    )


def test_class_tokens_come_first_in_the_concatenation():
    patches, first, second = torch.randn(2, 6, 4), torch.randn(2, 4), torch.randn(2, 4)
    assert torch.equal(pool([first], None, "cls"), first)
    assert torch.equal(pool([], patches, "mean"), patches.mean(dim=1))
    assert torch.equal(pool([], patches, "gem"), generalized_mean(patches))
    assert torch.equal(
        pool([first], patches, "cls+mean"), torch.cat([first, patches.mean(dim=1)], dim=-1)
    )
    assert torch.equal(pool([first, second], None, "concat:2"), torch.cat([first, second], dim=-1))
