"""Scale of pixels, number of channels, and memory, through the real commands."""

from __future__ import annotations

import json
import struct
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from selfvit import SelfViTForMAE, SelfViTModel
from selfvit.cli import app
from selfvit.data.decoding import decode_image
from selfvit.embedding.embedder import Embedder
from selfvit.embedding.preprocessing import build_processor
from selfvit.embedding.vectors.reader import read_vectors
from tests.objectives import tiny_config

from . import inputs_pixels
from .inputs_pixels import write_bands, write_scaled_scenes, write_scenes


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def vectors_of(embedded):
    assert embedded.code == 0, embedded.text
    return np.stack([row["embedding"] for row in embedded.rows])


def checkpoint_of(folder, num_channels, pixel_range=None):
    torch.manual_seed(0)
    config = tiny_config(num_channels=num_channels, initializer_range=0.2)
    SelfViTModel(config).save_pretrained(folder)
    build_processor(config, pixel_range=pixel_range).save_pretrained(folder)
    return folder


class TestPixelScale:
    @pytest.mark.parametrize("bits, options", [
        (10, ["--bits", 10]), (12, ["--pixel-range", 0, 4095]), (12, ["--bits", 12]), (16, []),
    ])  # fmt: skip
    def test_deep_images_get_the_vectors_of_their_eight_bit_versions(
        self, bits, options, embed, data
    ):
        # The mean cosine was 0.00, 0.03 and 1.00 for 10, 12 and 16 bits.
        eight = vectors_of(embed(write_scenes(data / "8", 8)))
        deep = embed(write_scenes(data / "deep", bits), *options)
        assert "less than 1/8" not in deep.text
        eight, deep = eight - eight.mean(0), vectors_of(deep) - eight.mean(0)
        cosines = (
            (eight * deep).sum(1) / np.linalg.norm(eight, axis=1) / np.linalg.norm(deep, axis=1)
        )
        assert cosines.mean() > 0.99

    @pytest.mark.parametrize("bits", [9, 12, 14])
    def test_declared_bits_equal_floats_that_are_scaled_by_hand(self, bits, embed, data):
        declared = vectors_of(embed(write_scenes(data / "deep", bits), "--bits", bits))
        by_hand = vectors_of(embed(write_scaled_scenes(data / "floats", bits)))
        np.testing.assert_allclose(declared, by_hand, atol=1e-5)

    def test_the_range_of_a_checkpoint_is_used_and_can_be_replaced(self, data, tmp_path, embed):
        folder = checkpoint_of(tmp_path / "model", 3, pixel_range=(0, 4095))
        write_scenes(data, 12)
        paths = sorted(data.iterdir())
        stored = Embedder.from_pretrained(folder, device="cpu")(paths)
        replaced = Embedder.from_pretrained(folder, device="cpu", pixel_range=(0, 1023))(paths)
        declared = checkpoint_of(tmp_path / "plain", 3)
        by_option = Embedder.from_pretrained(declared, device="cpu", pixel_range=(0, 4095))(paths)
        np.testing.assert_allclose(stored, by_option, atol=1e-5)
        assert np.abs(stored - replaced).max() > 0.01

    @pytest.mark.parametrize("workers", [0, 1])
    def test_one_warning_says_that_the_values_use_a_small_part(self, workers, embed, data, caplog):
        vectors_of(embed(write_scenes(data, 12), "--num-workers", workers))
        (warning,) = [
            record.message for record in caplog.records if "values from" in record.message
        ]
        assert "0.png" in warning and "4095" in warning and "0 to 65535" in warning
        assert "--bits" in warning and "--pixel-range" in warning

    def test_values_outside_of_a_declared_range_are_named(self, embed, data, caplog):
        vectors_of(embed(write_scenes(data, 12), "--bits", 10))
        assert "lie outside of the range 0 to 1023" in caplog.text

    @pytest.mark.parametrize("options, reason", [
        (["--bits", 12, "--pixel-range", 0, 9], "both declare"),
        (["--pixel-range", 9, 0], "pixel_range (9.0 0.0) must be two numbers"),
        (["--pixel-range", "-1e308", "1e308"], "pixel_range (-1e+308 1e+308) must lie within"),
        (["--pixel-range", 0, "1e-320"], "differ by at least 1e-30"),
        (["--bits", 0], "'--bits': Input should be greater than or equal to 1, not 0"),
        (["--bits=33"], "'--bits': Input should be less than or equal to 32, not 33"),
        (["--pixel-range", "a", 1], "unable to parse string as a number, not a 1"),
        (["--batch-size", "x"], "unable to parse string as an integer, not x"),
    ])  # fmt: skip
    def test_a_range_that_makes_no_sense_is_an_error_of_one_line(
        self, options, reason, embed, data
    ):
        found = embed(write_scenes(data, 12, count=1), *options)
        assert found.code == 2 and reason in found.text and len(found.text.splitlines()) == 1

    @pytest.mark.parametrize("extension", ["ppm", "sgi"])
    def test_colors_in_other_formats_get_the_vectors_of_png(self, extension, embed, data):
        cv2 = pytest.importorskip("cv2")
        colors = np.random.default_rng(0).integers(0, 4096, (48, 64, 3)).astype(np.uint16)
        (data / "a").mkdir()
        (data / "b").mkdir()
        (data / "a" / "a.png").write_bytes(cv2.imencode(".png", colors[..., ::-1])[1].tobytes())
        content = b"P6 64 48 65535\n" + colors.astype(">u2").tobytes()
        if extension == "sgi":
            fields = 474, 0, 2, 3, 64, 48, 3, 0, 65535
            planes = colors[::-1].transpose(2, 0, 1).astype(">u2").tobytes()
            content = struct.pack(">hBBHHHHll", *fields).ljust(512, b"\0") + planes
        (data / "b" / f"a.{extension}").write_bytes(content)
        vectors = [vectors_of(embed(data / folder, "--bits", 12)) for folder in ("a", "b")]
        np.testing.assert_array_equal(*vectors)

    def test_other_commands_take_and_warn_of_the_range_too(self, data, tmp_path, caplog):
        torch.manual_seed(0)
        config = tiny_config(mae_config={"decoder_hidden_size": 32, "decoder_num_layers": 1,
                                         "decoder_num_attention_heads": 2})  # fmt: skip
        model = tmp_path / "mae"
        SelfViTForMAE(config).save_pretrained(model)
        build_processor(config).save_pretrained(model)
        write_scenes(data / "deep", 12)
        write_scaled_scenes(data / "floats", 12)
        for command in ("attention", "pca", "reconstruct"):
            drawn = {}
            for name, options in (("deep", ["--bits", 12]), ("floats", []), ("undeclared", [])):
                source = data / ("deep" if name == "undeclared" else name)
                caplog.clear()
                picture = tmp_path / f"{command}_{name}.png"
                found = run(
                    "visualize", command, model, "--data", source, "--output", picture,
                    "--num-images", 2, "--device", "cpu", "--num-workers", 0, *options,
                )  # fmt: skip
                assert found.exit_code == 0, found.output
                assert ("less than 1/8" in caplog.text) == (name == "undeclared")
                drawn[name] = np.asarray(Image.open(picture)).astype(int)
            assert np.abs(drawn["deep"] - drawn["floats"]).max() <= 2
            assert np.abs(drawn["deep"] - drawn["undeclared"]).max() > 50
        for options, warned in ((["--bits", 12], False), ([], True)):
            caplog.clear()
            found = run(
                "evaluate", model, "--train", data / "deep", "--device", "cpu",
                "--num-workers", 0, *options,
            )  # fmt: skip
            assert found.exit_code == 0, found.output
            assert ("less than 1/8" in caplog.text) == warned


class TestTypes:
    def test_every_type_shows_the_same_ramp(self, data):
        # Signed files were black in the left half, and 32 bits in the right half.
        inputs_pixels.write_ramps(data)
        for path in sorted(data.iterdir()):
            image = decode_image(path)
            found = [image.getpixel((x, 0))[0] for x in range(0, 64, 9)]
            assert found == [0, 36, 72, 108, 144, 180, 216, 252], path.name

    def test_every_type_gets_the_same_vector(self, data, embed):
        inputs_pixels.write_ramps(data)
        vectors = vectors_of(embed(data))
        assert len(vectors) == 11
        np.testing.assert_allclose(vectors, vectors[:1].repeat(11, 0), atol=0.05)


class TestChannels:
    @pytest.mark.parametrize("num_channels", [2, 4, 12])
    def test_arrays_and_tiff_files_of_many_bands_are_embedded(self, num_channels, data, tmp_path):
        model = checkpoint_of(tmp_path / "model", num_channels, pixel_range=(0, 4095))
        write_bands(data, num_channels)
        output = tmp_path / "vectors"
        found = run("embed", model, "--data", data, "--output", output, "--num-workers", 0)
        assert found.exit_code == 0, found.output
        vectors = np.stack(read_vectors(output)["embedding"].to_numpy())
        assert len(vectors) == 16
        groups = vectors.reshape(4, 4, -1)  # scenes, ways to write them
        np.testing.assert_allclose(groups, groups[:, :1].repeat(4, 1), atol=1e-5)
        assert np.abs(groups[0] - groups[1]).max() > 0.01

    def test_an_image_of_other_channels_is_skipped_with_the_reason(self, data, tmp_path):
        model = checkpoint_of(tmp_path / "model", 4)
        write_bands(data, 4, count=1)
        Image.new("RGB", (40, 40)).save(data / "photo.jpg")
        output = tmp_path / "vectors"
        found = run("embed", model, "--data", data, "--output", output, "--strict")
        assert found.exit_code == 1
        skipped = (output / "skipped.csv").read_text()
        assert 'photo.jpg,"has 3 channels, but the model reads 4 (num_channels)"' in skipped

    def test_a_gray_model_reads_photos(self, data, tmp_path):
        model = checkpoint_of(tmp_path / "model", 1)
        pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(data / "color.png")
        Image.fromarray(pixels).convert("L").save(data / "gray.png")
        embedder = Embedder.from_pretrained(model, device="cpu")
        color, gray = embedder([data / "color.png", data / "gray.png"])
        np.testing.assert_allclose(color, gray, atol=1e-5)


# Runs `selfvit embed`, and prints the peak of its memory in kilobytes.
PEAK = """
import resource, sys
from selfvit.cli import app
try:
    app(sys.argv[1:])
except SystemExit as error:
    code = error.code
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, code or 0)
"""


def peak_of(python, model, data, output):
    """Embed in a process of its own; return its peak in MiB, its exit code and all it printed.

    The peak includes the memory of `python`, a forked process, in each process alike.
    """
    words = ["embed", model, "--data", data, "--output", output, "--num-workers", "0"]
    process = subprocess.run(
        [python, "-c", PEAK, *map(str, words), "--device", "cpu"],
        capture_output=True,
        text=True,
    )
    _, peak, code = process.stdout.split()[-3:]
    return int(peak) / 1024, int(code), process.stdout + process.stderr


@pytest.fixture(scope="module")
def model_of_224_pixels(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vit224")
    config = tiny_config(image_size=224, patch_size=16)
    SelfViTModel(config).save_pretrained(folder)
    build_processor(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ordinary_peak(python_with_selfvit, model_of_224_pixels, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ordinary")
    inputs_pixels.write_huge(folder / "data", "ordinary")
    words = (model_of_224_pixels, folder / "data", folder / "vectors")
    peak, code, text = peak_of(python_with_selfvit, *words)
    assert code == 0, text
    return peak


@pytest.mark.parametrize(
    "kind", ["strip", "deep_strip", "deep_png", "deep_tiff", "deep_pgm", "photo"]
)
def test_an_image_takes_at_most_one_gigabyte(
    kind, python_with_selfvit, model_of_224_pixels, ordinary_peak, tmp_path
):
    # The strip of 20,000 x 1 pixels took 10 GB: it was resized to 5,120,000 x 256, then cropped.
    inputs_pixels.write_huge(tmp_path / "data", kind)
    words = (model_of_224_pixels, tmp_path / "data", tmp_path / "vectors")
    peak, code, text = peak_of(python_with_selfvit, *words)
    assert code == 0 and "1 images embedded" in text, text
    extra = peak - ordinary_peak
    assert extra < (200 if "strip" in kind else 1000), f"{extra:.0f} MiB more"
    metadata = json.loads((tmp_path / "vectors" / "metadata.json").read_text())
    assert metadata
