"""Mixup, cutmix and label smoothing: results computed by hand, and properties."""

import numpy as np
import pytest
import torch

from selfvit.training.augmentations.mixup import (
    cutmix,
    mixup,
    random_cut_box,
    random_partners,
    smooth_labels,
)
from selfvit.training.augmentations.single_crop import CropAndFlip, MixedCrop

# B batch · C channels · H, W pixels · L classes


def levels(*values, height=4, width=6):
    """Return images (B, 3, H, W), uint8, each filled with one of the values."""
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 3, height, width)


def one_hot(*classes, num_classes=3):
    return smooth_labels(torch.tensor(classes), num_classes)


# Label smoothing


def test_label_smoothing_distributes_its_fraction_over_all_classes():
    smooth = smooth_labels(torch.tensor([2, 0]), 4, smoothing=0.1)
    expected = [[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]]
    torch.testing.assert_close(smooth, torch.tensor(expected))
    assert smooth.dtype == torch.float32


def test_without_smoothing_labels_are_one_hot():
    assert one_hot(1, 2).tolist() == [[0, 1, 0], [0, 0, 1]]
    assert one_hot(1).dtype == torch.float32


@pytest.mark.parametrize("labels", [[0, -1], [3, 0]])
def test_a_label_outside_the_classes_is_an_error_with_its_value(labels):
    with pytest.raises(ValueError, match=rf"class indices from 0 to 2, got {min(labels)} to"):
        smooth_labels(torch.tensor(labels), 3)


# Mixup


def test_mixup_mixes_images_and_labels_with_the_same_share():
    images, labels = mixup(levels(100, 200, 0), one_hot(0, 1, 2), torch.tensor([1, 2, 0]), 0.75)
    assert torch.equal(images, levels(125, 150, 25))
    expected = [[0.75, 0.25, 0], [0, 0.75, 0.25], [0.25, 0, 0.75]]
    torch.testing.assert_close(labels, torch.tensor(expected))


def test_mixup_rounds_to_the_nearest_level():
    # a cast alone would truncate 101.6 to 101 and darken every image by half a level
    images, _ = mixup(levels(100, 102), one_hot(0, 1), torch.tensor([1, 0]), 0.2)
    assert torch.equal(images, levels(102, 100))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_mixup_with_share_0_or_1_returns_the_partner_or_the_image_itself(share):
    images, partners = levels(7, 255, 90), torch.tensor([2, 0, 1])
    mixed, labels = mixup(images, one_hot(0, 1, 2), partners, share)
    expected = images if share == 1 else images[partners]
    assert torch.equal(mixed, expected)
    assert labels.argmax(dim=1).tolist() == ([0, 1, 2] if share == 1 else [2, 0, 1])


# Cutmix


def test_cutmix_pastes_the_box_of_the_partner_and_mixes_labels_by_area():
    # the box covers 2 x 3 of 4 x 6 pixels, a quarter
    images, labels = cutmix(levels(10, 20), one_hot(0, 1), torch.tensor([1, 0]), (1, 2, 2, 3))
    inside = torch.zeros(4, 6, dtype=torch.bool)
    inside[1:3, 2:5] = True
    assert (images[0][:, inside] == 20).all() and (images[0][:, ~inside] == 10).all()
    assert (images[1][:, inside] == 10).all() and (images[1][:, ~inside] == 20).all()
    torch.testing.assert_close(labels, torch.tensor([[0.75, 0.25, 0], [0.25, 0.75, 0]]))


def test_cutmix_with_an_empty_box_changes_nothing_and_with_a_full_box_returns_the_partner():
    images, labels, partners = levels(10, 20), one_hot(0, 1), torch.tensor([1, 0])
    for box, expected in (((2, 3, 0, 0), [0, 1]), ((0, 0, 4, 6), [1, 0])):
        mixed, mixed_labels = cutmix(images, labels, partners, box)
        assert torch.equal(mixed, images[expected])
        assert torch.equal(mixed_labels, labels[expected])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_cut_boxes_lie_within_the_image_and_have_the_size_of_the_share_unless_clipped(share):
    full = (round(20 * (1 - share) ** 0.5), round(31 * (1 - share) ** 0.5))
    boxes = [random_cut_box(20, 31, share, np.random.default_rng(seed)) for seed in range(300)]
    for top, left, height, width in boxes:
        assert 0 <= top <= 20 - height and 0 <= left <= 31 - width
        assert 0 <= height <= full[0] and 0 <= width <= full[1]
        assert height == full[0] or top == 0 or top + height == 20
        assert width == full[1] or left == 0 or left + width == 31
    if share == 0.9:
        assert {(height, width) for _, _, height, width in boxes} >= {full}
        assert {top for top, *_ in boxes} >= set(range(15))
        assert any(height < full[0] for _, _, height, _ in boxes)


# Batches


def batch_of(size, seed=0):
    """Return a batch in which each image has its own gray level, 10 times its label."""
    labels = torch.arange(size)
    return {"pixel_values": levels(*range(size), height=16, width=16) * 10, "labels": labels}


def mix(augmentation, size=8, seed=0):
    return augmentation.mix(batch_of(size), np.random.default_rng(seed), size)


BOTH = MixedCrop(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1)


@pytest.mark.parametrize("seed", range(12))
def test_soft_labels_sum_to_one_and_are_float32(seed):
    mixed = mix(BOTH, seed=seed)
    assert mixed["labels"].shape == (8, 8) and mixed["labels"].dtype == torch.float32
    torch.testing.assert_close(mixed["labels"].sum(dim=1), torch.ones(8))
    assert mixed["pixel_values"].dtype == torch.uint8


@pytest.mark.parametrize("seed", range(12))
def test_labels_of_cutmix_are_the_exact_shares_of_pixels(seed):
    # also if the border clips the box, so that its share differs from the drawn one
    mixed = mix(MixedCrop(cutmix_alpha=1.0), seed=seed)
    for image, label in zip(mixed["pixel_values"], mixed["labels"], strict=True):
        counted = torch.bincount(image[0].flatten() // 10, minlength=8) / image[0].numel()
        torch.testing.assert_close(label, counted)


@pytest.mark.parametrize("seed", range(12))
def test_labels_of_mixup_match_the_mixed_levels(seed):
    mixed = mix(MixedCrop(mixup_alpha=0.8), seed=seed)
    expected = mixed["labels"] @ (torch.arange(8.0) * 10)  # the level that belongs to the label
    assert (mixed["pixel_values"][:, 0, 0, 0] - expected).abs().max() <= 0.5 + 1e-4
    assert (mixed["pixel_values"] == mixed["pixel_values"][:, :1, :1, :1]).all()


def test_mixup_and_cutmix_are_each_used_half_of_the_time_if_both_are_enabled():
    uniform = [
        (images == images[:, :, :1, :1]).all().item()
        for images in (mix(BOTH, seed=seed)["pixel_values"] for seed in range(200))
    ]
    assert 70 < sum(uniform) < 130  # images of mixup: half of 200, within four std


def test_shares_of_mixup_follow_the_beta_distribution():
    shares = [
        mix(MixedCrop(mixup_alpha=0.8), size=2, seed=seed)["labels"][0, 0].item()
        for seed in range(2000)
    ]
    mixed = np.array(
        [share for share in shares if share < 1]
    )  # the two images are partners half of the time
    assert 0.45 < len(mixed) / 2000 < 0.55
    # variance of Beta(a, a) is 1 / (4 (2 a + 1))
    assert abs(mixed.mean() - 0.5) < 0.04 and abs(mixed.var() - 1 / 10.4) < 0.012


def test_mixing_is_determined_by_the_seed():
    first, again, other = mix(BOTH, seed=3), mix(BOTH, seed=3), mix(BOTH, seed=4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["labels"], other["labels"])


def test_mixing_does_not_change_its_input():
    for seed in range(4):
        batch, expected = batch_of(6), batch_of(6)
        BOTH.mix(batch, np.random.default_rng(seed), 6)
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_a_batch_of_one_image_is_not_changed():
    mixed = mix(MixedCrop(mixup_alpha=0.8, cutmix_alpha=1.0), size=1)
    assert torch.equal(mixed["pixel_values"], batch_of(1)["pixel_values"])
    assert mixed["labels"].tolist() == [[1.0]]


def test_partners_are_a_permutation_of_the_batch():
    partners = random_partners(9, np.random.default_rng(0))
    assert sorted(partners.tolist()) == list(range(9)) != partners.tolist()


def test_without_mixup_and_cutmix_only_the_labels_are_smoothed():
    mixed = mix(MixedCrop(label_smoothing=0.2), size=4)
    assert torch.equal(mixed["pixel_values"], batch_of(4)["pixel_values"])
    torch.testing.assert_close(mixed["labels"], torch.eye(4) * 0.8 + 0.05)


def test_an_augmentation_does_not_mix_by_default():
    batch = batch_of(4)
    assert CropAndFlip().mix(batch, np.random.default_rng(0), 4) is batch
