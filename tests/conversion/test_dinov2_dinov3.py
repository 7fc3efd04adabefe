"""Encoders of DINOv2 (SwiGLU, registers) and DINOv3 (rotary positions), in and out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel

from selfvit import SelfViTModel
from selfvit.conversion.audit.audit import audit
from selfvit.conversion.convert import convert
from selfvit.conversion.exporters.export import export
from selfvit.embedding.embedder import Embedder
from selfvit.sharing.provenance import derived_provenance
from tests.conversion.source_files import save_weights
from tests.conversion.test_convert_libraries import random_weights
from tests.golden import load_golden, weights_of
from tests.image_files import noise
from tests.objectives import DINOV3

CLOSE = {"rtol": 0, "atol": 1e-5}
DINOV3_FILES = ["dinov3_vit", "dinov3_vit_gated", "dinov3_vit_no_bias"]
GOLDEN = [*DINOV3_FILES, "dinov2_swiglu", "dinov2_with_registers_swiglu"]


def write_folder(name: str, folder: Path) -> Path:
    """Write a reference model as a folder of transformers."""
    tensors, metadata = load_golden(name)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(metadata["config_json"]))
    save_file(weights_of(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def assert_identical(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def images_of(height: int, width: int, batch_size: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch_size, 3, height, width, generator=generator)


@pytest.fixture(scope="module", params=GOLDEN)
def converted(request, tmp_path_factory):
    """Return the name of a reference, its folder, the conversion and its folder."""
    folder = tmp_path_factory.mktemp("golden")
    source = write_folder(request.param, folder / "source")
    return request.param, source, convert(source, folder / "out"), folder / "out"


@torch.no_grad()
def test_outputs_match_the_reference(converted):
    name, _, _, output = converted
    golden, _ = load_golden(name)
    model = AutoModel.from_pretrained(output).eval()
    assert type(model) is SelfViTModel
    for size in ("square", "rect"):
        images, mask = golden[f"{size}.pixel_values"], golden[f"{size}.bool_masked_pos"]
        plain, masked = model(images), model(images, bool_masked_pos=mask)
        expected = golden[f"{size}.last_hidden_state"]
        torch.testing.assert_close(plain.last_hidden_state, expected, **CLOSE)
        torch.testing.assert_close(plain.pooler_output, golden[f"{size}.pooler_output"], **CLOSE)
        torch.testing.assert_close(model.embed(images), golden[f"{size}.pooler_output"], **CLOSE)
        expected = golden[f"{size}.masked.last_hidden_state"]
        torch.testing.assert_close(masked.last_hidden_state, expected, **CLOSE)


def test_the_configuration_is_that_of_the_source(converted):
    name, _, conversion, _ = converted
    theirs = load_golden(name)[1]["config_json"]
    config = conversion.config
    assert not conversion.left_out and not conversion.new and not conversion.differences
    assert config.layer_norm_eps == theirs["layer_norm_eps"]
    assert config.num_register_tokens == theirs.get("num_register_tokens", 0)
    assert config.use_mask_token and config.layerscale_value == 1.0
    if name in DINOV3_FILES:
        assert config.position_embedding_type == "rotary"
        assert (config.rope_theta, config.pos_embed_rescale) == (100.0, 2.0)
        biases = tuple(theirs[f"{part}_bias"] for part in ("query", "key", "value"))
        assert config.projection_biases == biases
        assert config.use_gated_mlp == theirs["use_gated_mlp"]
        assert config.intermediate_size == theirs["intermediate_size"] == 64
        assert config.hidden_act == theirs["hidden_act"]
    else:
        assert config.use_gated_mlp and config.hidden_act == "silu"  # config.json says "gelu"
        assert config.intermediate_size == 88
        assert config.interpolate_antialias == ("registers" in name)


def test_the_export_is_the_source(converted, tmp_path):
    _, source, _, output = converted
    report = export(output, tmp_path / "theirs", to="transformers")
    assert report.fidelity.max_difference < 1e-5 and not report.fidelity.notes
    again = load_file(tmp_path / "theirs" / "model.safetensors")
    assert_identical(again, load_file(source / "model.safetensors"))
    ours, theirs = (
        json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "theirs", source)
    )
    different = {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}
    assert different <= {"transformers_version", "hidden_act"}  # hidden_act: ignored by SwiGLU


@torch.no_grad()
def test_timm_gives_the_same_vectors(converted, tmp_path):
    name, _, conversion, output = converted
    report = export(output, tmp_path / "timm", to="timm", pooling="mean")
    assert report.fidelity.max_difference < 1e-5
    only_this_size = "at other sizes timm interpolates" in " ".join(report.fidelity.notes)
    assert only_this_size == (name == "dinov2_swiglu")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    ours = AutoModel.from_pretrained(output, pooling="mean").eval()
    sizes = [(32, 32)] if only_this_size else [(32, 32), (40, 24)]
    for images in (images_of(*size) for size in sizes):
        torch.testing.assert_close(theirs(images), ours(images).pooler_output, **CLOSE)
    again = convert(tmp_path / "timm", tmp_path / "again")
    fields = ("use_gated_mlp", "position_embedding_type", "projection_biases", "pooling")
    expected = {**{name: getattr(conversion.config, name) for name in fields}, "pooling": "mean"}
    assert {name: getattr(again.config, name) for name in fields} == expected
    weights = load_file(tmp_path / "again" / "model.safetensors")
    stored = load_file(output / "model.safetensors")
    assert_identical(weights, {k: t for k, t in stored.items() if k != "embeddings.mask_token"})


# for rotary positions, see test_engines.py::test_float32_vectors_are_those_of_torch_for_any_shape
def test_onnx_gives_the_same_vectors_at_other_sizes(tmp_path):
    source = write_folder("dinov2_with_registers_swiglu", tmp_path / "source")
    convert(source, tmp_path / "ours", save_code=False)
    # also compares at 40 x 48 pixels
    report = export(tmp_path / "ours", tmp_path / "onnx", to="onnx", pooling="cls+mean")
    assert report.fidelity.max_difference < 1e-5


# At full size, against live models


def build_stock(name: str) -> Any:
    """Return a stock ViT-S with random weights."""
    size = {"hidden_size": 384, "num_attention_heads": 6, "num_register_tokens": 4}
    options = {} if name == "DINOv3ViT" else {"use_swiglu_ffn": True}
    config = getattr(transformers, f"{name}Config")(**size, **options)
    return random_weights(getattr(transformers, f"{name}Model")(config))


@pytest.mark.parametrize("name", ["DINOv3ViT", "Dinov2WithRegisters"])
@torch.no_grad()
def test_vit_s_of_transformers_in_and_out(name, tmp_path):
    theirs = build_stock(name)
    theirs.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours", save_code=False)
    ours = AutoModel.from_pretrained(tmp_path / "ours").eval()
    report = export(tmp_path / "ours", tmp_path / "again", to="transformers")
    assert not report.fidelity.notes
    again = AutoModel.from_pretrained(tmp_path / "again").eval()
    assert type(again) is type(theirs)
    patch_size = ours.config.patch_size
    for rows, columns in ((224 // patch_size, 224 // patch_size), (10, 18)):
        images = images_of(rows * patch_size, columns * patch_size, 1)
        expected = theirs(images)
        for model in (ours, again):
            found = model(images)
            for output in ("last_hidden_state", "pooler_output"):
                torch.testing.assert_close(found[output], expected[output], rtol=0, atol=1e-4)
    assert_identical(again.state_dict(), theirs.state_dict())


# timm's and the authors' names


def tiny_dinov3(name: str, **options: Any) -> nn.Module:
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4}
    return random_weights(timm.create_model(name, **size, **options))


@pytest.mark.parametrize(
    "name",
    [
        "vit_small_patch16_dinov3",
        "vit_small_patch16_dinov3_qkvb",
        "vit_small_plus_patch16_dinov3",
        "vit_small_plus_patch16_dinov3_qkvb",
    ],
)
@torch.no_grad()
def test_dinov3_of_timm_in_and_out(name, tmp_path):
    theirs = tiny_dinov3(name)
    conversion = convert(
        save_weights(theirs.state_dict(), tmp_path), tmp_path / "ours", num_heads=4
    )
    assert conversion.kind == "timm DINOv3"
    has_bias = name.endswith("_qkvb")
    assert conversion.config.projection_biases == (has_bias, False, has_bias)
    ours = AutoModel.from_pretrained(tmp_path / "ours").eval()
    for images in (images_of(32, 32), images_of(24, 48)):
        expected = theirs.forward_features(images)
        torch.testing.assert_close(ours(images).last_hidden_state, expected, rtol=0, atol=1e-5)
    export(tmp_path / "ours", tmp_path / "again", to="timm")
    assert_identical(load_file(tmp_path / "again" / "model.safetensors"), theirs.state_dict())


@pytest.mark.parametrize("layer", ["SwiGLUPacked", "SwiGLU"])
@torch.no_grad()
def test_gated_mlps_of_timm_convert(layer, tmp_path):
    size = {"img_size": 56, "patch_size": 14, "embed_dim": 64, "depth": 2, "num_heads": 1}
    model = timm.models.VisionTransformer(
        **size, mlp_layer=getattr(timm.layers, layer), act_layer=nn.SiLU, init_values=1e-5
    )
    theirs = random_weights(model)
    conversion = convert(save_weights(theirs.state_dict(), tmp_path), tmp_path / "ours")
    assert conversion.config.use_gated_mlp
    assert conversion.config.intermediate_size == (128 if layer == "SwiGLUPacked" else 256)
    assert conversion.fields["hidden_act"] == ("silu", "convention")
    ours = AutoModel.from_pretrained(tmp_path / "ours").eval()
    expected = theirs.forward_features(images_of(56, 56))
    torch.testing.assert_close(ours(images_of(56, 56)).last_hidden_state, expected, **CLOSE)


def released_weights(name: str) -> dict[str, Tensor]:
    """Return a reference as the authors of DINOv3 release it, with a mask of the key biases."""
    weights = weights_of(load_golden(name)[0])
    renamed: dict[str, Tensor] = {"rope_embed.periods": 100.0 ** (torch.arange(4) / 4)}
    for old, tensor in weights.items():
        if "_proj" in old and "mlp" not in old and "o_proj" not in old:
            continue
        new = old.removeprefix("embeddings.").replace("layer.", "blocks.", 1)
        for theirs, ours in (
            ("register_tokens", "storage_tokens"),
            ("patch_embeddings.", "patch_embed.proj."),
            ("attention.o_proj.", "attn.proj."),
            ("layer_scale1.lambda1", "ls1.gamma"),
            ("layer_scale2.lambda1", "ls2.gamma"),
            ("gate_proj.", "w1."),
            ("up_proj.", "w2." if "gated" in name else "fc1."),
            ("down_proj.", "w3." if "gated" in name else "fc2."),
        ):
            new = new.replace(theirs, ours)
        renamed[new] = tensor
    for block in range(2):
        parts = [f"layer.{block}.attention.{part}_proj." for part in "qkv"]
        masked = torch.full((32,), 0.3)  # not zero, and not to be used
        biases = [weights.get(f"{part}bias", masked) for part in parts]
        qkv = f"blocks.{block}.attn.qkv."
        renamed[f"{qkv}weight"] = torch.cat([weights[f"{part}weight"] for part in parts])
        renamed[f"{qkv}bias"] = torch.cat(biases)
        renamed[f"{qkv}bias_mask"] = torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(32)
    return renamed


@pytest.mark.parametrize("name", ["dinov3_vit", "dinov3_vit_gated"])
@torch.no_grad()
def test_released_files_of_dinov3_convert(name, tmp_path):
    golden, _ = load_golden(name)
    source = save_weights(released_weights(name), tmp_path)
    conversion = convert(source, tmp_path / "ours", num_heads=2)
    assert conversion.kind == "facebookresearch/dinov3 backbone"
    assert conversion.config.image_size == 224
    model = AutoModel.from_pretrained(tmp_path / "ours").eval()
    for size in ("square", "rect"):
        found = model(golden[f"{size}.pixel_values"]).last_hidden_state
        torch.testing.assert_close(found, golden[f"{size}.last_hidden_state"], **CLOSE)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rope_embed.periods", torch.ones(4), r"rope_embed\.periods must be the periods"),
        ("blocks.1.attn.qkv.bias_mask", torch.ones(96), "must mask the biases of the keys"),
    ],
)
def test_other_periods_or_masks_are_refused(name, value, message, tmp_path):
    source = save_weights({**released_weights("dinov3_vit"), name: value}, tmp_path)
    with pytest.raises(ValueError, match=message):
        convert(source, tmp_path / "out", num_heads=2)
    assert not (tmp_path / "out").exists()


def test_released_files_of_dinov2_with_registers_convert(tmp_path):
    golden, _ = load_golden("dinov2_with_registers_swiglu")
    weights = {}
    stored = weights_of(golden)
    for old, tensor in stored.items():
        if ".attention.attention." in old:
            continue
        new = old.removeprefix("embeddings.").replace("encoder.layer.", "blocks.")
        for theirs, ours in (
            ("position_embeddings", "pos_embed"),
            ("patch_embeddings.projection.", "patch_embed.proj."),
            ("attention.output.dense.", "attn.proj."),
            ("layer_scale1.lambda1", "ls1.gamma"),
            ("layer_scale2.lambda1", "ls2.gamma"),
            ("weights_in.", "w12."),
            ("weights_out.", "w3."),
            ("layernorm.", "norm."),
        ):
            new = new.replace(theirs, ours)
        weights[new] = tensor
    for block in range(2):
        for kind in ("weight", "bias"):
            parts = [
                stored[f"encoder.layer.{block}.attention.attention.{part}.{kind}"]
                for part in ("query", "key", "value")
            ]
            weights[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat(parts)
    conversion = convert(save_weights(weights, tmp_path), tmp_path / "ours", num_heads=2)
    assert "facebookresearch/dinov2" in conversion.kind and not conversion.differences
    model = AutoModel.from_pretrained(tmp_path / "ours").eval()
    for size in ("square", "rect"):
        with torch.no_grad():
            found = model(golden[f"{size}.pixel_values"]).last_hidden_state
        torch.testing.assert_close(found, golden[f"{size}.last_hidden_state"], **CLOSE)


# Strictness


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("dinov3_vit", "layer.1.attention.q_proj.bias"),
        ("dinov3_vit", "layer.0.mlp.up_proj.weight"),
        ("dinov3_vit_gated", "layer.1.mlp.gate_proj.bias"),
        ("dinov2_swiglu", "encoder.layer.0.mlp.weights_in.weight"),
        ("dinov2_swiglu", "embeddings.position_embeddings"),
    ],
)
def test_a_missing_tensor_is_named(name, left_out, tmp_path):
    source = write_folder(name, tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    del weights[left_out]
    save_file(weights, source / "model.safetensors")
    with pytest.raises(ValueError, match=left_out.replace(".", r"\.")):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("field", "value"),
    [("use_gated_mlp", True), ("key_bias", True), ("value_bias", False), ("hidden_size", 48)],
)
def test_config_json_must_agree_with_the_weights(field, value, tmp_path):
    source = write_folder("dinov3_vit", tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(ValueError, match=f"it has {field} {value}"):
        convert(source, tmp_path / "out")


def test_rotary_positions_of_other_timm_models_are_refused(tmp_path):
    # their positions are different, and no tensor shows it
    size = {"patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 4}
    theirs = timm.create_model("vit_small_patch16_rope_224", img_size=32, **size)
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.qkv\.bias"):
        convert(save_weights(theirs.state_dict(), tmp_path), tmp_path / "out", num_heads=4)


@pytest.mark.parametrize(
    ("to", "overrides", "message"),
    [
        ("transformers", {"pooling": "mean"}, r"dinov3_vit is the class token. Use --pooling cls"),
        ("timm", {"layer_norm_eps": 1e-6}, r"layer_norm_eps \(1e-06\) must be 1e-05"),
        ("timm", {"hidden_act": "gelu"}, r"hidden_act \('gelu'\) must be 'silu'"),
        ("timm", {"key_bias": True}, "key_bias.* cannot be expressed"),
        ("sentence-transformers", {"pooling": "mean"}, "encoder with register tokens"),
        (
            "transformers",
            {"position_embedding_type": "learned", "mlp_ratio": 3},
            r"mlp_ratio \(3\) must give the MLP a width of 2/3 .* not 96",
        ),
        (
            "transformers",
            {"position_embedding_type": "learned", "hidden_act": "gelu"},
            r"hidden_act \('gelu'\) of a gated MLP must be 'silu'",
        ),
    ],
)
def test_what_a_format_cannot_express_is_refused(to, overrides, message, make_checkpoint, tmp_path):
    checkpoint = make_checkpoint(**{**DINOV3, "layer_norm_eps": 1e-5, **overrides})
    with pytest.raises(ValueError, match=message):
        export(checkpoint, tmp_path / "out", to=to)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "overrides",
    [
        {"layerscale_value": None, "num_register_tokens": 0, "qkv_bias": False},
        {"image_size": [16, 40], "query_bias": False, "hidden_act": "gelu", "mlp_ratio": 2.5},
        {"position_embedding_type": "learned", "mlp_ratio": 2.75},  # a key bias of zeros
    ],
)
def test_other_encoders_survive_the_export_to_transformers(overrides, make_checkpoint, tmp_path):
    checkpoint = make_checkpoint(**{**DINOV3, "layer_norm_eps": 1e-5, **overrides})
    report = export(checkpoint, tmp_path / "out", to="transformers")
    assert report.fidelity.max_difference < 1e-5
    convert(tmp_path / "out", tmp_path / "again")
    assert derived_provenance(tmp_path / "again").license is None  # not DINOv3's weights


# License and preprocessing


def test_the_license_of_dinov3_travels(converted, tmp_path):
    name, _, _, output = converted
    card = (output / "README.md").read_text()
    report = json.loads((output / "conversion.json").read_text())
    if name not in DINOV3_FILES:
        assert "dinov3" not in card and report["license"] is None
        return
    assert "license: other\n" in card and "license_name: dinov3-license\n" in card
    assert "under the DINOv3 License" in card and "dinov3-license" in report["license_name"]
    provenance = derived_provenance(output)  # of a model that is trained from it
    assert (provenance.license, provenance.license_name) == ("other", "dinov3-license")
    assert provenance.license_link.endswith("/dinov3-license")
    with pytest.raises(ValueError, match="does not satisfy the license"):
        derived_provenance(output, "apache-2.0")
    export(output, tmp_path / "out", to="transformers")
    stored = json.loads((tmp_path / "out" / "selfvit_export.json").read_text())
    assert (stored["license"], stored["license_name"]) == ("other", "dinov3-license")
    convert(tmp_path / "out", tmp_path / "again")
    assert derived_provenance(tmp_path / "again").license_name == "dinov3-license"


def test_the_processor_of_dinov3_is_kept_and_the_vectors_are_those_of_a_pipeline(tmp_path):
    source = write_folder("dinov3_vit", tmp_path / "source")
    sides = {"height": 32, "width": 32}
    stored = transformers.DINOv3ViTImageProcessor(size=sides, image_mean=[0.1, 0.2, 0.3])
    stored.save_pretrained(source)
    conversion = convert(source, tmp_path / "out")
    assert conversion.preprocessing == "preprocessor_config.json of the source"
    assert not conversion.guesses
    noise(70, 50, 1).save(tmp_path / "photo.png")
    extract = transformers.pipeline("image-feature-extraction", model=str(source), device="cpu")
    theirs = extract(str(tmp_path / "photo.png"), pool=True)[0]
    ours = Embedder.from_pretrained(tmp_path / "out", device="cpu")(str(tmp_path / "photo.png"))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert not audit(tmp_path / "out").findings
