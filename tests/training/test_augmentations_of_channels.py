"""Augmentations of images with any number of channels, of eight bits and of more."""

import cv2
import numpy as np
import pytest

from selfvit.training.augmentations.functional import (
    blur,
    crop_and_resize,
    erase_box,
    flip,
    jitter_color,
    scale_brightness,
    scale_contrast,
    solarize,
    to_gray,
)
from selfvit.training.augmentations.multi_crop import FocalCrops, MultiCrop
from selfvit.training.augmentations.randaugment import rand_augment
from selfvit.training.augmentations.randaugment_arrays import ARRAY_OPERATIONS, apply_to_array
from selfvit.training.augmentations.single_crop import CropAndFlip, MAECrop, MixedCrop

CHANNELS = [1, 2, 3, 4, 5, 8, 12, 200]
MIXED = MixedCrop(rand_augment_magnitude=9.0, random_erasing_probability=0.5)
KINDS = [MultiCrop(local_view_size=16), FocalCrops(focal_view_size=16), MAECrop(), MIXED]


def rng(seed=0):
    return np.random.default_rng(seed)


def levels(num_channels, dtype=np.uint8, size=(40, 30)):
    """Return smooth pixels; those of a float type have no whole numbers."""
    coarse = rng(num_channels).uniform(20, 235, (5, 4, num_channels)).astype(np.float32)
    smooth = crop_and_resize(coarse, (0, 0, 5, 4), size)
    return smooth if dtype == np.float32 else smooth.round().astype(dtype)


# --- RGB images of eight bits


def jitter_in_float64(pixels, strengths, generator):
    """Return the pixels after each change, computed in float64 but for the colors of the circle."""
    for kind in generator.permutation(4):
        strength = strengths[kind]
        if strength == 0:
            continue
        if kind == 3:
            hsv = cv2.cvtColor(np.rint(pixels).astype(np.uint8), cv2.COLOR_RGB2HSV_FULL)
            hsv[..., 0] += np.uint8(round(generator.uniform(-strength, strength) * 255) % 256)
            pixels = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL).astype(float)
            continue
        factor = generator.uniform(max(0.0, 1 - strength), 1 + strength)
        gray = pixels @ [0.299, 0.587, 0.114]
        other = (0, gray.mean(), gray[..., None])[kind]
        pixels = np.clip(factor * pixels + (1 - factor) * other, 0, 255)
    return pixels


@pytest.mark.parametrize("seed", range(8))
def test_rgb_images_of_eight_bits_are_jittered_exactly_up_to_rounding(seed):
    pixels = levels(3).astype(float)
    strengths = [0.4, 0.8, 0.5, 0.0]
    expected = jitter_in_float64(pixels, strengths, rng(seed))
    changed = jitter_color(pixels.astype(np.uint8), strengths, rng(seed))
    assert np.abs(changed - expected).max() <= 2.5  # rounds three times, scales twice
    assert abs((changed - expected).mean()) < 0.3 and np.abs(expected - pixels).max() > 3


@pytest.mark.parametrize("seed", range(4))
def test_the_color_circle_is_turned_by_the_drawn_angle(seed):
    pixels = levels(3)
    expected = jitter_in_float64(pixels.astype(float), [0, 0, 0, 0.3], rng(seed))
    assert np.array_equal(jitter_color(pixels, [0, 0, 0, 0.3], rng(seed)), expected)


def test_rgb_images_of_eight_bits_are_flipped_blurred_and_solarized():
    pixels = rng().integers(0, 256, (24, 31, 3), dtype=np.uint8)
    assert np.array_equal(flip(pixels), cv2.flip(pixels, 1))
    for sigma in (0.0, 0.1, 1.3, 2.0):
        exact = cv2.GaussianBlur(pixels.astype(np.float64), (13, 13), max(sigma, 1e-6))
        assert np.abs(blur(pixels, sigma) - exact).max() < 1.0
    assert np.array_equal(solarize(pixels), np.where(pixels < 128, pixels, 255 - pixels))
    gray = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    assert np.array_equal(to_gray(pixels), gray)


# --- any number of channels


@pytest.mark.parametrize("num_channels", CHANNELS)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_each_channel_is_transformed_as_an_image_of_one_channel(num_channels, dtype):
    pixels = levels(num_channels, dtype)
    functions = {
        "resize": lambda part: crop_and_resize(part, (3, 2, 30, 25), (16, 24)),
        "flip": flip,
        "blur": lambda part: blur(part, 1.2),
        "brightness": lambda part: scale_brightness(part, 1.3),
        "solarize": solarize,
    }
    if num_channels != 3:
        functions["contrast"] = lambda part: scale_contrast(part, 1.6)
        functions["jitter"] = lambda part: jitter_color(part, [0.4, 0.4, 0, 0], rng(1))
    for name, function in functions.items():
        changed = function(pixels)
        assert changed.dtype == dtype and changed.shape[2] == num_channels, name
        for channel in {0, num_channels // 2, num_channels - 1}:
            alone = function(np.ascontiguousarray(pixels[..., channel : channel + 1]))
            difference = np.abs(changed[..., channel].astype(float) - alone[..., 0])
            assert difference.max() <= (1 if dtype == np.uint8 else 1e-3), name


@pytest.mark.parametrize("num_channels", [1, 4, 12])
def test_contrast_keeps_the_mean_of_each_channel(num_channels):
    pixels = levels(num_channels, np.float32) / 4 + 90
    changed = scale_contrast(pixels, 1.5)
    np.testing.assert_allclose(changed.mean(axis=(0, 1)), pixels.mean(axis=(0, 1)), rtol=1e-4)
    np.testing.assert_allclose(changed.std(axis=(0, 1)), 1.5 * pixels.std(axis=(0, 1)), rtol=1e-4)


def test_brightness_and_contrast_of_a_gray_image_are_those_of_its_rgb_image():
    gray = levels(1)
    rgb = np.repeat(gray, 3, axis=2)
    for seed in range(8):
        one = jitter_color(gray, [0.4, 0.4, 0, 0], rng(seed))
        three = jitter_color(rgb, [0.4, 0.4, 0, 0], rng(seed))
        assert np.abs(one.astype(int) - three).max() <= 2  # one rounding for each change


@pytest.mark.parametrize("augmentation", KINDS, ids=lambda kind: type(kind).__name__)
@pytest.mark.parametrize("num_channels", CHANNELS)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_views_have_the_channels_and_the_type_of_the_image(augmentation, num_channels, dtype):
    augmentation = augmentation.for_num_channels(num_channels)
    pixels = levels(num_channels, dtype)
    before = pixels.copy()
    for seed in range(4):
        views = augmentation(pixels, rng(seed), (32, 24), 8)
        for name in views.keys() - {"noise"}:
            assert views[name].dtype == dtype and views[name].shape[-3] == num_channels
            assert views[name].min() >= 0 and views[name].max() <= 255
    assert np.array_equal(pixels, before)


# --- more than eight bits


@pytest.mark.parametrize(
    "augmentation",
    [
        MultiCrop(num_local_views=0, grayscale_probability=0.5, solarize_probability=[0.5] * 3),
        FocalCrops(num_focal_views=0),
        CropAndFlip(color_jitter=[0.4, 0.4, 0.4, 0.2]),
    ],
    ids=lambda kind: type(kind).__name__,
)
def test_views_of_float_pixels_equal_those_of_the_same_levels_in_eight_bits(augmentation):
    pixels = levels(3)
    for seed in range(12):
        eight = augmentation(pixels, rng(seed), (24, 24), 8)
        deep = augmentation(pixels.astype(np.float32), rng(seed), (24, 24), 8)
        for name in eight.keys() - {"noise"}:
            difference = np.abs(deep[name] - eight[name].astype(np.float32))
            # the hue of eight bits has 256 steps, which are up to six levels
            assert np.median(difference) < 1.5 and np.quantile(difference, 0.95) < 8


@pytest.mark.parametrize("num_channels", [1, 3, 6])
def test_nothing_is_rounded_to_eight_bits(num_channels):
    dark = levels(num_channels, np.float32) / 255  # all within one level of eight bits
    augmentations = (MultiCrop(), MixedCrop(rand_augment_magnitude=2.0))
    for augmentation in augmentations:
        quiet = augmentation.for_num_channels(num_channels)
        views = quiet(dark, rng(3), (32, 32), 8)
        for view in views.values():
            assert len(np.unique(view)) > view[0].size / 4


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_erased_boxes_have_random_levels_of_the_type_of_the_image(dtype):
    pixels = np.full((40, 40, 5), 7, dtype=dtype)
    erased = erase_box(pixels, [0.2, 0.3], 0.5, rng(1))
    changed = erased[erased != 7]
    assert erased.dtype == dtype and 0.15 < changed.size / erased.size < 0.35
    assert 100 < changed.mean() < 155 and changed.max() > 240


# --- RandAugment


@pytest.mark.parametrize("name", ARRAY_OPERATIONS)
@pytest.mark.parametrize("num_channels", [1, 4, 7])
def test_operations_on_arrays_keep_shape_type_and_scale(name, num_channels):
    for dtype in (np.uint8, np.float32):
        pixels = levels(num_channels, dtype)
        changed = apply_to_array(pixels, name, 0.8)
        assert changed.dtype == dtype and changed.shape == pixels.shape
        assert not np.array_equal(changed, pixels)
        assert changed.min() >= 0 and changed.max() <= 255
        if name != "auto_contrast":
            still = apply_to_array(pixels, name, 0.0)
            assert np.abs(still.astype(float) - pixels).max() < 1e-3


def test_operations_on_arrays_are_close_to_those_of_pillow():
    from PIL import Image

    from selfvit.training.augmentations.randaugment import apply

    pixels = levels(3)
    for name in ARRAY_OPERATIONS.keys() - {"auto_contrast"}:
        expected = np.array(apply(Image.fromarray(pixels), name, 0.5)).astype(int)
        difference = np.abs(apply_to_array(pixels, name, 0.5).astype(int) - expected)
        assert np.quantile(difference[3:-3, 3:-3], 0.9) <= 4, name


def test_rand_augment_is_determined_by_the_seed_for_any_channels():
    pixels = levels(4, np.float32)
    first, again, other = (rand_augment(pixels, 9.0, 0.5, rng(seed)) for seed in (5, 5, 6))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


# --- the choice of the color changes


def test_color_changes_are_off_for_other_channels_and_brightness_and_contrast_stay():
    adapted = MultiCrop().for_num_channels(4)
    assert adapted.color_jitter == [0.4, 0.4, 0.0, 0.0]
    assert adapted.grayscale_probability == 0 and adapted.solarize_probability == [0.0] * 3
    assert adapted.blur_probability == MultiCrop().blur_probability
    assert MultiCrop().for_num_channels(3) == MultiCrop()
    adapted.check_channels(4)


def test_a_field_that_was_asked_for_keeps_its_value():
    asked = MultiCrop(solarize_probability=[0.0, 0.2, 0.0], grayscale_probability=0.3)
    adapted = asked.for_num_channels(1, {"solarize_probability", "grayscale_probability"})
    assert adapted.solarize_probability == [0.0, 0.2, 0.0]
    with pytest.raises(ValueError, match=r"grayscale_probability \(0.3\) changes colors.* is 1;"):
        adapted.check_channels(1)


@pytest.mark.parametrize("kind", [MultiCrop, FocalCrops, CropAndFlip, MAECrop, MixedCrop])
def test_saturation_and_hue_need_three_channels(kind):
    colored = kind(color_jitter=[0.4, 0.4, 0.2, 0.1])
    colored.check_channels(3)
    with pytest.raises(ValueError, match="set --color-jitter 0.4 0.4 0.0 0.0, or leave it out"):
        colored.check_channels(4)
