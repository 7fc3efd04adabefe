"""Block masks of DINOv2, and the augmentation that draws them with the views."""

# V views · N patches

from __future__ import annotations

import json

import numpy as np
import pytest

from selfvit.training.augmentations.block_masks import add_block, random_block_mask
from selfvit.training.augmentations.multi_crop import MaskedMultiCrop, MultiCrop
from tests.golden import FOLDER

REFERENCE = json.loads((FOLDER / "block_masks.json").read_text())["configurations"]
# tiles, so that a crop looks alike at any resolution
TILES = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
IMAGE = TILES.repeat(16, axis=0).repeat(16, axis=1)  # (80, 96, 3)


def views_of(augmentation, seed=0, image_size=(64, 64)):
    return augmentation(IMAGE, np.random.default_rng(seed), image_size, 8)


def multi_crop(**fields):
    return MaskedMultiCrop(**{"num_local_views": 2, "local_view_size": 16, **fields})


@pytest.mark.parametrize("case", REFERENCE, ids=lambda case: "x".join(map(str, case["grid"])))
def test_masks_have_the_properties_of_the_reference(case):
    rng, observed = np.random.default_rng(1), case["observed"]["dinov2"]
    least, most = case["mask_ratio"]
    edges = np.linspace(least, most, case["crops_masked"] + 1)
    means, total, num_draws = [], np.zeros(case["grid"]), 300
    for rank, bounds in enumerate(case["target_bounds_by_rank"]):
        ratios = rng.uniform(edges[rank], edges[rank + 1], num_draws)
        masks = [
            random_block_mask(tuple(case["grid"]), int(case["patches"] * ratio), rng)
            for ratio in ratios
        ]
        counts = np.array([mask.sum() for mask in masks])
        assert counts.max() <= bounds[1]
        assert counts.min() >= observed["count_min_by_rank"][rank] - 1
        means.append(counts.mean())
        total += sum(mask.astype(float) for mask in masks)
    patches = case["patches"]
    np.testing.assert_allclose(
        means, observed["count_mean_by_rank"], rtol=0, atol=0.3 + 0.005 * patches
    )
    share = total / (num_draws * len(means)) * case["probability"]
    assert share.mean() == pytest.approx(
        observed["mean_share_of_patches_masked_over_all_crops"], abs=0.004
    )
    corners = share[[0, 0, -1, -1], [0, -1, 0, -1]]
    np.testing.assert_allclose(corners, observed["share_masked_at_corners"], rtol=0, atol=0.02)
    center = share[case["grid"][0] // 2, case["grid"][1] // 2]
    assert center == pytest.approx(observed["share_masked_at_centre"], abs=0.035)


@pytest.mark.parametrize("case", REFERENCE, ids=lambda case: "x".join(map(str, case["grid"])))
def test_a_single_block_has_the_shape_of_the_reference(case):
    rng, expected = np.random.default_rng(2), case["single_block"]
    sides = []
    for _ in range(1500):
        mask = np.zeros(case["grid"], dtype=bool)
        added = add_block(mask, case["max_block_patches"], rng)
        sides.append((mask.any(axis=1).sum(), mask.any(axis=0).sum()))
        assert added == mask.sum() == np.prod(sides[-1])  # a full rectangle
    height, width = np.array(sides).T
    assert height.min() >= expected["height"][0] and height.max() <= expected["height"][1]
    assert width.min() >= expected["width"][0] and width.max() <= expected["width"][1]
    assert (height * width).min() >= expected["area"][0]
    assert (height * width).max() <= expected["area"][1]
    assert (height * width).mean() == pytest.approx(expected["mean_area"], rel=0.08)
    assert np.log(height / width).mean() == pytest.approx(expected["mean_log_aspect"], abs=0.12)


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (2, 2), (3, 7), (14, 28)])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_any_grid_and_number_end_and_never_exceed_the_number(grid, ratio):
    rng = np.random.default_rng(0)
    for _ in range(20):
        num_masked = int(ratio * grid[0] * grid[1])
        mask = random_block_mask(grid, num_masked, rng)
        assert mask.shape == grid and mask.sum() <= num_masked


def test_half_of_the_global_views_are_masked_one_for_each_image():
    masks = np.stack([views_of(multi_crop(), seed)["bool_masked_pos"] for seed in range(60)])
    assert masks.shape == (60, 2, 64) and masks.dtype == bool
    masked_views = masks.any(axis=-1)
    assert (masked_views.sum(axis=1) == 1).all()
    assert 15 <= masked_views[:, 0].sum() <= 45  # either of the two
    assert masks.sum(axis=-1).max() <= 32


@pytest.mark.parametrize(
    ("ratio", "numbers"), [(0.0, {0}), (0.25, {0, 1}), (0.75, {1, 2}), (1, {2})]
)
def test_another_fraction_of_the_views_is_masked_on_average(ratio, numbers):
    augmentation = multi_crop(masked_view_ratio=ratio, masked_patch_ratio=[0.4, 0.4])
    masks = np.stack([views_of(augmentation, seed)["bool_masked_pos"] for seed in range(60)])
    per_image = masks.any(axis=-1).sum(axis=1)
    assert set(per_image) == numbers
    assert per_image.mean() == pytest.approx(2 * ratio, abs=0.25)


def test_the_views_are_those_of_multi_crop_for_the_same_generator():
    fields = {"num_local_views": 2, "local_view_size": 16}
    plain = MultiCrop(global_crop_scale=[0.32, 1.0], local_crop_scale=[0.05, 0.32], **fields)
    expected, views = views_of(plain), views_of(multi_crop())
    assert views.keys() == {*expected, "bool_masked_pos"}
    for name, value in expected.items():
        assert np.array_equal(views[name], value)


def test_gram_views_show_the_global_views_at_a_higher_resolution():
    for seed in range(8):
        small = views_of(multi_crop(), seed)
        views = views_of(multi_crop(gram_resolution_factor=2), seed)
        gram = views.pop("gram_views")
        assert gram.shape == (2, 3, 128, 128)
        for name, value in small.items():  # one option changes no other random number
            assert np.array_equal(views[name], value), name
        reduced = gram.reshape(2, 3, 64, 2, 64, 2).mean(axis=(3, 5))
        for view, larger in zip(small["global_views"], reduced, strict=True):
            correlation = np.corrcoef(view.ravel(), larger.ravel())[0, 1]
            assert correlation > 0.9


def test_sizes_cover_the_gram_views():
    augmentation = multi_crop(gram_resolution_factor=2, global_crop_scale=[0.25, 1.0])
    assert augmentation.view_sizes((64, 32)) == [(64, 32), (16, 16), (128, 64)]
    box = augmentation.crops((400, 400), (64, 32), np.random.default_rng(0))[0][0]
    needed = augmentation.source_size((400, 400), (64, 32), np.random.default_rng(0))
    assert max(needed) < 400 and needed[0] * box[2] / 400 >= 128 and needed[1] * box[3] / 400 >= 64
    assert multi_crop(num_local_views=0).view_sizes((64, 32)) == [(64, 32)]
