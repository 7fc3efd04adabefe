import math

import cv2
import numpy as np
import pytest

from selfvit.training.augmentations.colored_crop import ColoredCrop
from selfvit.training.augmentations.functional import crop_and_resize
from selfvit.training.augmentations.multi_crop import FocalCrops, MultiCrop
from selfvit.training.augmentations.single_crop import CropAndFlip, MAECrop, MixedCrop

from ..image_files import noise

PLAIN_COLORS = {
    "flip_probability": 0.0,
    "color_jitter_probability": 0.0,
    "grayscale_probability": 0.0,
}
PLAIN = {
    **PLAIN_COLORS,
    "blur_probability": [0.0] * 3,
    "solarize_probability": [0.0] * 3,
}

FINE_TUNING = MixedCrop(rand_augment_magnitude=9.0, random_erasing_probability=0.5)


def rng(seed=0):
    return np.random.default_rng(seed)


def pixels(width, height):
    return np.array(noise(width, height))


def test_multi_crop_returns_two_global_views_and_the_local_views_as_channels_first_uint8():
    views = MultiCrop(num_local_views=3, local_view_size=16)(pixels(50, 40), rng(), (32, 48), 8)
    assert {name: view.shape for name, view in views.items()} == {
        "global_views": (2, 3, 32, 48),
        "local_views": (3, 3, 16, 16),
    }
    assert all(view.dtype == np.uint8 for view in views.values())


def test_multi_crop_returns_only_global_views_if_num_local_views_is_0():
    assert MultiCrop(num_local_views=0)(pixels(50, 40), rng(), (32, 32), 8).keys() == {
        "global_views"
    }


def test_focal_crops_returns_target_random_and_focal_views_and_noise_for_each_patch():
    augmentation = FocalCrops(num_random_views=2, num_focal_views=3, focal_view_size=16)
    inputs = augmentation(pixels(50, 40), rng(), (32, 48), 8)
    assert {name: value.shape for name, value in inputs.items()} == {
        "target_view": (3, 32, 48),
        "random_views": (2, 3, 32, 48),
        "focal_views": (3, 3, 16, 16),
        "noise": (2, 24),
    }
    assert {name for name, value in inputs.items() if value.dtype == np.float32} == {"noise"}
    assert all(inputs[name].dtype == np.uint8 for name in inputs.keys() - {"noise"})
    assert inputs["noise"].min() >= 0 and inputs["noise"].max() < 1
    assert len(np.unique(inputs["noise"])) == 48


def test_target_and_random_views_are_different_crops():
    augmentation = FocalCrops(
        num_focal_views=0,
        random_crop_scale=[0.5, 0.5],
        **{**PLAIN_COLORS, "blur_probability": 0.0},
    )
    inputs = augmentation(pixels(40, 40), rng(), (32, 32), 8)
    assert inputs.keys() == {"target_view", "random_views", "noise"}
    assert not np.array_equal(inputs["target_view"], inputs["random_views"][0])


def test_focal_crops_without_random_views_is_an_error():
    with pytest.raises(ValueError, match=r"num_random_views \(0\) must be at least 1"):
        FocalCrops(num_random_views=0)


@pytest.mark.parametrize(
    "augmentation",
    [
        MultiCrop(local_view_size=16),
        FocalCrops(focal_view_size=16),
        CropAndFlip(),
        MAECrop(),
        FINE_TUNING,
    ],
)
def test_views_are_determined_by_the_seed(augmentation):
    first = augmentation(pixels(50, 40), rng(3), (32, 32), 8)
    again = augmentation(pixels(50, 40), rng(3), (32, 32), 8)
    other = augmentation(pixels(50, 40), rng(4), (32, 32), 8)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert any(not np.array_equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    "augmentation",
    [MultiCrop(local_view_size=16), FocalCrops(focal_view_size=16), MAECrop(), ColoredCrop()],
)
def test_a_reduced_image_has_the_same_crops_none_of_them_enlarged(augmentation):
    reduced = []
    for seed in range(100):
        crops = augmentation.crops((600, 800), (32, 48), rng(seed))
        ratios = [max(size[0] / box[2], size[1] / box[3]) for box, size in crops]
        needed = augmentation.source_size((600, 800), (32, 48), rng(seed))
        assert needed == (math.ceil(600 * max(ratios)), math.ceil(800 * max(ratios)))
        halves = augmentation.crops((300, 400), (32, 48), rng(seed))
        for (box, _), (half, _) in zip(crops, halves, strict=True):
            assert np.abs(np.array(half) - np.array(box) / 2).max() <= 1
        reduced.append(needed)
    assert len(set(reduced)) > 20  # by what is drawn, not by the worst case


def test_a_crop_of_the_full_image_without_color_changes_is_the_resized_image():
    image = pixels(50, 40)
    plain = MultiCrop(num_local_views=0, global_crop_scale=[1.0, 1.0], **PLAIN)
    expected = crop_and_resize(np.array(image), (0, 0, 40, 50), (32, 32)).transpose(2, 0, 1)
    # only a box of ratio 5:4 covers the full area, so all draws fail and the fallback is used,
    # a center crop
    for view in plain(image, rng(), (32, 32), 8)["global_views"]:
        assert view.shape == expected.shape
        assert np.abs(view.astype(int) - expected).mean() < 12


def one_view(**changes):
    augmentation = MultiCrop(
        num_local_views=0, global_crop_scale=[0.5, 0.5], **{**PLAIN, **changes}
    )
    return augmentation(pixels(40, 40), rng(1), (32, 32), 8)["global_views"]


def test_solarize_inverts_levels_from_128_with_the_probability_of_each_view():
    plain, solarized = one_view(), one_view(solarize_probability=[0.0, 1.0, 0.0])
    assert np.array_equal(solarized[0], plain[0])
    assert np.array_equal(solarized[1], np.where(plain[1] < 128, plain[1], 255 - plain[1]))


def test_flip_mirrors_left_and_right():
    assert np.array_equal(one_view(flip_probability=1.0)[0], one_view()[0][:, :, ::-1])


def test_grayscale_makes_the_channels_equal():
    view = one_view(grayscale_probability=1.0)[0]
    assert np.array_equal(view[0], view[1]) and np.array_equal(view[1], view[2])


def test_blur_is_a_gaussian_blur_with_the_drawn_sigma():
    plain = one_view()[0].transpose(1, 2, 0)
    blurred = one_view(blur_probability=[1.0, 0.0, 0.0], blur_sigma=[1.5, 1.5])[0]
    expected = cv2.GaussianBlur(plain.astype(np.float32), (0, 0), 1.5)
    assert np.abs(blurred.transpose(1, 2, 0) - expected).max() < 1


def test_mae_crop_returns_an_image_and_noise_for_each_patch():
    inputs = MAECrop()(pixels(50, 40), rng(), (32, 48), 8)
    assert {name: (value.shape, value.dtype) for name, value in inputs.items()} == {
        "pixel_values": ((3, 32, 48), np.uint8),
        "noise": ((24,), np.float32),
    }
    assert MAECrop().view_sizes((32, 48)) == [(32, 48)]


def test_mae_crop_equals_crop_and_flip_with_uniform_noise_for_the_mask():
    plain = CropAndFlip(crop_scale=[0.2, 1.0])
    draws = [MAECrop()(pixels(50, 40), rng(seed), (32, 32), 8) for seed in range(40)]
    for seed in range(3):
        expected = plain(pixels(50, 40), rng(seed), (32, 32), 8)["pixel_values"]
        assert np.array_equal(draws[seed]["pixel_values"], expected)
    numbers = np.stack([draw["noise"] for draw in draws])
    assert 0 <= numbers.min() < 0.02 and 0.98 < numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 5 / 12**0.5 / numbers.size**0.5
    assert len(np.unique(numbers)) > 630


def test_the_whole_area_is_the_largest_undistorted_part_in_the_center():
    whole = CropAndFlip(crop_scale=[1.0, 1.0], flip_probability=0)
    image = pixels(100, 40)
    view = whole(image, rng(0), (40, 40), 8)["pixel_values"]
    assert np.array_equal(view, image[:, 30:70].transpose(2, 0, 1))
    assert whole.crops((100, 40), (32, 64), rng(0)) == [((40, 0, 20, 40), (32, 64))]


def test_random_erasing_follows_its_probability_and_is_applied_after_the_crop():
    image, plain = pixels(40, 40), CropAndFlip()
    same = []
    for seed in range(300):
        expected = plain(image, rng(seed), (32, 32), 8)["pixel_values"]
        erasing = MixedCrop(random_erasing_probability=0.25)
        view = erasing(image, rng(seed), (32, 32), 8)["pixel_values"]
        same.append(np.array_equal(view, expected))
        assert (view == expected).mean() > 0.5  # the rest of the image is unchanged
    assert 0.75 - 0.1 < np.mean(same) < 0.75 + 0.1


def test_mixed_crop_with_default_settings_equals_crop_and_flip():
    for seed in range(10):
        first = MixedCrop()(pixels(40, 40), rng(seed), (32, 32), 8)["pixel_values"]
        second = CropAndFlip()(pixels(40, 40), rng(seed), (32, 32), 8)["pixel_values"]
        assert np.array_equal(first, second)


def test_mixed_crop_applies_rand_augment_if_its_magnitude_is_set():
    strong = MixedCrop(rand_augment_magnitude=9.0)
    differs = [
        not np.array_equal(
            strong(pixels(40, 40), rng(seed), (32, 32), 8)["pixel_values"],
            CropAndFlip()(pixels(40, 40), rng(seed), (32, 32), 8)["pixel_values"],
        )
        for seed in range(40)
    ]
    assert 20 < sum(differs) < 40
