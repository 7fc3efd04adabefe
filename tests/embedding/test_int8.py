"""Linear layers in 8 bits: calibration, the gate, and folders that go on with one rounding."""

from __future__ import annotations

import json
import shutil
import weakref

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from selfvit import SelfViTConfig, SelfViTModel
from selfvit.cli import app
from selfvit.data.sources import open_images
from selfvit.data.videos.video_source import VideoStream
from selfvit.embedding.embedder import Embedder
from selfvit.embedding.engines import int8
from selfvit.embedding.engines.encoder import FusedEncoder, PlainLinear
from selfvit.embedding.engines.fidelity import Fidelity, neighbors_kept
from selfvit.embedding.engines.interface import Selection
from selfvit.embedding.engines.openvino import OpenVINOEngine
from selfvit.embedding.engines.quantization import (
    Quantization,
    QuantizedLinear,
    harm_of_layers,
    input_ranges,
    max_weight_here,
    round_layers,
)
from selfvit.embedding.preprocessing import build_processor
from selfvit.embedding.vectors.reader import read_vectors
from selfvit.exploration.collection import Collection

from .. import image_files
from ..data.videos import write_video

NUM_IMAGES = 72


def model_of() -> SelfViTModel:
    torch.manual_seed(0)
    config = SelfViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8,
        initializer_range=0.2,
    )  # fmt: skip
    return SelfViTModel(config).eval()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for index in range(NUM_IMAGES):
        image_files.noise(16, 16, seed=index).save(folder / f"{index:04d}.png")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model = model_of()
    model.save_pretrained(folder)
    build_processor(model.config).save_pretrained(folder)
    return folder


def embedder_of(model, **options) -> Embedder:
    return Embedder(model, build_processor(model.config), dtype="int8", **options)


def with_outlier(model: SelfViTModel) -> SelfViTModel:
    """Let one input of the last layer be 400 for all images, without any effect on the vectors."""
    mlp = model.layers[1].mlp
    with torch.no_grad():
        mlp.fc1.bias[0] = 400
        mlp.fc2.weight[:, 0] = 0
    return model


class TestRounding:
    def test_a_layer_rounds_as_computed_by_hand(self):
        linear = PlainLinear(torch.tensor([[1.0, -0.6], [0.02, 0.012]]), torch.tensor([0.5, 0.0]))
        rounded = QuantizedLinear(linear, (-1.0, 1.55), 127)  # a step is 0.01, and 0 is at 100
        found = rounded(torch.tensor([[[0.014, 9.0], [-0.006, -9.0]]]))
        second = 76 / 127  # 0.6 is 76.2 steps of its row
        expected = [
            [0.01 - 1.55 * second + 0.5, 0.01 * 0.02 + 1.55 * second * 0.02],
            [-0.01 + 1.0 * second + 0.5, -0.01 * 0.02 - 1.0 * second * 0.02],
        ]
        torch.testing.assert_close(found, torch.tensor([expected]), atol=1e-6, rtol=0)

    def test_weights_have_seven_bits_where_products_are_added_in_pairs(self):
        linear = PlainLinear(torch.tensor([[1.0, -1.0], [0.3, 0.1]]), None)
        steps = QuantizedLinear(linear, (0, 1), 63)
        whole = steps.weight / steps.steps.unsqueeze(1)
        torch.testing.assert_close(whole, torch.tensor([[63.0, -63.0], [63.0, 21.0]]))

    def test_neighbors_that_are_kept_are_counted(self):
        generator = torch.Generator().manual_seed(0)
        vectors = torch.randn(40, 8, generator=generator)
        other = torch.randn(40, 8, generator=generator)
        assert neighbors_kept(vectors, 3 * vectors) == 1
        assert 0.15 < neighbors_kept(vectors, other) < 0.4  # 10 of 39 by chance

    def test_a_quantization_survives_json_bit_for_bit(self):
        fidelity = Fidelity(0.999, 0.99, 0.95, 48)
        rounding = Quantization({"blocks.0.qkv": (-1 / 3, 0.1)}, 127, "float32", 8, 24, fidelity)
        assert Quantization.from_dict(json.loads(json.dumps(rounding.to_dict()))) == rounding

    @torch.inference_mode()
    def test_the_layer_with_the_outlier_does_most_harm(self):
        encoder = FusedEncoder(with_outlier(model_of())).eval()
        pixels = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        ranges = input_ranges(encoder, [pixels])
        assert len(ranges) == 9  # the last block has queries of the class token only
        assert ranges["blocks.1.fc2"][1] == pytest.approx(400, abs=20)
        harm = harm_of_layers(encoder, pixels, ranges, 127)
        assert max(harm, key=lambda name: harm[name]) == "blocks.1.fc2"
        assert not any(isinstance(module, QuantizedLinear) for module in encoder.modules())
        with pytest.raises(ValueError, match=r"'blocks\.7\.qkv' must be one of the encoder's"):
            round_layers(encoder, {"blocks.7.qkv": (0, 1)}, 127)


class TestCalibration:
    @pytest.fixture(autouse=True)
    def _engine(self):
        pytest.importorskip("openvino")

    def test_weights_that_overflow_on_this_cpu_are_an_error(self):
        # A run that was begun on a CPU with VNNI was resumed on one without.
        fidelity = Fidelity(1.0, 1.0, 1.0, 1)
        rounding = Quantization({}, max_weight_here() + 1, "float32", 8, 24, fidelity)
        with pytest.raises(ValueError, match="overflow on this CPU above"):
            OpenVINOEngine(model_of(), Selection("openvino", torch.int8, rounding))

    def test_videos_are_calibrated_on_without_keeping_decoded_frames(self, tmp_path, monkeypatch):
        # The frames of a shuffle buffer were kept as decoded: 6 GB at 1920 x 1080.
        frames: list[weakref.ref] = []
        num_alive = []
        read_shard = VideoStream.read_shard

        def read(self, shard, **options):
            for record in read_shard(self, shard, **options):
                frames.append(weakref.ref(record.image))
                num_alive.append(sum(frame() is not None for frame in frames))
                yield record

        monkeypatch.setattr(VideoStream, "read_shard", read)
        embedder = embedder_of(model_of())
        embedder.choose_engine(open_images(write_video(tmp_path / "v.mp4", 120), video_fps=25))
        rounding = embedder.selection.quantization
        assert (rounding.num_calibration, rounding.fidelity.num_images) == (40, 80)
        assert len(frames) == 120 and max(num_alive) <= 3

    def test_vectors_in_8_bits_agree_with_those_of_the_rounded_layers(self, images):
        model, source = model_of(), open_images(images)
        expected = Embedder(model, build_processor(model.config)).embed(source).vectors
        embedder = embedder_of(model)
        with pytest.raises(ValueError, match=r"must be calibrated on images .* choose_engine"):
            embedder.embed_pixels(torch.zeros(1, 3, 16, 16))
        found = embedder.embed(source).vectors
        rounding = embedder.selection.quantization
        assert (rounding.num_calibration, rounding.fidelity.num_images) == (24, 48)
        assert len(rounding.ranges) == rounding.num_layers == 9
        cosines = torch.cosine_similarity(torch.tensor(found), torch.tensor(expected))
        assert cosines.min() > 0.99 and np.abs(found - expected).max() > 1e-3
        with torch.no_grad():
            model.layers[0].mlp.fc1.weight.mul_(2)
        with pytest.raises(ValueError, match="weights have changed"):
            embedder.embed(source)

    def test_a_layer_whose_rounding_is_too_coarse_is_refused_or_stays_in_float(
        self, images, monkeypatch
    ):
        embedder = embedder_of(with_outlier(model_of()))
        tries = int8.FLOAT_LAYERS
        monkeypatch.setattr(int8, "FLOAT_LAYERS", tries[:1])  # all layers in 8 bits
        with pytest.raises(ValueError) as error:
            embedder.choose_engine(open_images(images))
        for part in ("at least 0.995", "90%", "on 48 held-out images", "use dtype auto or float32"):
            assert part in str(error.value)
        monkeypatch.setattr(int8, "FLOAT_LAYERS", tries[1:])
        embedder.choose_engine(open_images(images))
        rounding = embedder.selection.quantization
        assert "blocks.1.fc2" not in rounding.ranges and len(rounding.ranges) >= 7
        assert int8.is_faithful(rounding.fidelity)

    def test_too_few_images_are_an_error(self, images):
        with pytest.raises(ValueError, match=r"at least 64 readable images.* there are 40"):
            embedder_of(model_of()).choose_engine(open_images(images).sample(40))

    def test_an_engine_without_8_bits_is_an_error(self):
        with pytest.raises(ValueError, match="torch does not compute in int8; use engine openvino"):
            embedder_of(model_of(), engine="torch")


@pytest.fixture(scope="module")
def embed(checkpoint, images, tmp_path_factory):
    """Return a command that embeds into a folder, which has been begun in 8 bits."""
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("vectors")

    def command(*arguments, data=images):
        where = [checkpoint, "--data", data, "--output", folder]
        options = ["--num-workers", 0, "--batch-size", 8, *arguments]
        return CliRunner().invoke(app, ["embed", *map(str, [*where, *options])])

    begun = command("--dtype", "int8", "--part-images", 24)
    assert begun.exit_code == 0, begun.output
    assert "int8: mean centered cosine 0.99" in begun.stdout
    command.folder = folder
    return command


class TestFolder:
    def test_metadata_has_the_metrics(self, embed):
        facts = json.loads((embed.folder / "metadata.json").read_text())
        assert (facts["engine"], facts["dtype"]) == ("openvino", "int8")
        measured = facts["quantization"]
        assert measured["mean_centered_cosine"] >= 0.995 and measured["neighbors_kept"] >= 0.9
        assert (measured["num_images"], measured["num_calibration_images"]) == (48, 24)
        assert (measured["num_layers"], measured["num_float_layers"]) == (9, 0)

    def test_a_query_is_embedded_with_the_rounding_of_the_folder(self, embed, images):
        embedder = Collection(embed.folder).embedder()
        first = read_vectors(embed.folder).slice(0, 8)
        queries = [images / name for name in first["path"].to_pylist()]
        np.testing.assert_array_equal(embedder(queries), np.stack(first["embedding"].to_numpy()))

    def test_a_run_is_resumed_and_updated_with_its_rounding_only(self, embed, images, tmp_path):
        folder = embed.folder
        whole = read_vectors(folder).to_pylist()
        (folder / "part-00001.parquet").unlink()
        refused = embed("--resume")
        assert refused.exit_code == 2 and "dtype (int8, now float32)" in refused.stderr
        resumed = embed("--resume", "--dtype", "int8")
        assert resumed.exit_code == 0 and "24 images embedded" in resumed.stdout
        assert read_vectors(folder).to_pylist() == whole

        more = tmp_path / "images"
        shutil.copytree(images, more)
        for index in range(8):  # a batch of the same images has the same vectors
            shutil.copy(images / f"{index:04d}.png", more / f"9{index:03d}.png")
        updated = embed("--update", "--dtype", "auto", data=more)
        assert updated.exit_code == 0 and "(8 new, 0 changed); 0 removed, 72 kept" in updated.stdout
        rows = {row["path"]: row["embedding"] for row in read_vectors(folder).to_pylist()}
        assert all(rows[row["path"]] == row["embedding"] for row in whole)
        for index in range(8):
            assert rows[f"9{index:03d}.png"] == rows[f"{index:04d}.png"]

    def test_vectors_of_another_precision_do_not_go_on_in_8_bits(self, embed):
        manifest = embed.folder / "manifest.json"
        content = json.loads(manifest.read_text())
        content["checkpoint"] |= {"dtype": "float32"}
        manifest.write_text(json.dumps(content))
        refused = embed("--resume", "--dtype", "int8")
        assert refused.exit_code == 2
        assert "dtype (int8) must be that of the earlier vectors, float32" in refused.stderr
