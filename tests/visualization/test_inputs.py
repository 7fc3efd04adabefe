import numpy as np
import pytest
import torch
from PIL import Image

from selfvit import SelfViTConfig, SelfViTModel
from selfvit.data.sources import open_images
from selfvit.embedding.preprocessing import build_processor
from selfvit.visualization.inputs import (
    choose_images,
    denormalize,
    open_checkpoint,
    preprocess_images,
)

from .. import image_files


@pytest.fixture
def grays(tmp_path):
    """Twelve images sorted by class; the gray value of each one identifies its position."""
    for position in range(12):
        folder = tmp_path / "grays" / "abc"[position // 4]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 10 * position).save(folder / f"{position:02d}.png")
    return tmp_path / "grays"


def positions_of(images):
    return [image.pixels[0, 0, 0] // 10 for image in images]


class TestChoice:
    @pytest.mark.parametrize(
        "num_images, expected",
        [(1, [0]), (3, [0, 4, 8]), (5, [0, 2, 4, 7, 9]), (12, list(range(12)))],
    )
    def test_images_are_spread_over_the_source(self, num_images, expected, grays):
        images, skipped = choose_images(open_images(grays), num_images)
        assert positions_of(images) == expected and skipped == []

    def test_a_smaller_source_is_used_completely(self, grays):
        assert positions_of(choose_images(open_images(grays), 50)[0]) == list(range(12))

    def test_an_unreadable_image_is_replaced_by_the_next_one(self, grays):
        image_files.empty_jpeg(grays / "b" / "04.png")
        images, skipped = choose_images(open_images(grays), 3)
        assert positions_of(images) == [0, 5, 8]
        assert [(image.id, image.reason) for image in skipped] == [
            ("b/04.png", "empty file (0 bytes)")
        ]

    def test_a_section_without_readable_images_is_replaced_by_another_image(self, grays):
        for path in (grays / "b").iterdir():
            image_files.empty_jpeg(path)
        images, skipped = choose_images(open_images(grays), 3)
        assert positions_of(images) == [0, 1, 8] and len(skipped) == 4

    def test_the_error_without_readable_images_gives_the_reason(self, tmp_path):
        image_files.empty_jpeg(tmp_path / "a.jpg")
        with pytest.raises(ValueError, match=r"none of the 1 images.*a\.jpg: empty file"):
            choose_images(open_images(tmp_path), 8)

    def test_a_number_below_one_is_refused(self, grays):
        with pytest.raises(ValueError, match=r"num_images \(0\) must be at least 1"):
            choose_images(open_images(grays), 0)


class TestCheckpoint:
    def test_the_processor_gives_the_requested_size(self, tiny_checkpoint):
        model, processor = open_checkpoint(SelfViTModel, tiny_checkpoint, image_size=64)
        pixel_values = preprocess_images([image_files.noise(50, 90)], processor)
        assert pixel_values.shape == (1, 3, 64, 64)
        assert model(pixel_values).last_hidden_state.shape == (1, 1 + 64, 32)
        assert not model.training and model.dtype == torch.float32

    def test_the_default_size_is_that_of_the_checkpoint(self, tiny_checkpoint):
        _, processor = open_checkpoint(SelfViTModel, tiny_checkpoint)
        assert preprocess_images([image_files.noise(50, 90)], processor).shape[2:] == (32, 32)


@pytest.mark.parametrize("resize", ["square", "shortest_edge"])
def test_denormalize_uses_the_mean_and_std_of_the_processor(resize):
    config = SelfViTConfig(image_size=32, patch_size=8)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.7)
    processor = build_processor(config, resize=resize, mean=mean, std=std, crop_ratio=1.0)
    image = image_files.noise(32, 32)
    seen = denormalize(preprocess_images([image], processor), processor)
    assert seen.shape == (1, 32, 32, 3)
    np.testing.assert_array_equal(np.round(seen[0] * 255), np.asarray(image))


def test_one_channel_becomes_gray_rgb():
    processor = build_processor(SelfViTConfig(), mean=(0.5,), std=(0.25,))
    seen = denormalize(torch.zeros(2, 1, 4, 6), processor)
    assert seen.shape == (2, 4, 6, 3) and (seen == 0.5).all()
