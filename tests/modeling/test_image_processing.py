"""The image processor for any number of channels and any scale of pixels."""

from __future__ import annotations

import json
import os
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, BitImageProcessor, pipeline

from selfvit import SelfViTModel
from selfvit.embedding.preparation import preprocess
from selfvit.embedding.preprocessing import (
    build_processor,
    pixel_format_of,
    pixel_values_of,
    resized_processor,
)
from selfvit.modeling import image_processing_selfvit
from selfvit.modeling.checkpoints.pretrained import write_checkpoint
from selfvit.modeling.checkpoints.remote_code import code_files
from selfvit.modeling.image_processing_selfvit import (
    SelfViTImageProcessor,
    is_extreme,
    resize_and_crop,
)
from selfvit.visualization.inputs import denormalize
from tests.image_files import noise
from tests.objectives import tiny_config
from tests.python_without_selfvit import FORGET_SELFVIT

CODE = "image_processing_selfvit.py"


def processor_of(num_channels=4, **options):
    return build_processor(tiny_config(num_channels=num_channels), **options)


def array(num_channels, dtype=np.uint16, height=50, width=70, top=4096):
    return np.random.default_rng(0).integers(0, top, (height, width, num_channels)).astype(dtype)


def pixels_of(processor, image, **options):
    return processor(image, return_tensors="pt", **options)["pixel_values"]


class TestChoice:
    def test_three_channels_without_a_range_keep_the_stock_class(self):
        assert type(processor_of(3)) is BitImageProcessor

    @pytest.mark.parametrize("num_channels, pixel_range", [(1, None), (4, None), (3, (0, 4095))])
    def test_others_get_the_class_of_the_package(self, num_channels, pixel_range):
        processor = processor_of(num_channels, pixel_range=pixel_range)
        assert type(processor) is SelfViTImageProcessor
        found = pixel_format_of(processor)
        assert (found.num_channels, found.pixel_range) == (num_channels, pixel_range)
        assert pixel_format_of(processor, (0, 9)).pixel_range == (0, 9)

    def test_mean_and_std_have_one_value_per_channel(self):
        assert processor_of(4).image_mean == [0.5] * 4
        assert processor_of(4, mean=[1, 2, 3, 4]).image_mean == [1, 2, 3, 4]
        for name in ("mean", "std"):
            with pytest.raises(ValueError, match=f"{name} .* for each of the 4 channels"):
                processor_of(4, **{name: [0.1, 0.2, 0.3]})
        with pytest.raises(ValueError, match="image_mean .* for each of the 2 channels"):
            SelfViTImageProcessor(num_channels=2, image_mean=[0.1, 0.2, 0.3])

    @pytest.mark.parametrize("options", [{"num_channels": 0}, {"pixel_range": [5, 1]}])
    def test_a_setting_out_of_range_is_an_error_that_names_it(self, options):
        with pytest.raises(ValueError, match=next(iter(options))):
            SelfViTImageProcessor(**options)

    @pytest.mark.parametrize("size", [16, (24, 40)])
    def test_another_output_size_keeps_channels_and_range(self, size):
        processor = resized_processor(processor_of(4, pixel_range=(0, 4095)), size)
        expected = (size, size) if isinstance(size, int) else size
        assert pixels_of(processor, array(4)).shape == (1, 4, *expected)
        assert processor.pixel_range == (0, 4095)

    def test_denormalized_pixels_are_drawn_from_the_first_three_channels(self):
        processor = resized_processor(processor_of(4, pixel_range=(0, 4095)), (50, 70))
        image = array(4)
        drawn = denormalize(pixels_of(processor, image), processor)
        np.testing.assert_allclose(drawn[0], image[..., :3] / 4095, atol=1e-5)


class TestPixels:
    def test_pixels_equal_those_of_the_stock_class_up_to_rounding(self):
        image, stock = noise(90, 60), processor_of(3)
        ours = processor_of(3, pixel_range=(0, 1))
        level = 1 / 255 / min(stock.image_std)
        difference = (pixels_of(ours, image) - pixels_of(stock, image)).abs()
        assert difference.max() < 2.1 * level and difference.mean() < 0.5 * level

    @pytest.mark.parametrize("num_channels", [1, 2, 4, 12])
    def test_a_processor_takes_arrays_tensors_and_batches_alike(self, num_channels):
        processor = processor_of(num_channels, pixel_range=(0, 4095))
        image = array(num_channels)
        expected = pixels_of(processor, image)
        assert expected.shape == (1, num_channels, 32, 32)
        for other in (
            image.transpose(2, 0, 1),
            torch.from_numpy(image.astype(np.int32)),
            image / np.float32(4095) * np.float32(4095),
            [image],
        ):
            torch.testing.assert_close(pixels_of(processor, other), expected)
        torch.testing.assert_close(preprocess(image, processor), expected[0])
        assert pixels_of(processor, [image, image]).shape[0] == 2

    def test_gray_and_color_are_converted_into_each_other(self):
        color = noise(64, 64)
        gray = pixels_of(processor_of(1), color)
        torch.testing.assert_close(gray, pixels_of(processor_of(1), color.convert("L")))
        torch.testing.assert_close(
            gray, pixels_of(processor_of(1), np.asarray(color)), atol=0.01, rtol=0
        )
        three = processor_of(3, pixel_range=(0, 1), mean=[0.5] * 3, std=[0.5] * 3)
        torch.testing.assert_close(pixels_of(three, color.convert("L")), gray.expand(1, 3, -1, -1))

    @pytest.mark.parametrize("mode, dtype", [("I;16", np.uint16), ("F", np.float32)])
    def test_deep_pillow_images_follow_the_rule_of_files(self, mode, dtype):
        values = array(1, dtype, top=1000)[..., 0]
        image = Image.fromarray(values)
        assert image.mode == mode
        processor = processor_of(1, pixel_range=(0, 1000))
        torch.testing.assert_close(pixels_of(processor, image)[0], preprocess(image, processor))

    @pytest.mark.parametrize("image", [noise(9, 9), array(5), array(3)[..., 0]])
    def test_another_number_of_channels_is_an_error(self, image):
        with pytest.raises(ValueError, match="must have 4 channels .num_channels."):
            processor_of(4)(image)

    def test_a_deep_image_with_a_stock_class_equals_its_eight_bit_version_up_to_rounding(self):
        image = np.asarray(noise(90, 60))
        deep = image.astype(np.uint16) * 257
        difference = preprocess(deep, processor_of(3)) - preprocess(image, processor_of(3))
        assert 0 < difference.abs().max() < 0.05


class TestExtremeAspectRatios:
    @pytest.mark.parametrize("size", [(1, 1200), (7, 900), (800, 3), (30, 3000), (2001, 11)])
    @pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
    def test_cropping_first_gives_the_same_pixels(self, size, mode, monkeypatch):
        image = torch.rand(2, *size, generator=torch.Generator().manual_seed(0)) * 255
        scale = 36 / min(size)
        resized = (int(size[0] * scale), int(size[1] * scale))
        assert is_extreme(max(resized), 32)
        cropped_first = resize_and_crop(image, resized, (32, 32), mode)
        monkeypatch.setattr("selfvit.modeling.image_processing_selfvit.EXTREME", 10**9)
        torch.testing.assert_close(
            cropped_first, resize_and_crop(image, resized, (32, 32), mode), atol=0.05, rtol=0
        )

    @pytest.mark.parametrize("size", [(700, 1), (2000, 9), (5, 600)])
    def test_a_stock_class_gets_the_same_pixels_up_to_rounding(self, size):
        image, stock = noise(*size), processor_of(3)
        level = 1 / 255 / min(stock.image_std)
        difference = (preprocess(image, stock) - pixels_of(stock, image)[0]).abs()
        assert difference.max() < 1.1 * level and difference.mean() < 0.05 * level

    @pytest.mark.parametrize("size", [(64, 64), (40, 300), (300, 40), (1000, 999)])
    def test_ordinary_images_keep_their_pixels_bit_for_bit(self, size):
        image, stock = noise(*size), processor_of(3)
        assert torch.equal(preprocess(image, stock), pixels_of(stock, image)[0])

    def test_only_the_center_of_a_long_strip_is_resized(self):
        from selfvit.data.decoding import decode_pixels

        strip = np.zeros((1, 3_000_000), np.uint8)
        strip[0, 1_500_000:] = 255
        processor = processor_of(1)
        values = pixel_values_of(decode_pixels(strip, pixel_format_of(processor)), processor)
        assert values.shape == (1, 32, 32) and values[0, 0, 0] < -0.9 and values[0, 0, -1] > 0.9


# The code that is saved with the processor


WITHOUT_SELFVIT = """
import importlib.util, json, sys
assert importlib.util.find_spec("selfvit") is None, "selfvit can be imported"
import numpy as np, torch
from transformers import AutoImageProcessor, AutoModel, pipeline

four, one, image, photo, results = sys.argv[1:]
trust = {"trust_remote_code": True}
processor = AutoImageProcessor.from_pretrained(four, **trust)
assert type(processor).__module__.startswith("transformers_modules."), type(processor)
pixels = processor(np.load(image), return_tensors="pt")["pixel_values"]
processor.save_pretrained(results + "_again")
again = AutoImageProcessor.from_pretrained(results + "_again", **trust)
assert torch.equal(again(np.load(image), return_tensors="pt")["pixel_values"], pixels)
with torch.no_grad():
    vector = AutoModel.from_pretrained(four, **trust)(pixels).pooler_output[0].tolist()
gray = pipeline("image-feature-extraction", model=one, **trust)(photo, pool=True)[0]
try:
    AutoImageProcessor.from_pretrained(four)
except (ValueError, EOFError) as error:
    untrusted = str(error)
json.dump({"vector": vector, "gray": gray, "untrusted": untrusted}, open(results, "w"))
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Folders of a model of four channels with a range, and of one of one channel."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    for num_channels in (4, 1):
        config = tiny_config(num_channels=num_channels, initializer_range=0.2)
        processor = build_processor(config, pixel_range=(0, 4095) if num_channels == 4 else None)
        write_checkpoint(SelfViTModel(config), folder / str(num_channels), processor, "# A model\n")
    return folder


def test_without_selfvit_the_saved_code_gives_the_same_vectors(
    python_with_torch, checkpoints, tmp_path
):
    np.save(tmp_path / "image.npy", array(4))
    noise(50, 40).save(tmp_path / "photo.png")
    arguments = [
        checkpoints / "4", checkpoints / "1", tmp_path / "image.npy", tmp_path / "photo.png",
        tmp_path / "results.json",
    ]  # fmt: skip
    process = subprocess.run(
        [python_with_torch, "-c", FORGET_SELFVIT + WITHOUT_SELFVIT, *map(str, arguments)],
        cwd=tmp_path,
        env={
            **os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert "trust_remote_code=True" in found["untrusted"]
    processor = AutoImageProcessor.from_pretrained(checkpoints / "4")
    with torch.no_grad():
        model = SelfViTModel.from_pretrained(checkpoints / "4")
        vector = model(pixels_of(processor, array(4))).pooler_output[0]
    np.testing.assert_allclose(found["vector"], vector, atol=1e-6)
    extract = pipeline("image-feature-extraction", model=str(checkpoints / "1"), device="cpu")
    gray = extract(str(tmp_path / "photo.png"), pool=True)[0]
    np.testing.assert_allclose(found["gray"], gray, atol=1e-6)


def test_installed_selfvit_is_used_instead_of_the_saved_code(checkpoints):
    for trust in ({}, {"trust_remote_code": True}, {"trust_remote_code": False}):
        processor = AutoImageProcessor.from_pretrained(checkpoints / "4", **trust)
        assert type(processor) is SelfViTImageProcessor
        assert processor.to_dict() == processor_of(4, pixel_range=(0, 4095)).to_dict() | {
            "auto_map": {"AutoImageProcessor": "image_processing_selfvit.SelfViTImageProcessor"}
        }


def test_the_code_is_a_third_file_that_a_stock_class_does_not_have(checkpoints, tmp_path):
    names = {path.name for path in code_files(checkpoints / "4")}
    assert names == {"configuration_selfvit.py", "modeling_selfvit.py", CODE}
    write_checkpoint(SelfViTModel(tiny_config()), tmp_path, processor_of(3), "# A model\n")
    assert len(code_files(tmp_path)) == len(list(tmp_path.glob("*.py"))) == 2


def test_saving_the_model_again_keeps_the_code_of_the_processor(tmp_path):
    model = SelfViTModel(tiny_config(num_channels=4))
    write_checkpoint(model, tmp_path, processor_of(4), "# A model\n")
    model.save_pretrained(tmp_path)
    assert (tmp_path / CODE).is_file()


def test_without_code_none_is_written_and_earlier_code_is_removed(tmp_path):
    model = SelfViTModel(tiny_config(num_channels=4))
    for save_code in (True, False):
        write_checkpoint(model, tmp_path, processor_of(4), "# A model\n", save_code=save_code)
        assert bool(list(tmp_path.glob("*.py"))) == save_code
        settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
        assert ("auto_map" in settings) == save_code
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is SelfViTImageProcessor


class TestFilesThatPillowCuts:
    @staticmethod
    def write(path):
        values = np.full((48, 64, 3), 900, np.uint16)
        if path.suffix == ".ppm":
            path.write_bytes(b"P6 64 48 4095\n" + values.astype(">u2").tobytes())
        else:
            pytest.importorskip("cv2").imwrite(str(path), values)
        return Image.open(path)

    @pytest.mark.parametrize("name", ["a.png", "a.tif", "a.ppm"])
    def test_colors_of_more_than_eight_bits_are_refused_where_a_range_is_declared(
        self, name, tmp_path
    ):
        image = self.write(tmp_path / name)
        with pytest.raises(ValueError, match="cuts this one .* give an array"):
            processor_of(3, pixel_range=(0, 4095))(image, return_tensors="pt")

    def test_gray_of_sixteen_bits_and_eight_bits_are_not(self, tmp_path):
        processor = processor_of(3, pixel_range=(0, 4095))
        Image.fromarray(np.full((48, 64), 900, np.uint16)).save(tmp_path / "gray.png")
        Image.new("RGB", (64, 48)).save(tmp_path / "photo.png")
        for name in ("gray.png", "photo.png"):
            processor(Image.open(tmp_path / name), return_tensors="pt")

    def test_an_image_of_unknown_origin_gives_one_warning(self, monkeypatch):
        warnings: set[str] = set()
        monkeypatch.setattr(image_processing_selfvit.logger, "warning_once", warnings.add)
        for _ in range(2):
            processor_of(3, pixel_range=(0, 4095))(Image.new("RGB", (64, 48)))
        (warning,) = warnings
        assert "eight bits per channel" in warning and "selfvit.Embedder" in warning
        warnings.clear()
        processor_of(4)(np.zeros((48, 64, 4), np.uint8))
        assert not warnings
