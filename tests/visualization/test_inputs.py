import numpy as np
import pytest
import torch
from PIL import Image

from selfvit import SelfViTConfig, SelfViTModel
from selfvit.data.sources import open_images
from selfvit.embedding.preprocessing import build_processor
from selfvit.visualization.inputs import (
    as_seen,
    choose_images,
    open_checkpoint,
    preprocess_images,
)

from .. import image_files


@pytest.fixture
def grays(tmp_path):
    """Twelve images sorted by class, each of a gray that tells its position."""
    for position in range(12):
        folder = tmp_path / "grays" / "abc"[position // 4]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 10 * position).save(folder / f"{position:02d}.png")
    return tmp_path / "grays"


def positions_of(images):
    return [np.asarray(image)[0, 0, 0] // 10 for image in images]


class TestChoice:
    @pytest.mark.parametrize(
        "num_images, expected",
        [(1, [0]), (3, [0, 4, 8]), (5, [0, 2, 4, 7, 9]), (12, list(range(12)))],
    )
    def test_images_are_spread_over_the_source(self, num_images, expected, grays):
        images, skipped = choose_images(open_images(grays), num_images)
        assert positions_of(images) == expected and skipped == []

    def test_of_a_smaller_source_all_are_taken(self, grays):
        assert positions_of(choose_images(open_images(grays), 50)[0]) == list(range(12))

    def test_the_next_one_stands_in_for_an_unreadable_image(self, grays):
        image_files.empty_jpeg(grays / "b" / "04.png")
        images, skipped = choose_images(open_images(grays), 3)
        assert positions_of(images) == [0, 5, 8]
        assert [(image.id, image.reason) for image in skipped] == [
            ("b/04.png", "empty file (0 bytes)")
        ]

    def test_a_stretch_without_readable_images_is_left_out(self, grays):
        for path in (grays / "b").iterdir():
            image_files.empty_jpeg(path)
        images, skipped = choose_images(open_images(grays), 3)
        assert positions_of(images) == [0, 8] and len(skipped) == 4

    def test_without_any_readable_image_the_error_says_why(self, tmp_path):
        image_files.empty_jpeg(tmp_path / "a.jpg")
        with pytest.raises(ValueError, match=r"none of the 1 images.*a\.jpg: empty file"):
            choose_images(open_images(tmp_path), 8)

    def test_fewer_than_one_are_refused(self, grays):
        with pytest.raises(ValueError, match=r"num_images \(0\) must be at least 1"):
            choose_images(open_images(grays), 0)


class TestCheckpoint:
    def test_the_processor_ends_at_the_size_asked_for(self, tiny_checkpoint):
        model, processor = open_checkpoint(SelfViTModel, tiny_checkpoint, image_size=64)
        pixel_values = preprocess_images([image_files.noise(50, 90)], processor)
        assert pixel_values.shape == (1, 3, 64, 64)
        assert model(pixel_values).last_hidden_state.shape == (1, 1 + 64, 32)
        assert not model.training and model.dtype == torch.float32

    def test_without_a_size_it_is_the_checkpoints(self, tiny_checkpoint):
        _, processor = open_checkpoint(SelfViTModel, tiny_checkpoint)
        assert preprocess_images([image_files.noise(50, 90)], processor).shape[2:] == (32, 32)


@pytest.mark.parametrize("resize", ["square", "shortest_edge"])
def test_normalization_is_undone_by_the_processors_own_numbers(resize):
    config = SelfViTConfig(image_size=32, patch_size=8)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.7)
    processor = build_processor(config, resize=resize, mean=mean, std=std, crop_ratio=1.0)
    image = image_files.noise(32, 32)
    seen = as_seen(preprocess_images([image], processor), processor)
    assert seen.shape == (1, 32, 32, 3)
    np.testing.assert_array_equal(np.round(seen[0] * 255), np.asarray(image))


def test_gray_pixels_are_shown_as_gray():
    processor = build_processor(SelfViTConfig(), mean=(0.5,), std=(0.25,))
    seen = as_seen(torch.zeros(2, 1, 4, 6), processor)
    assert seen.shape == (2, 4, 6, 3) and (seen == 0.5).all()
