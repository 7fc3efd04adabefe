"""Engines: the same vectors from torch, OpenVINO and ONNX Runtime, and the choice between them."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from selfvit import SelfViTConfig, SelfViTModel
from selfvit.cli import app
from selfvit.data.sources import open_images
from selfvit.embedding.embedder import Embedder
from selfvit.embedding.engines import choice
from selfvit.embedding.engines.choice import Request, build, is_long, smallest_cosine
from selfvit.embedding.engines.cpu import multiplies_bfloat16
from selfvit.embedding.engines.encoder import FusedEncoder
from selfvit.embedding.engines.interface import Selection
from selfvit.embedding.engines.torch import PackedEngine, PackedLinear, unfused_attention
from selfvit.embedding.preprocessing import build_processor
from selfvit.embedding.vectors.reader import read_vectors
from tests.objectives import DINOV3

PACKAGES = {"openvino": ["openvino"], "onnxruntime": ["onnx", "onnxscript", "onnxruntime"]}
POOLINGS = ["cls", "mean", "cls+mean", "gem", "concat:2"]
SHAPES = [(1, 3, 32, 32), (5, 3, 32, 32), (2, 3, 16, 56)]
needs_bf16 = pytest.mark.skipif(not multiplies_bfloat16(), reason="the CPU has no bfloat16")


def model_of(pooling="cls", **fields) -> SelfViTModel:
    torch.manual_seed(0)
    config = SelfViTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, patch_size=8,
        initializer_range=0.2, pooling=pooling, **{"image_size": 32, **fields},
    )  # fmt: skip
    model = SelfViTModel(config).eval()
    with torch.no_grad():  # biases of 0 and LayerNorms of 1 would hide mistakes
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def pixels_of(shape, seed=0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def embedder_of(model, **options) -> Embedder:
    return Embedder(model, build_processor(model.config), **options)


def require(engine: str) -> None:
    for name in PACKAGES[engine]:
        pytest.importorskip(name)


class TestFusedEncoder:
    @pytest.mark.parametrize("pooling", POOLINGS)
    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {
                "num_register_tokens": 2,
                "layerscale_value": 0.5,
                "interpolate_antialias": True,
                "value_bias": False,
            },
            {"qkv_bias": False},
            {**DINOV3, "pos_embed_rescale": 2.0},
        ],
        ids=["plain", "registers and scale", "no bias", "dinov3"],
    )
    @torch.inference_mode()
    def test_its_vectors_are_those_of_the_model(self, pooling, fields):
        model = model_of(pooling, **fields)
        plain = FusedEncoder(model)
        packed = FusedEncoder(model, torch.float32, PackedLinear, unfused_attention)
        for shape in SHAPES:
            pixels = pixels_of(shape)
            expected = model.embed(pixels)
            positions = plain.patch_positions((shape[2] // 8, shape[3] // 8))
            for encoder in (plain, packed):
                torch.testing.assert_close(
                    encoder(pixels, positions), expected, atol=1e-5, rtol=1e-4
                )

    def test_a_layer_with_an_adapter_is_refused(self):
        class Adapted(nn.Linear):
            pass

        model = model_of()
        model.layers[1].attention.v_proj = Adapted(32, 32)
        with pytest.raises(ValueError, match=r"block 1 has a Adapted"):
            FusedEncoder(model)
        selection = Selection("torch", torch.bfloat16)
        assert not isinstance(build(selection, model), PackedEngine)


class TestEngines:
    @pytest.mark.parametrize(
        ("engine", "position_embedding_type"),
        [("openvino", "learned"), ("openvino", "rotary"), ("onnxruntime", "rotary")],
    )
    def test_float32_vectors_are_those_of_torch_for_any_shape(
        self, engine, position_embedding_type
    ):
        require(engine)
        fields = {**DINOV3, "position_embedding_type": position_embedding_type}
        model = model_of("cls+mean", **fields)
        embedders = [embedder_of(model, engine=name) for name in ("torch", engine)]
        for shape in SHAPES:
            expected, found = (embedder.embed_pixels(pixels_of(shape)) for embedder in embedders)
            np.testing.assert_allclose(found, expected, atol=1e-5)
        with pytest.raises(ValueError, match="height"):
            embedders[1].embed_pixels(pixels_of((1, 3, 30, 32)))

    def test_the_grid_of_the_exported_example_is_not_a_constant_of_the_graph(self):
        require("onnxruntime")
        model = model_of("mean", image_size=(24, 40))  # the example has 3 x 5 patches, too
        pixels = pixels_of((1, 3, 16, 24))
        expected, found = (
            embedder_of(model, engine=name).embed_pixels(pixels)
            for name in ("torch", "onnxruntime")
        )
        np.testing.assert_allclose(found, expected, atol=1e-5)

    def test_signals_are_handled_after_openvino_was_freed_in_another_thread(self, tiny_checkpoint):
        """The plugin of OpenVINO frees the memory that the main thread handles signals in."""
        require("openvino")
        code = (
            "import faulthandler, os, signal, sys, threading\nimport numpy as np\nimport selfvit\n"
            "faulthandler.enable()  # as in pytest: signals have a stack of their own\n"
            "signal.signal(signal.SIGUSR1, lambda *_: print('handled'))\n"
            "class Holder: pass\n"
            "holder = Holder()\n"
            "holder.embedder = selfvit.Embedder.from_pretrained(\n"
            "    sys.argv[1], device='cpu', engine='openvino'\n"
            ")\n"
            "holder.embedder(np.zeros((40, 40, 3), 'uint8'))\n"
            "thread = threading.Thread(target=lambda: vars(holder).clear())\n"
            "thread.start()\nthread.join()\n"
            "os.kill(os.getpid(), signal.SIGUSR1)\n"
        )
        run = subprocess.run(
            [sys.executable, "-c", code, tiny_checkpoint],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert (run.returncode, run.stdout) == (0, "handled\n"), run.stderr

    @needs_bf16
    @pytest.mark.parametrize("engine", ["torch", "openvino"])
    def test_bfloat16_vectors_are_close_and_float32(self, engine):
        if engine in PACKAGES:
            require(engine)
        pixels = pixels_of((5, 3, 32, 32))
        expected = embedder_of(model_of()).embed_pixels(pixels)
        embedder = embedder_of(model_of(), engine=engine, dtype=torch.bfloat16)
        found = embedder.embed_pixels(pixels)
        assert found.dtype == np.float32 and not np.array_equal(found, expected)
        assert smallest_cosine(torch.from_numpy(found), torch.from_numpy(expected)) > 0.999
        assert str(embedder.selection) == f"{engine} in bfloat16"

    @needs_bf16
    def test_torch_packs_weights_in_bfloat16_only(self):
        for dtype, packs in ((torch.float32, False), (torch.bfloat16, True)):
            engine = build(Selection("torch", dtype), model_of())
            assert isinstance(engine, PackedEngine) == packs

    @needs_bf16
    def test_weights_that_change_later_are_copied_again(self):
        embedder = embedder_of(model_of(), dtype=torch.bfloat16)
        pixels = pixels_of((2, 3, 32, 32))
        before = embedder.embed_pixels(pixels)
        with torch.no_grad():
            embedder.model.layers[0].mlp.fc1.weight.mul_(-2)
        changed = embedder.embed_pixels(pixels)
        assert np.abs(changed - before).max() > 0.05
        fresh = embedder_of(embedder.model, dtype=torch.bfloat16).embed_pixels(pixels)
        np.testing.assert_array_equal(changed, fresh)

    @pytest.mark.parametrize(
        "options, message",
        [
            ({"engine": "tensorrt"}, "engine ('tensorrt') must be one of auto, torch"),
            ({"engine": "onnxruntime", "dtype": torch.bfloat16}, "computes in float32, not in b"),
            ({"engine": "openvino", "tokens": "patches"}, "use engine torch"),
        ],
    )
    def test_what_an_engine_does_not_have_is_an_error(self, options, message):
        if options["engine"] in PACKAGES:
            require(options["engine"])
        with pytest.raises(ValueError) as error:
            embedder_of(model_of(), **options)
        assert message in str(error.value)


class TestAuto:
    def test_a_short_run_computes_the_bits_of_torch(self, tiny_checkpoint, image_folder):
        source = open_images(image_folder)
        plain, auto = (
            Embedder.from_pretrained(tiny_checkpoint, device="cpu", engine=engine)
            for engine in ("torch", "auto")
        )
        np.testing.assert_array_equal(auto.embed(source).vectors, plain.embed(source).vectors)
        assert auto.selection == Selection("torch", torch.float32)

    def test_a_long_run_is_converted(self):
        require("openvino")
        model = model_of()
        request = Request("auto", torch.float32)
        assert [str(one) for one in request.candidates(model, None, "pooled")] == [
            "openvino in float32",
            "torch in float32",
        ]
        assert len(request.candidates(model, None, "patches")) == 1
        assert not is_long(model, torch.float32, 7) and is_long(model, torch.float32, 10**9)

    def test_the_precision_is_that_of_the_cpu(self, tiny_checkpoint, image_folder):
        embedder = Embedder.from_pretrained(tiny_checkpoint, device="cpu", dtype="auto")
        with pytest.raises(ValueError, match="choose_engine"):
            _ = embedder.selection
        embedder.choose_engine(open_images(image_folder))
        fast = torch.bfloat16 if multiplies_bfloat16() else torch.float32
        assert embedder.selection == Selection("torch", fast)

    @needs_bf16
    def test_vectors_that_are_not_faithful_fall_back_with_a_line(self, caplog):
        model = model_of()
        with torch.no_grad():  # saturated attention: a rounded score chooses another token
            for layer in model.layers:
                layer.attention.q_proj.weight.mul_(100)
        embedder = embedder_of(model, dtype="auto")
        with caplog.at_level(logging.WARNING):
            found = embedder.embed_pixels(pixels_of((8, 3, 32, 32)))
        [line] = caplog.messages
        assert "The engine is torch in float32: torch in bfloat16 has vectors whose" in line
        expected = embedder_of(model).embed_pixels(pixels_of((8, 3, 32, 32)))
        np.testing.assert_array_equal(found, expected)

    def test_emulated_bfloat16_warns_and_is_not_chosen(self, tiny_checkpoint, python_with_selfvit):
        code = (
            "import selfvit, sys\nimport numpy as np\n"
            "for dtype in ('auto', 'bfloat16'):\n"
            "    e = selfvit.Embedder.from_pretrained(sys.argv[1], device='cpu', dtype=dtype)\n"
            "    e(np.zeros((40, 40, 3), 'uint8'))\n"
            "    print(e.selection)\n"
        )
        run = subprocess.run(
            [python_with_selfvit, "-c", code, str(tiny_checkpoint)],
            env={"ONEDNN_MAX_CPU_ISA": "AVX2", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
        )
        assert run.stdout.splitlines() == ["torch in float32", "torch in bfloat16"], run.stderr
        assert run.stderr.count("has no instructions for bfloat16") == 1


class TestCommand:
    @pytest.fixture
    def embed(self, tiny_checkpoint, image_folder, tmp_path):
        def command(*arguments):
            where = [tiny_checkpoint, "--data", image_folder, "--output", tmp_path / "vectors"]
            options = ["--device", "cpu", "--num-workers", 0, "--batch-size", 2, *arguments]
            return CliRunner().invoke(app, ["embed", *map(str, [*where, *options])])

        return command

    def test_a_run_is_resumed_with_its_engine_only(self, embed, tmp_path):
        require("openvino")
        folder = tmp_path / "vectors"
        assert embed("--engine", "openvino", "--part-images", 2).exit_code == 0
        whole = read_vectors(folder).to_pylist()
        facts: dict[str, Any] = json.loads((folder / "metadata.json").read_text())
        assert (facts["engine"], facts["dtype"]) == ("openvino", "float32")
        (folder / "part-00001.parquet").unlink()
        refused = embed("--engine", "torch", "--resume")
        assert refused.exit_code == 2 and "engine (openvino, now torch)" in refused.stderr
        refused = embed("--dtype", "bfloat16", "--resume")
        assert refused.exit_code == 2 and "dtype (float32, now bfloat16)" in refused.stderr
        resumed = embed("--resume", "--dtype", "auto")
        assert resumed.exit_code == 0 and "2 images embedded" in resumed.stdout
        assert read_vectors(folder).to_pylist() == whole

    def test_an_engine_that_is_not_installed_names_its_extra(self, embed, monkeypatch):
        monkeypatch.setattr(choice, "find_spec", lambda name: None)
        result = embed("--engine", "openvino")
        assert result.exit_code == 2 and 'pip install "selfvit[openvino]"' in result.stderr
