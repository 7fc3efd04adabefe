"""Checkpoints: configuration fields, channels, position grids, DINOv2's files, damaged files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)
from typer.testing import CliRunner, Result

from selfvit import SelfViTConfig, SelfViTModel
from selfvit.cli import app
from selfvit.conversion.audit.audit import audit
from selfvit.conversion.convert import convert
from selfvit.conversion.infer_grid import factor_pairs
from selfvit.embedding.embedder import Embedder
from selfvit.embedding.preprocessing import build_processor
from selfvit.embedding.vectors.reader import read_vectors
from selfvit.modeling.position_embeddings import sincos_position_embeddings

timm = pytest.importorskip("timm")
from .inputs_checkpoints import (  # noqa: E402 - needs timm
    dinov2_backbone,
    dinov2_model,
    dinov2_teacher,
    dinov2_training,
    in_chunks,
    prefixed,
    timm_vit,
    vit_weights,
    with_weights,
    write_bands,
    write_damaged_files,
)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run_convert(weights: object, folder: Path, *options: object) -> tuple[Result, Path]:
    """Save weights, and convert them by the command."""
    torch.save(weights, folder / "weights.pth")
    output = folder / "converted"
    result = run("convert", folder / "weights.pth", "--output", output, *options)
    return result, output


def assert_one_line_error(result: Result, *parts: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for part in parts:
        assert part in result.stderr


def features(model: Any, height: int, width: int, channels: int = 3) -> torch.Tensor:
    """Return the normalized tokens of random pixels, without registers."""
    pixels = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        if isinstance(model, SelfViTModel):
            tokens, prefix = model(pixels).last_hidden_state, model.config.num_prefix_tokens
        else:
            tokens, prefix = model.forward_features(pixels), model.num_prefix_tokens
    return torch.cat([tokens[:, :1], tokens[:, prefix:]], dim=1)


def assert_same_features(
    checkpoint: Path, model: torch.nn.Module, height: int, width: int, **options: int
) -> None:
    encoder = SelfViTModel.from_pretrained(checkpoint).eval()
    expected = features(model, height, width, **options)
    assert expected.std() > 0.1
    torch.testing.assert_close(
        features(encoder, height, width, **options), expected, rtol=0, atol=1e-5
    )


# --- unchecked_pooling ----------------------------------------------------------------------------
# tests/configuration/test_every_door.py has all fields and all classes.


def test_a_pooling_of_too_many_blocks_has_the_error_of_the_command(
    tiny_checkpoint, image_folder, tmp_path
):
    result = run(
        *("embed", tiny_checkpoint, "--data", image_folder, "--output", tmp_path / "vectors"),
        *("--pooling", "concat:99"),
    )
    message = (
        "pooling ('concat:99') asks for more blocks than num_hidden_layers (3); use at most "
        "concat:3."
    )
    assert result.stderr == f"error: {message}\n"
    with pytest.raises(Exception, match="use at most concat:3") as error:
        AutoModel.from_pretrained(tiny_checkpoint, pooling="concat:99")
    assert message in str(error.value)


def test_a_checkpoint_with_an_invalid_field_is_named_by_audit(tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stored, "pooling": "concat:99"}))
    (finding,) = audit(folder).findings
    assert (finding.fault, "use at most concat:3" in finding.what) == (
        "invalid configuration",
        True,
    )


# --- positions_not_square -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide_model():
    return timm_vit(img_size=(128, 512))


def test_a_square_is_a_guess(wide_model, tmp_path):
    result, _ = run_convert(wide_model.state_dict(), tmp_path, "--num-heads", 2)
    assert result.exit_code == 0, result.output
    assert "image_size = 256  [guess]" in result.stdout
    assert "image_size: 256 patches are taken for 16 x 16; 8 x 32" in result.stdout
    assert "give --image-size HEIGHT WIDTH" in result.stdout
    report = json.loads((tmp_path / "converted" / "conversion.json").read_text())
    assert report["fields"]["image_size"]["from"] == "guess"
    assert "image_size" in report["guesses"]


def test_with_the_image_size_the_output_equals_that_of_timm(wide_model, tmp_path):
    result, output = run_convert(
        wide_model.state_dict(), tmp_path, "--num-heads", 2, "--image-size", 128, 512
    )
    assert "image_size = [128, 512]  [option]" in result.stdout
    assert "guess         image_size" not in result.stdout
    assert_same_features(output, wide_model, 128, 512)


@pytest.mark.parametrize("size", [(128, 500), (128, 256)])
def test_an_image_size_that_does_not_fit_is_refused(size, wide_model, tmp_path):
    result, output = run_convert(
        wide_model.state_dict(), tmp_path, "--num-heads", 2, "--image-size", *size
    )
    assert_one_line_error(result, "--image-size HEIGHT WIDTH")
    assert not output.exists()


def test_positions_that_are_no_square_list_the_grids(tmp_path):
    weights = vit_weights(img_size=(48, 96))
    result, _ = run_convert(weights, tmp_path, "--num-heads", 2)
    assert_one_line_error(
        result,
        "pos_embed holds 19 positions",
        "3 x 6 patches (--image-size 48 96), 6 x 3 patches (--image-size 96 48)",
    )


def test_grids_are_all_pairs_of_factors():
    assert factor_pairs(12) == [(3, 4), (4, 3), (2, 6), (6, 2), (1, 12), (12, 1)]
    assert factor_pairs(16)[0] == (4, 4)
    assert factor_pairs(1) == [(1, 1)]


def test_a_single_patch_is_no_guess(tmp_path):
    result, _ = run_convert(vit_weights(img_size=16), tmp_path, "--num-heads", 2)
    assert "image_size = 16  [weights]" in result.stdout


def test_sine_cosine_positions_tell_their_grid(tmp_path):
    weights = vit_weights(img_size=(64, 256))
    weights["pos_embed"] = sincos_position_embeddings(64, (4, 16))
    result, output = run_convert(weights, tmp_path, "--num-heads", 2)
    assert "image_size = [64, 256]  [weights]" in result.stdout
    assert "position_embedding_type = sincos  [weights]" in result.stdout
    result = run(
        *("convert", tmp_path / "weights.pth", "--output", tmp_path / "other", "--num-heads", 2),
        *("--image-size", 128),
    )
    assert_one_line_error(result, "of 4 x 16 patches, not of 8 x 8", "Give --image-size 64 256")


@pytest.mark.parametrize(
    ("config", "origin"),
    [
        ({"model_args": {"img_size": [128, 512]}}, "config.json"),
        ({"pretrained_cfg": {"input_size": [3, 128, 512]}}, "config.json, pretrained_cfg"),
    ],
)
def test_the_config_of_timm_tells_the_size(config, origin, wide_model, tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    torch.save(wide_model.state_dict(), folder / "pytorch_model.bin")
    config = {"architecture": "vit_tiny_patch16_224", **config}
    (folder / "config.json").write_text(json.dumps(config))
    conversion = convert(folder, tmp_path / "out", num_heads=2)
    assert conversion.fields["image_size"] == ([128, 512], origin)
    assert "image_size" not in conversion.guesses


def test_the_size_of_other_weights_in_the_config_of_timm_is_not_taken(wide_model, tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    torch.save(wide_model.state_dict(), folder / "pytorch_model.bin")
    config = {"architecture": "vit_x", "pretrained_cfg": {"input_size": [3, 224, 224]}}
    (folder / "config.json").write_text(json.dumps(config))
    assert convert(folder, tmp_path / "out", num_heads=2).fields["image_size"] == (256, "guess")


def test_the_arguments_of_a_training_script_tell_the_size(tmp_path):
    import argparse

    arguments = argparse.Namespace(img_size=None, input_size=[3, 128, 512])
    content = {"state_dict": vit_weights(img_size=(128, 512)), "args": arguments}
    result, _ = run_convert(content, tmp_path, "--num-heads", 2)
    assert "image_size = [128, 512]  [arguments of the source, input_size]" in result.stdout


def test_the_config_of_transformers_tells_the_size(tmp_path):
    shape = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ViTConfig(**shape, intermediate_size=64, image_size=[32, 128])
    ViTModel(config).save_pretrained(tmp_path / "source")
    conversion = convert(tmp_path / "source", tmp_path / "out")
    assert conversion.fields["image_size"] == ([32, 128], "config.json")
    assert conversion.fields["num_attention_heads"] == (2, "config.json")
    assert conversion.guesses.keys() == {"image_mean, image_std"}


def test_lightly_weights_of_a_wide_image(wide_model, tmp_path):
    weights = {
        **prefixed(wide_model.state_dict(), "backbone.vit."),
        "backbone.mask_token": torch.zeros(1, 1, 64),
    }
    result, output = run_convert(weights, tmp_path, "--num-heads", 2, "--image-size", 128, 512)
    assert "MaskedVisionTransformer of timm" in result.stdout
    assert_same_features(output, wide_model, 128, 512)


def test_the_number_of_heads_is_a_guess_unless_it_is_given(tmp_path):
    weights = vit_weights(embed_dim=128, num_heads=4)
    result, _ = run_convert(weights, tmp_path)
    assert "num_attention_heads = 2  [guess (width / 64)]" in result.stdout
    assert "give --num-heads" in result.stdout


# --- dinov2_release -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def released():
    return dinov2_model()


LAYOUTS = {
    "released": dinov2_backbone,
    "teacher": lambda model: dinov2_teacher(dinov2_backbone(model)),
    "chunks": lambda model: dinov2_teacher(in_chunks(dinov2_backbone(model))),
    "backbone only": lambda model: prefixed(dinov2_backbone(model), "backbone."),
    "training": lambda model: dinov2_training(in_chunks(dinov2_backbone(model), size=2)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_of_dinov2_convert(layout, released, tmp_path):
    result, output = run_convert(LAYOUTS[layout](released), tmp_path, "--num-heads", 2)
    assert result.exit_code == 0, result.output
    assert "facebookresearch/dinov2" in result.stdout
    assert "image_size = 518  [convention of facebookresearch/dinov2" in result.stdout
    assert "patch_size = 14  [weights]" in result.stdout
    assert "mask_token: the mask token, which only training uses" in result.stdout
    assert "DINOv2 interpolates positions by a scale factor" in result.stdout
    if layout in ("teacher", "chunks", "training"):
        assert "heads of the objective" in result.stdout
    assert ("the student; the teacher is converted" in result.stdout) == (layout == "training")
    assert_same_features(output, released, 518, 518)
    processor = json.loads((output / "preprocessor_config.json").read_text())
    assert processor["image_mean"] == [0.485, 0.456, 0.406]


@pytest.mark.parametrize("chunked", [False, True])
def test_positions_are_not_added_to_the_registers_of_dinov2(chunked, tmp_path):
    model = dinov2_model(img_size=56, reg_tokens=4, no_embed_class=True)  # as timm's reg4_dinov2
    weights = dinov2_backbone(model)
    class_position = torch.randn(1, 1, 64)  # DINOv2 stores a position of the class token
    weights["pos_embed"] = torch.cat([class_position, weights["pos_embed"]], dim=1)
    weights["cls_token"] = weights["cls_token"] - class_position
    assert weights["register_tokens"].shape == (1, 4, 64)
    result, output = run_convert(
        in_chunks(weights) if chunked else weights, tmp_path, "--num-heads", 2
    )
    assert "num_register_tokens = 4  [weights]" in result.stdout, result.output
    assert "image_size = 56  [guess]" in result.stdout  # no release has 16 positions
    assert_same_features(output, model, 56, 56)


def test_the_gated_mlp_of_the_released_giant_converts(tmp_path):
    layer = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
    model = dinov2_model(img_size=56, **layer)
    weights = dinov2_backbone(model)
    for name in [name for name in weights if ".mlp.fc" in name]:
        weights[name.replace("fc1", "w12").replace("fc2", "w3")] = weights.pop(name)
    for content in (weights, dinov2_teacher(in_chunks(weights))):
        result, output = run_convert(content, tmp_path, "--num-heads", 2)
        assert "use_gated_mlp = True  [weights]" in result.stdout, result.output
        assert "hidden_act = silu  [convention]" in result.stdout
        assert_same_features(output, model, 56, 56)
        shutil.rmtree(output)


DINOV2_SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}


@pytest.mark.parametrize(
    "model",
    [
        Dinov2Model(Dinov2Config(**DINOV2_SHAPE, initializer_range=0.1)),
        Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**DINOV2_SHAPE, initializer_range=0.1)),
    ],
    ids=lambda model: model.config.model_type,
)
def test_dinov2_of_transformers_converts(model, tmp_path):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.eval().save_pretrained(tmp_path / "source")
    conversion = convert(tmp_path / "source", tmp_path / "out")
    assert conversion.fields["image_size"] == (56, "config.json")
    encoder = SelfViTModel.from_pretrained(tmp_path / "out").eval()
    pixels = torch.randn(2, 3, 56, 56)
    with torch.inference_mode():
        found, expected = encoder(pixels), model(pixels)
    torch.testing.assert_close(
        found.last_hidden_state, expected.last_hidden_state, rtol=0, atol=1e-5
    )
    torch.testing.assert_close(found.pooler_output, expected.pooler_output, rtol=0, atol=1e-5)


def test_a_teacher_of_dino_alone_converts(tmp_path):
    model = timm_vit(img_size=64)
    teacher = {**prefixed(model.state_dict(), "backbone."), "head.mlp.0.weight": torch.zeros(8, 64)}
    result, output = run_convert({"teacher": teacher}, tmp_path, "--num-heads", 2)
    assert "dino or dinov2 teacher, without LayerScale" in result.stdout, result.output
    assert "facebookresearch/dino interpolates positions" in result.stdout
    assert_same_features(output, model, 64, 64)


# --- channels_not_three ---------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 4, 12])
def test_weights_of_other_channels_are_usable_to_the_end(channels, tmp_path):
    model = timm_vit(in_chans=channels, img_size=32)
    result, output = run_convert(model.state_dict(), tmp_path, "--num-heads", 2)
    assert result.exit_code == 0, result.output
    assert f"num_channels = {channels}  [weights]" in result.stdout
    assert "guess: mean and std 0.5 for every channel" in result.stdout
    assert "--image-mean and --image-std, which `selfvit stats` measures" in result.stdout
    assert audit(output).findings == []

    data = write_bands(tmp_path / "bands", channels)
    result = run("embed", output, "--data", data, "--output", tmp_path / "vectors")
    assert result.exit_code == 0, result.output
    table = read_vectors(tmp_path / "vectors")
    vectors = np.stack(table["embedding"].to_numpy())
    paths = sorted(data.iterdir())
    assert vectors.shape == (3, 64)
    np.testing.assert_allclose(
        vectors, Embedder.from_pretrained(output)([str(path) for path in paths]), atol=1e-5
    )
    assert_same_features(output, model, 32, 32, channels=channels)


def test_images_of_other_channels_are_named(tmp_path, image_folder):
    _, output = run_convert(vit_weights(in_chans=4, img_size=32), tmp_path, "--num-heads", 2)
    result = run("embed", output, "--data", image_folder, "--output", tmp_path / "vectors")
    assert result.exit_code == 2
    assert "has 3 channels, but the model reads 4 (num_channels)" in result.stderr


def test_mean_and_std_of_other_channels_are_options(tmp_path):
    mean, std = [0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]
    result, output = run_convert(
        vit_weights(in_chans=4, img_size=32),
        tmp_path,
        *("--num-heads", 2, "--image-mean", *mean, "--image-std", *std),
    )
    assert "option: image_mean" in result.stdout, result.output
    assert "guess         image_mean" not in result.stdout
    stored = json.loads((output / "preprocessor_config.json").read_text())
    assert (stored["image_mean"], stored["image_std"], stored["num_channels"]) == (mean, std, 4)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--image-mean", 0.1, 0.2, 0.3, "--image-std", 1, 1, 1], "each of the 4 channels"),
        (["--image-mean", 0.1, 0.2, 0.3, 0.4], "belong together"),
        (["--image-mean", 0, 0, 0, 0, "--image-std", 1, 1, 1, 0], "above 0"),
        (["--statistics", "imagenet"], "each of the 4 channels"),
        (["--statistics", "half", "--image-mean", 0, "--image-std", 1], "exclude each other"),
    ],
)
def test_mean_and_std_that_do_not_fit_are_refused(options, part, tmp_path):
    result, output = run_convert(vit_weights(in_chans=4), tmp_path, "--num-heads", 2, *options)
    assert_one_line_error(result, part)
    assert not output.exists()


def test_a_processor_whose_output_depends_on_the_image_is_refused(tmp_path):
    # It was accepted, and the first batch of different images ended in a traceback.
    ViTImageProcessor(size={"shortest_edge": 32}).save_pretrained(tmp_path / "source")
    torch.save(vit_weights(img_size=32), tmp_path / "source" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="32 x 48 pixels from 200 x 300 and 48 x 32.*crop_size"):
        convert(tmp_path / "source", tmp_path / "out", num_heads=2)


def test_the_processor_of_the_source_is_used_for_its_channels(tmp_path):
    config = SelfViTConfig(num_channels=4, image_size=32)
    folder = tmp_path / "source"
    build_processor(
        config, mean=[0.1] * 4, std=[0.2] * 4, crop_ratio=1.5, pixel_range=(0, 4095)
    ).save_pretrained(folder)
    torch.save(vit_weights(in_chans=4, img_size=32), folder / "pytorch_model.bin")
    conversion = convert(folder, tmp_path / "out", num_heads=2)
    assert conversion.preprocessing == "preprocessor_config.json of the source"
    processor = Embedder.from_pretrained(tmp_path / "out").processor
    assert (processor.image_mean, processor.pixel_range) == ([0.1] * 4, (0, 4095))
    assert processor.size["shortest_edge"] == 48


def test_a_processor_of_other_channels_is_found_by_audit_and_refused_by_export(tmp_path):
    _, output = run_convert(vit_weights(in_chans=4, img_size=32), tmp_path, "--num-heads", 2)
    build_processor(SelfViTConfig(image_size=32)).save_pretrained(output)
    result = run("audit", output)
    assert "wrong number of channels" in result.output
    assert "the model reads 4 channels (num_channels)" in result.output
    assert "`selfvit stats`" in result.output
    result = run("export", output, "--to", "transformers", "--output", tmp_path / "exported")
    assert_one_line_error(result, "gives 3 channels, but the encoder reads 4")


@pytest.mark.parametrize("channels", [1, 4, 12])
def test_exports_of_other_channels_work_or_are_refused_by_name(channels, tmp_path):
    _, output = run_convert(vit_weights(in_chans=channels, img_size=32), tmp_path, "--num-heads", 2)
    for to in ("transformers", "timm"):
        for options in ([], ["--overwrite"]):
            exported = tmp_path / to
            result = run("export", output, "--to", to, "--output", exported, *options)
            assert result.exit_code == 0, result.output
        assert f"(num_channels {channels})" in result.output
        assert audit(exported).findings == []
    model = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    assert_same_features(output, model, 32, 32, channels=channels)
    result = run(
        *("export", output, "--to", "sentence-transformers", "--output", tmp_path / "sentences")
    )
    assert_one_line_error(result, f"num_channels ({channels}) must be 3", "--to onnx")


def test_an_onnx_graph_of_four_channels(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    _, output = run_convert(vit_weights(in_chans=4, img_size=32), tmp_path, "--num-heads", 2)
    result = run("export", output, "--to", "onnx", "--output", tmp_path / "onnx")
    assert result.exit_code == 0, result.output
    assert "trust_remote_code=True" in result.output
    images = [str(path) for path in sorted(write_bands(tmp_path / "bands", 4).iterdir())]
    embedder = Embedder.from_pretrained(output)
    from selfvit.data.decoding import decode_pixels
    from selfvit.embedding.preprocessing import pixel_format_of, pixel_values_of

    pixels = [
        pixel_values_of(
            decode_pixels(path, pixel_format_of(embedder.processor)), embedder.processor
        )
        for path in images
    ]
    session = runtime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    (found,) = session.run(None, {"pixel_values": torch.stack(pixels).numpy()})
    np.testing.assert_allclose(found, embedder(images), atol=1e-5)


# --- what convert refuses -------------------------------------------------------------------------

vit = timm.models.vision_transformer
UNSUPPORTED = {
    "a patch that is not square": (
        "patch_embed.proj.weight",
        lambda: vit_weights(patch_size=(16, 8)),
    ),
    "no class token": ("cls_token", lambda: vit_weights(class_token=False, global_pool="avg")),
    "no class token, no fc_norm": (
        "the encoder always has a class token",
        lambda: vit_weights(class_token=False, global_pool="avg", fc_norm=False),
    ),
    "fc_norm": ("fc_norm", lambda: vit_weights(global_pool="avg")),
    "CLIP": ("a norm before the first block", lambda: vit_weights(pre_norm=True)),
    "qk_norm": ("normalized queries and keys", lambda: vit_weights(qk_norm=True)),
    "DeiT": ("distillation token", lambda: vit_weights("deit_tiny_distilled_patch16_224")),
    "BEiT": ("relative positions", lambda: vit_weights("beit_base_patch16_224")),
    "SigLIP": ("attention pooling", lambda: vit_weights("vit_base_patch16_siglip_224")),
    "DINOv3 with learned positions": (
        "storage_tokens",
        lambda: {**vit_weights(init_values=1), "storage_tokens": torch.zeros(1, 4, 64)},
    ),
    "a norm in the gated MLP": (
        "a norm inside the MLP",
        lambda: vit_weights(mlp_layer=timm.layers.SwiGLU, scale_mlp_norm=True),
    ),
    "relative": (
        "relative positions",
        lambda: timm.create_model("vit_relpos_small_patch16_224", depth=1).state_dict(),
    ),
    "hybrid": (
        "a convolutional stem",
        lambda: timm.create_model("vit_tiny_r_s16_p8_224", depth=1).state_dict(),
    ),
    "parallel": ("parallel blocks", lambda: vit_weights(block_fn=vit.ParallelThingsBlock)),
    "RMSNorm": ("not RMSNorm", lambda: vit_weights(norm_layer="rmsnorm")),
    "no positions": ("pos_embed", lambda: vit_weights(pos_embed="none")),
    "no last norm": ("norm.weight", lambda: vit_weights(final_norm=False)),
    "no biases": ("blocks.0.attn.proj.bias", lambda: vit_weights(proj_bias=False)),
    "video": (
        "patch_embed.proj.weight",
        lambda: {**vit_weights(), "patch_embed.proj.weight": torch.zeros(64, 3, 2, 16, 16)},
    ),
    "int8": ("torch.int8", lambda: with_weights(lambda tensor: (99 * tensor).to(torch.int8))),
    "fp8": ("quantized", lambda: with_weights(lambda tensor: tensor.to(torch.float8_e4m3fn))),
    "complex": ("torch.complex64", lambda: with_weights(lambda t: t.to(torch.complex64))),
    "sparse": (
        "blocks.0.mlp.fc1.weight: weights must be dense",
        lambda: with_weights(torch.Tensor.to_sparse, "blocks.0.mlp.fc1.weight"),
    ),
    "meta": ("without values", lambda: with_weights(lambda tensor: tensor.to("meta"))),
    "NaN": (
        "norm.weight: weights must be finite",
        lambda: with_weights(lambda t: t / 0 * 0, "norm.weight"),
    ),
    "infinity": (
        "pos_embed: weights must be finite",
        lambda: with_weights(lambda t: t / 0, "pos_embed"),
    ),
    "empty": ("must not be empty", lambda: with_weights(lambda tensor: tensor[:0])),
    "scalars": ("blocks.0.attn.qkv.weight", lambda: with_weights(torch.Tensor.sum)),
    "a missing block": (
        "all of block 1",
        lambda: {
            name.replace("blocks.1.", "blocks.99999999999."): tensor
            for name, tensor in vit_weights().items()
        },
    ),
    "ResNet": ("conv1.weight", lambda: timm.create_model("resnet18").state_dict()),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_no_command_can_use_is_refused_by_name(name, tmp_path):
    part, build = UNSUPPORTED[name]
    weights = build()
    width = weights.get("norm.weight", torch.zeros(0)).numel()
    options = [] if width > 64 else ["--num-heads", 2]
    result, output = run_convert(weights, tmp_path, *options)
    assert_one_line_error(result, part, "weights.pth")
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"act_layer": "mish"}, "act_layer ('mish')"),
        ({"block_fn": "ResPostBlock"}, "block_fn ('ResPostBlock')"),
        ({"norm_layer": "rmsnorm"}, "norm_layer ('rmsnorm')"),
        (3, "model_args"),
    ],
)
def test_what_only_the_config_of_timm_tells_is_refused(arguments, part, tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    torch.save(vit_weights(), folder / "pytorch_model.bin")
    config = {"architecture": "vit_tiny_patch16_224", "model_args": arguments}
    (folder / "config.json").write_text(json.dumps(config))
    result = run("convert", folder, "--output", tmp_path / "out", "--num-heads", 2)
    assert_one_line_error(result, part, "config.json")


def test_the_activation_in_the_config_of_timm_is_used(tmp_path):
    model = timm_vit(act_layer="quick_gelu", img_size=32)
    folder = tmp_path / "source"
    folder.mkdir()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    config = {"architecture": "vit_x", "model_args": {"act_layer": "quick_gelu", "num_heads": 2}}
    (folder / "config.json").write_text(json.dumps(config))
    conversion = convert(folder, tmp_path / "out")
    assert conversion.fields["hidden_act"] == ("quick_gelu", "config.json")
    assert_same_features(tmp_path / "out", model, 32, 32)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_of_a_network_are_removed(prefix, tmp_path):
    model = timm_vit(img_size=32)
    result, output = run_convert(
        {"state_dict": prefixed(model.state_dict(), prefix)}, tmp_path, "--num-heads", 2
    )
    assert result.exit_code == 0, result.output
    assert_same_features(output, model, 32, 32)


# --- files ----------------------------------------------------------------------------------------


def test_files_without_weights_are_named_in_one_line(tmp_path):
    files = write_damaged_files(tmp_path)
    assert len(files) >= 25
    for file in files:
        result = run("convert", file, "--output", tmp_path / "out", "--num-heads", 2)
        assert_one_line_error(result, file.name)
        assert len(result.stderr) < 700, result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"num_attention_heads": "two"},
        {"num_attention_heads": 0},
        {"image_size": "big"},
        {"image_size": 0},
        {"image_size": [1, 2, 3]},
        {"layer_norm_eps": "small"},
        {"layer_norm_eps": -1.0},
        {"hidden_act": "none"},
        {"hidden_act": 5},
        {"num_hidden_layers": 5},
    ],
    ids=str,
)
def test_values_of_config_json_are_checked(fields, tmp_path):
    shape = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    folder = tmp_path / "source"
    ViTModel(ViTConfig(**shape, intermediate_size=64, image_size=32)).save_pretrained(folder)
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stored, **fields}))
    result = run("convert", folder, "--output", tmp_path / "out")
    assert_one_line_error(result)
    assert any(part in result.stderr for part in ("config.json", "hidden_act", "layer_norm_eps"))
    report = run("audit", folder)
    assert report.exception is None or isinstance(report.exception, SystemExit)


@pytest.mark.parametrize("content", ["{x", "[]", "\xff", '{"image_processor_type": "None"}'])
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_json_files_that_cannot_be_read_are_named(name, content, tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    torch.save(vit_weights(), folder / "pytorch_model.bin")
    (folder / name).write_bytes(content.encode("latin-1"))
    result = run("convert", folder, "--output", tmp_path / "out", "--num-heads", 2)
    if name == "config.json" and content.startswith('{"'):
        assert result.exit_code == 0  # a config.json without fields that are read
    else:
        assert_one_line_error(result, name)


@pytest.mark.parametrize(
    "damage",
    [
        ("model.safetensors", b""),
        ("model.safetensors", b"text"),
        ("model.safetensors", (2**62).to_bytes(8, "little")),
        ("config.json", b"[]"),
        ("config.json", b"{"),
        ("config.json", b'{"model_type": 5}'),
        ("config.json", b'{"model_type": "selfvit", "dino_config": 7}'),
        ("config.json", b'{"model_type": "selfvit", "hidden_size": "x"}'),
        ("preprocessor_config.json", b"{x"),
        ("preprocessor_config.json", b"[1]"),
        (
            "preprocessor_config.json",
            b'{"image_processor_type": "SelfViTImageProcessor", "image_mean": [1, 2]}',
        ),
    ],
    ids=str,
)
def test_audit_has_no_traceback(damage, tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    name, content = damage
    (folder / name).write_bytes(content)
    result = run("audit", folder)
    assert result.exit_code in (1, 2), result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    if result.exit_code == 2:
        assert_one_line_error(result, "config.json" if "model_type" not in result.stderr else "")
