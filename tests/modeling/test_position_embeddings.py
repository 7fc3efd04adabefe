"""Position embeddings: fixed ones, interpolation, and rotary positions."""

from __future__ import annotations

import math

import pytest
import torch

from selfvit.modeling.position_embeddings import (
    RotaryPositions,
    augment_coordinates,
    interpolate_position_embeddings,
    patch_coordinates,
    rotary_tables,
    rotate,
    sincos_position_embeddings,
)
from tests.golden import load_golden
from tests.objectives import DINOV3, tiny_config


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


# Rotary positions


def test_coordinates_are_the_centers_of_the_patches():
    expected = [[-0.5, -2 / 3], [-0.5, 0.0], [-0.5, 2 / 3], [0.5, -2 / 3], [0.5, 0.0], [0.5, 2 / 3]]
    torch.testing.assert_close(patch_coordinates((2, 3)), torch.tensor(expected))


def test_angles_match_hand_computed_values():
    # 8 channels: periods 1 and 100 ** 0.5 along each axis; y = 1/2, x = -1/4
    cosines, sines = rotary_tables(torch.tensor([[0.5, -0.25]]), head_dim=8, base=100.0)
    angles = torch.tensor([math.pi, math.pi / 10, -math.pi / 2, -math.pi / 20]).repeat(2)
    torch.testing.assert_close(cosines, angles.cos().unsqueeze(0), rtol=0, atol=1e-6)
    torch.testing.assert_close(sines, angles.sin().unsqueeze(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["dinov3_vit", "dinov3_vit_gated", "dinov3_vit_no_bias"])
@pytest.mark.parametrize("size", ["square", "rect"])
def test_tables_match_the_reference(name, size):
    golden, _ = load_golden(name)
    grid = tuple(side // 8 for side in golden[f"{size}.pixel_values"].shape[2:])
    tables = rotary_tables(patch_coordinates(grid), head_dim=16, base=100.0)
    for kind, table in zip(("cos", "sin"), tables, strict=True):
        torch.testing.assert_close(table, golden[f"{size}.rope_{kind}"], rtol=0, atol=1e-5)


def test_a_quarter_turn_swaps_the_channels_of_a_pair():
    quarter = torch.full((1, 1, 1, 4), math.pi / 2)
    turned = rotate(torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]]), (quarter.cos(), quarter.sin()))
    torch.testing.assert_close(turned, torch.tensor([[[[-3.0, -4.0, 1.0, 2.0]]]]))


def test_products_depend_on_the_distance_of_patches_only():
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 16, generator=generator)
    cosines, sines = (t[None, None] for t in rotary_tables(patch_coordinates((4, 4)), 16, 100.0))
    queries = rotate(query.expand(1, 1, 16, 16), (cosines, sines))
    keys = rotate(key.expand(1, 1, 16, 16), (cosines, sines))
    torch.testing.assert_close(queries.norm(dim=-1), query.norm().expand(1, 1, 16))
    products = (queries @ keys.transpose(2, 3))[0, 0].unflatten(0, (4, 4)).unflatten(2, (4, 4))
    torch.testing.assert_close(products[0, 0, 1, 2], products[2, 1, 3, 3])
    assert (products[0, 0, 1, 2] - products[0, 0, 2, 1]).abs() > 0.1


def test_class_token_and_registers_are_not_turned():
    positions = RotaryPositions(tiny_config(**DINOV3)).eval()
    cosines, sines = positions(torch.zeros(2, 19, 32), (4, 4))
    assert cosines.shape == sines.shape == (1, 1, 19, 16)
    heads = torch.randn(2, 2, 19, 16)
    turned = rotate(heads, (cosines, sines))
    assert torch.equal(turned[:, :, :3], heads[:, :, :3])
    assert not torch.isclose(turned[:, :, 3:], heads[:, :, 3:]).all(dim=-1).any()


def test_coordinates_are_augmented_within_their_limits_and_in_training_only():
    torch.manual_seed(0)
    coordinates = patch_coordinates((3, 5))
    assert augment_coordinates(coordinates, None, None, None) is coordinates
    factors = torch.stack(
        [augment_coordinates(coordinates, None, None, 2.0)[0] / coordinates[0] for _ in range(400)]
    )
    assert torch.allclose(factors[:, 0], factors[:, 1])  # one factor for both axes
    assert 0.5 <= factors.min() < 0.55 and 1.9 < factors.max() <= 2.0
    assert abs((factors.log() / math.log(2)).mean()) < 5 * 3**-0.5 / 20  # log-uniform
    jittered = augment_coordinates(coordinates, None, 2.0, None) / coordinates
    assert not torch.isclose(jittered[0, 0], jittered[0, 1])
    moved = augment_coordinates(coordinates, 0.25, None, None) - coordinates
    torch.testing.assert_close(moved, moved[:1].expand_as(moved))
    assert 0 < moved.abs().max() <= 0.25
    positions = RotaryPositions(tiny_config(**DINOV3, pos_embed_rescale=2.0))
    tokens = torch.zeros(1, 19, 32)
    assert torch.equal(positions.eval()(tokens, (4, 4))[0], positions(tokens, (4, 4))[0])
    assert not torch.equal(positions.train()(tokens, (4, 4))[0], positions(tokens, (4, 4))[0])
