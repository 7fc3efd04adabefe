import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from selfvit.cli import app
from selfvit.data.image_source import ImageRecord, RecordSource
from selfvit.data.pixel_format import PixelFormat
from selfvit.data.sources import open_images
from selfvit.embedding.statistics import channel_statistics, sample_images

from ..cases.inputs_channels import bands, npy_bytes, tiff_bytes, write_bands, write_bands_table


def source_of(*images):
    records = [ImageRecord(str(index), image) for index, image in enumerate(images)]
    return RecordSource(records, "the images", None)


@pytest.mark.parametrize("num_channels", [1, 3, 4, 12])
def test_mean_and_std_are_those_of_all_pixels(num_channels):
    images = [bands(seed, num_channels) for seed in range(5)]
    measured = channel_statistics(source_of(*map(tiff_bytes, images)), PixelFormat(num_channels))
    pixels = np.stack(images).reshape(-1, num_channels) / 255
    np.testing.assert_allclose(measured.mean, pixels.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(measured.std, pixels.std(axis=0), rtol=1e-5)
    assert measured.num_images == 5 and measured.skipped == [] and measured.warnings == []


def test_the_declared_range_scales_the_values_and_a_small_part_of_it_is_a_warning():
    images = [npy_bytes(bands(seed, 4, high=4096)) for seed in range(4)]
    twelve = channel_statistics(source_of(*images), PixelFormat(4, (0, 4095)))
    sixteen = channel_statistics(source_of(*images), PixelFormat(4))
    np.testing.assert_allclose(np.divide(sixteen.mean, twelve.mean), 4095 / 65535, rtol=1e-4)
    assert twelve.warnings == [] and "--bits N" in sixteen.warnings[0]


def test_images_with_nan_pixels_are_a_warning_that_names_the_first():
    # half of the pixels were black without a word, and image_mean was half of the true one
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    values[:4] = np.nan
    measured = channel_statistics(source_of(npy_bytes(values), npy_bytes(values)), PixelFormat(1))
    [warning] = [text for text in measured.warnings if "NaN" in text]
    assert warning.startswith("0 has pixels without a value (NaN), as does 1 of 1 others.")


def test_each_image_has_the_same_weight_whatever_its_size():
    small, large = np.zeros((2, 2), np.uint8), np.full((500, 700), 255, np.uint8)
    measured = channel_statistics(source_of(*map(Image.fromarray, (small, large))), PixelFormat(1))
    assert measured.mean == [0.5] and measured.std == [0.5]


def test_images_that_cannot_be_read_are_left_out_and_listed():
    sound = tiff_bytes(bands(0, 4))
    measured = channel_statistics(source_of(sound, b"", tiff_bytes(bands(1, 5))), PixelFormat(4))
    assert measured.num_images == 1 and [image.id for image in measured.skipped] == ["1", "2"]
    with pytest.raises(ValueError, match="none of the 2 images of the images can be read; .* 1: e"):
        channel_statistics(source_of(b"", b""), PixelFormat(4))


def test_a_constant_channel_is_an_error_that_names_it():
    pixels = bands(0, 4)
    pixels[..., 2] = 51
    with pytest.raises(ValueError, match=r"channel 2 of the images has the same value \(0.2\)"):
        channel_statistics(source_of(npy_bytes(pixels)), PixelFormat(4))


def test_a_stream_is_measured_on_its_first_images(tmp_path):
    table = write_bands_table(tmp_path / "bands.parquet", 4)
    sample = sample_images(open_images(table, streaming=True), 5)
    assert len(sample) == 5
    again = sample_images(open_images(table, streaming=True), 5)
    first = channel_statistics(sample, PixelFormat(4))
    assert first == channel_statistics(again, PixelFormat(4)) and first.num_images == 5


def test_the_command_prints_options_to_paste_and_writes_json(tmp_path):
    data = write_bands(tmp_path / "bands", 4, high=4096, kinds="tif")
    (data / "a" / "empty.tif").write_bytes(b"")
    output, skipped = tmp_path / "stats.json", tmp_path / "skipped.csv"
    words = ["stats", "--data", data, "--num-channels", 4, "--bits", 12, "--output", output]
    result = CliRunner().invoke(app, [*map(str, words), "--strict", "--skipped", str(skipped)])
    assert result.exit_code == 1, result.output  # one image cannot be read
    values = json.loads(output.read_text())
    mean, std = (" ".join(f"{v:g}" for v in values[f"image_{name}"]) for name in ("mean", "std"))
    assert f"--image-mean {mean} --image-std {std}" in result.output
    assert values["num_images"] == 12 and values["num_skipped"] == 1
    assert "empty.tif" in skipped.read_text()
    files = sorted(map(str, data.rglob("*.tif")))[:3]
    several = CliRunner().invoke(app, ["stats", "--data", *files, "--num-channels", "4"])
    assert several.exit_code == 0 and "3 images" in several.output
    refused = CliRunner().invoke(app, ["stats", "--data", str(data), "--num-channels", "7"])
    assert refused.exit_code == 2 and "has 4 channels" in refused.output
