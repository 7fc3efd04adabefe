"""Position embeddings: fixed ones, and interpolation."""

from __future__ import annotations

import math

import pytest
import torch

from selfvit.modeling.position_embeddings import (
    interpolate_position_embeddings,
    sincos_position_embeddings,
)


def test_sincos_matches_hand_computed_values():
    # 4 channels: one frequency, 1; sine and cosine of the column, then of the row
    embeddings = sincos_position_embeddings(4, (2, 3))
    expected = [[0.0, 0.0, 0.0, 0.0]] + [
        [math.sin(column), math.cos(column), math.sin(row), math.cos(row)]
        for row in range(2)
        for column in range(3)
    ]
    torch.testing.assert_close(embeddings, torch.tensor([expected]))


def test_sincos_frequencies_fall_to_one_in_ten_thousand():
    # 8 channels: frequencies 1 and 1 / 10000 ** 0.5; the patch of row 0, column 3
    patch = sincos_position_embeddings(8, (1, 4))[0, 4]
    angles = torch.tensor([3.0, 0.03])
    expected = torch.cat([angles.sin(), angles.cos(), torch.zeros(2), torch.ones(2)])
    torch.testing.assert_close(patch, expected)


def test_sincos_embeddings_differ_between_all_patches():
    patches = sincos_position_embeddings(16, (5, 7))[0, 1:]
    distances = torch.cdist(patches, patches) + torch.eye(35)
    assert distances.min() > 0.1


def test_the_stored_grid_needs_no_interpolation():
    embeddings = torch.randn(1, 13, 8)
    assert interpolate_position_embeddings(embeddings, (3, 4), (3, 4)) is embeddings


@pytest.mark.parametrize("grid", [(2, 2), (6, 8), (1, 9), (5, 3)])
def test_resizing_keeps_the_class_token_and_constants(grid):
    embeddings = torch.cat([torch.randn(1, 1, 8), torch.full((1, 12, 8), 0.7)], dim=1)
    resized = interpolate_position_embeddings(embeddings, (3, 4), grid)
    assert resized.shape == (1, 1 + grid[0] * grid[1], 8)
    assert torch.equal(resized[:, :1], embeddings[:, :1])
    torch.testing.assert_close(resized[:, 1:], torch.full((1, grid[0] * grid[1], 8), 0.7))


def test_rows_and_columns_are_not_swapped():
    # channel 0 increases with the row, channel 1 with the column, and so after resizing
    row, column = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    patches = torch.stack([row, column], dim=-1).flatten(0, 1)
    embeddings = torch.cat([torch.zeros(1, 2), patches]).unsqueeze(0)
    resized = interpolate_position_embeddings(embeddings, (4, 6), (8, 3))[0, 1:].unflatten(
        0, (8, 3)
    )
    assert (resized[..., 0].diff(dim=0) > 0).all()
    assert (resized[..., 1].diff(dim=1) > 0).all()
    torch.testing.assert_close(
        resized[..., 0], resized[:, :1, 0].expand(8, 3), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(resized[..., 1], resized[:1, :, 1].expand(8, 3), rtol=1e-4, atol=0)


def test_resizing_keeps_the_dtype_and_the_gradient():
    embeddings = torch.randn(1, 17, 8, dtype=torch.bfloat16, requires_grad=True)
    resized = interpolate_position_embeddings(embeddings, (4, 4), (3, 5))
    assert resized.dtype == torch.bfloat16
    resized.float().sum().backward()
    assert (embeddings.grad != 0).all()
