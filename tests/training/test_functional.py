import numpy as np
import pytest
from PIL import Image

from selfvit.training.augmentations.functional import (
    crop_and_resize,
    erase_box,
    jitter_color,
    random_crop_box,
)

from ..image_files import noise


def rng(seed=0):
    return np.random.default_rng(seed)


def test_resizing_is_close_to_pillows_antialiased_bicubic():
    image = noise(101, 67)
    expected = np.array(image.resize((32, 24), Image.Resampling.BICUBIC))
    resized = crop_and_resize(np.array(image), (0, 0, 67, 101), (24, 32))
    assert np.abs(resized.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 4), (224, 224)])
def test_crop_boxes_lie_within_images_of_any_shape(size):
    for seed in range(50):
        top, left, height, width = random_crop_box(*size, [0.05, 1.0], rng(seed))
        assert height >= 1 and width >= 1
        assert 0 <= top <= size[0] - height and 0 <= left <= size[1] - width


def test_crop_areas_and_ratios_cover_the_requested_ranges():
    boxes = [random_crop_box(200, 200, [0.25, 0.5], rng(seed)) for seed in range(500)]
    areas = np.array([height * width / 40000 for _, _, height, width in boxes])
    ratios = np.array([width / height for _, _, height, width in boxes])
    assert 0.24 < areas.min() < 0.27 and 0.47 < areas.max() < 0.51
    assert 0.74 < ratios.min() < 0.80 and 1.25 < ratios.max() < 1.36


def test_crop_boxes_are_uniform_in_area_place_and_the_logarithm_of_the_ratio():
    generator = rng()  # no draw is rejected, as the largest crop is 164 pixels wide
    boxes = [random_crop_box(200, 200, [0.25, 0.5], generator) for _ in range(3000)]
    top, left, height, width = np.array(boxes, dtype=float).T
    values = {
        "area": (height * width / 40000 - 0.25) / 0.25,
        "ratio": np.log(width / height) / np.log(4 / 3) / 2 + 0.5,
        "top": (top + 0.5) / (200 - height + 1),
        "left": (left + 0.5) / (200 - width + 1),
    }
    for name, value in values.items():
        deciles = np.quantile(value, np.arange(0.1, 1, 0.1))
        assert np.abs(deciles - np.arange(0.1, 1, 0.1)).max() < 0.035, name
    assert np.abs(np.corrcoef(list(values.values())) - np.eye(4)).max() < 0.08


def test_jitter_of_strength_0_changes_nothing():
    pixels = np.array(noise(8, 8))
    assert np.array_equal(jitter_color(pixels, [0, 0, 0, 0], rng()), pixels)


def test_brightness_scales_every_level():
    pixels = np.full((4, 4, 3), 100, dtype=np.uint8)
    factors = [
        jitter_color(pixels, [0.4, 0, 0, 0], rng(seed))[0, 0, 0] / 100 for seed in range(200)
    ]
    assert 0.6 <= min(factors) < 0.64 and 1.36 < max(factors) <= 1.4


def test_contrast_keeps_the_mean_gray():
    pixels = np.array(noise(32, 32).convert("L").convert("RGB")) // 2 + 64
    for seed in range(5):
        jittered = jitter_color(pixels, [0, 0.4, 0, 0], rng(seed))
        assert abs(jittered.mean() - pixels.mean()) < 1


def test_saturation_jitter_of_strength_1_ranges_from_gray_to_more_saturated():
    pixels = np.array(noise(16, 16))
    spreads = []
    for seed in range(50):
        jittered = jitter_color(pixels, [0, 0, 1.0, 0], rng(seed)).astype(int)
        spreads.append((jittered.max(axis=2) - jittered.min(axis=2)).mean())
    before = (pixels.max(axis=2).astype(int) - pixels.min(axis=2)).mean()
    assert min(spreads) < 0.1 * before and max(spreads) > 1.2 * before


def test_hue_jitter_rotates_through_all_primary_colors():
    red = np.zeros((2, 2, 3), dtype=np.uint8)
    red[..., 0] = 255
    seen = {tuple(jitter_color(red, [0, 0, 0, 0.5], rng(seed))[0, 0] > 128) for seed in range(100)}
    assert {(True, False, False), (False, True, False), (False, False, True)} <= seen


def test_jitter_does_not_change_its_input():
    pixels = np.array(noise(8, 8))
    before = pixels.copy()
    for seed in range(10):
        jitter_color(pixels, [0.4, 0.4, 0.4, 0.2], rng(seed))
    assert np.array_equal(pixels, before)


@pytest.mark.parametrize("seed", range(8))
def test_erasing_fills_one_box_of_the_requested_area_and_ratio_with_noise(seed):
    pixels = np.full((100, 100, 3), 7, dtype=np.uint8)
    erased = erase_box(pixels, [0.1, 0.2], 0.5, rng(seed))
    changed = (erased != 7).any(axis=2)
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    assert 0.095 < height * width / 10000 < 0.205 and 0.48 < height / width < 2.1
    box = erased[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert changed.sum() > 0.99 * height * width  # a pixel may happen to be 7, 7, 7
    assert abs(box.mean() - 127.5) < 5 and abs(box.std() - 73.9) < 4  # uniform levels
    assert (pixels == 7).all()


def test_nothing_is_erased_if_no_box_fits():
    pixels = np.array(noise(20, 2))
    assert np.array_equal(erase_box(pixels, [0.9, 0.95], 0.3, rng()), pixels)
