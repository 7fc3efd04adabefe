"""RandAugment: the effect of each operation on an image."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from selfvit.training.augmentations.randaugment import OPERATIONS, SIGNED, apply, rand_augment

from ..image_files import noise


def pixels_of(image):
    return np.array(image).astype(int)


def smooth_image():
    """Return an image whose red rises to the right and green downwards; blue is constant."""
    rows, columns = np.mgrid[0:20, 0:30]
    return Image.fromarray(
        np.stack([columns * 8, rows * 12, np.full_like(rows, 60)], axis=-1).astype(np.uint8)
    )


def test_there_are_fifteen_operations():
    assert len(OPERATIONS) == len(set(OPERATIONS)) == 15


@pytest.mark.parametrize("kind", sorted(SIGNED))
def test_signed_operations_change_nothing_at_strength_0_and_depend_on_the_sign(kind):
    image = noise(24, 24)
    assert np.array_equal(pixels_of(apply(image, kind, 0.0)), pixels_of(image))
    there, back = apply(image, kind, 0.9), apply(image, kind, -0.9)
    assert there.size == back.size == image.size
    assert not np.array_equal(pixels_of(there), pixels_of(image))
    assert not np.array_equal(pixels_of(there), pixels_of(back))


def test_posterize_keeps_fewer_bits_at_higher_strength():
    image = noise(32, 32)
    for strength, bits in ((0.0, 4), (0.5, 2), (0.9, 1), (1.0, 1)):
        assert (pixels_of(apply(image, "posterize", strength)) % 2 ** (8 - bits) == 0).all()
        assert len(np.unique(pixels_of(apply(image, "posterize", strength)))) == 2**bits


def test_solarize_inverts_levels_from_a_threshold_that_falls_with_strength():
    before = pixels_of(noise(32, 32))
    for strength, threshold in ((0.0, 256), (0.5, 128), (1.0, 0)):
        after = pixels_of(apply(noise(32, 32), "solarize", strength))
        assert np.array_equal(after, np.where(before < threshold, before, 255 - before))


def test_solarize_add_brightens_levels_below_128():
    before = pixels_of(noise(32, 32))
    after = pixels_of(apply(noise(32, 32), "solarize_add", 0.5))
    assert np.array_equal(after, np.where(before < 128, before + 55, before))


def test_invert_equalize_and_auto_contrast_equal_pillow():
    image = smooth_image()
    assert np.array_equal(pixels_of(apply(image, "invert", 0.3)), 255 - pixels_of(image))
    for kind, expected in (
        ("equalize", ImageOps.equalize(image)),
        ("auto_contrast", ImageOps.autocontrast(image)),
    ):
        assert np.array_equal(pixels_of(apply(image, kind, 0.3)), pixels_of(expected))


def test_brightness_and_color_of_strength_minus_1_darken_and_desaturate_to_a_tenth():
    before = pixels_of(noise(16, 16))
    dark = pixels_of(apply(noise(16, 16), "brightness", -1.0))
    assert np.abs(dark - before * 0.1).max() <= 1
    gray = pixels_of(apply(noise(16, 16), "color", -1.0))
    spread = (gray.max(axis=2) - gray.min(axis=2)).max()
    assert spread <= 0.1 * 255 + 1


@pytest.mark.parametrize(("kind", "axis"), [("translate_x", 1), ("translate_y", 0)])
def test_translate_moves_by_a_fraction_of_the_size_and_fills_with_gray(kind, axis):
    image = noise(40, 40)
    before, after = pixels_of(image), pixels_of(apply(image, kind, 0.5))  # 0.225 x 40 = 9 pixels
    before, after = np.moveaxis(before, axis, 0), np.moveaxis(after, axis, 0)
    assert np.array_equal(after[:31], before[9:])
    assert (after[31:] == 128).all()


def test_rotate_of_strength_1_rotates_by_30_degrees():
    after = pixels_of(apply(smooth_image(), "rotate", 1.0))
    expected = pixels_of(
        smooth_image().rotate(30, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128))
    )
    assert np.array_equal(after, expected)


def test_shear_x_shifts_rows_in_proportion_to_their_distance_from_the_top():
    before, after = pixels_of(smooth_image()), pixels_of(apply(smooth_image(), "shear_x", 1.0))
    # row 10 is shifted by 0.3 x 10.5 = 3.15 pixels of 8 levels each
    assert np.abs(after[10, :24, 0] - before[10, :24, 0] - 3.15 * 8).max() <= 2
    assert np.abs(after[:, 5, 1] - before[:, 5, 1]).max() <= 1  # rows stay at their height


def test_rand_augment_is_determined_by_the_seed_and_does_not_change_its_input():
    pixels = np.array(noise(24, 20))
    before = pixels.copy()
    for seed in range(20):
        first = rand_augment(pixels, 9.0, 0.5, np.random.default_rng(seed))
        again = rand_augment(pixels, 9.0, 0.5, np.random.default_rng(seed))
        assert np.array_equal(first, again)
        assert first.shape == pixels.shape and first.dtype == np.uint8
    assert np.array_equal(pixels, before)


def test_a_quarter_of_the_images_is_not_changed():
    # two operations, each skipped with probability 0.5
    pixels = np.array(noise(12, 12))
    same = [
        np.array_equal(rand_augment(pixels, 9.0, 0.5, np.random.default_rng(seed)), pixels)
        for seed in range(400)
    ]
    assert 0.25 - 0.09 < np.mean(same) < 0.25 + 0.09


def test_magnitudes_above_the_scale_are_clipped():
    pixels = np.array(noise(12, 12))
    for seed in range(60):
        rand_augment(pixels, 10.0, 5.0, np.random.default_rng(seed))  # posterize would keep 0 bits
