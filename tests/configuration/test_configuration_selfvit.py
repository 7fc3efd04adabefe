"""Configuration of the encoder."""

from __future__ import annotations

import json

import pytest
import torch
from huggingface_hub.errors import (
    StrictDataclassClassValidationError,
    StrictDataclassFieldValidationError,
)
from transformers import AutoConfig

from selfvit import DINOConfig, SelfViTConfig, SelfViTModel
from selfvit.configuration.configuration_selfvit import PATCH_SIZES, SIZES
from tests.objectives import DINOV3, tiny_config, tiny_dino_config

# timm's vit_{tiny,small,base,large}_patch16_224 with num_classes=0
NUM_PARAMETERS = {"ti": 5_524_416, "s": 21_665_664, "b": 85_798_656, "l": 303_301_632}
TIMM_NAMES = {"ti": "tiny", "s": "small", "b": "base", "l": "large"}


def count_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("overrides", "value_and_fix"),
    [
        ({"hidden_size": 0}, ["hidden_size (0)", "at least 1"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers (0)", "at least 1"]),
        ({"num_attention_heads": 0}, ["num_attention_heads (0)", "at least 1"]),
        ({"patch_size": 0}, ["patch_size (0)", "at least 1"]),
        ({"num_channels": -1}, ["num_channels (-1)", "at least 1"]),
        (
            {"hidden_size": 192, "num_attention_heads": 5},
            ["hidden_size (192)", "num_attention_heads (5)", "use 3 "],
        ),
        (
            {"hidden_size": 32, "num_attention_heads": 3},
            ["hidden_size (32)", "num_attention_heads (3)", "use 1 "],
        ),
        ({"image_size": [32, 32, 32]}, ["image_size ([32, 32, 32])", "(height, width)"]),
        ({"image_size": 30}, ["image_size (30)", "patch_size (8)", "use 24 or 32."]),
        ({"image_size": (32, 27)}, ["image_size (27)", "patch_size (8)", "use 24 or 32."]),
        ({"image_size": 5}, ["image_size (5)", "use 8."]),
        ({"image_size": 0}, ["image_size (0)", "use 8."]),
        (
            {"hidden_size": 30, "position_embedding_type": "sincos"},
            ["hidden_size (30)", "multiple of 4", "use 32", "or learned positions"],
        ),
        (
            {"num_attention_heads": 16, "position_embedding_type": "rotary"},
            ["num_attention_heads (16)", "which is 2", "multiple of 4", "another number of heads"],
        ),
        ({"rope_theta": 0}, ["rope_theta (0)", "above 0"]),
        (
            {"pos_embed_rescale": 2},
            ["pos_embed_rescale (2)", "position_embedding_type is 'learned'", "use 'rotary'"],
        ),
        (
            {"pos_embed_jitter": 0.5, "position_embedding_type": "rotary"},
            ["pos_embed_jitter (0.5)", "at least 1"],
        ),
        (
            {"pos_embed_shift": -0.1, "position_embedding_type": "rotary"},
            ["pos_embed_shift (-0.1)", "0 or more"],
        ),
        ({"num_register_tokens": -1}, ["num_register_tokens (-1)", "0 or more"]),
        ({"drop_path_rate": 1.0}, ["drop_path_rate (1.0)", "below 1"]),
        ({"drop_path_rate": -0.1}, ["drop_path_rate (-0.1)", "at least 0"]),
        ({"pooling": "max"}, ["pooling ('max')", "cls, mean, cls+mean, gem", "concat:4"]),
        ({"pooling": "concat:0"}, ["pooling ('concat:0')", "concat:4"]),
        (
            {"pooling": "concat:4"},
            ["pooling ('concat:4')", "num_hidden_layers (3)", "at most concat:3"],
        ),
    ],
)
def test_an_error_names_value_and_fix(overrides, value_and_fix):
    with pytest.raises(StrictDataclassClassValidationError) as error:
        tiny_config(**overrides)
    for part in value_and_fix:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size", "32"),
        ("hidden_size", 32.0),
        ("qkv_bias", "no"),
        ("pooling", 3),
        ("image_size", (32, 32, 32)),
        ("position_embedding_type", "sin"),
    ],
)
def test_a_field_of_the_wrong_type_is_an_error(name, value):
    # postponed annotations used to disable these checks: "sin" was accepted
    with pytest.raises(StrictDataclassFieldValidationError, match=name):
        tiny_config(**{name: value})


@pytest.mark.parametrize("size", list(SIZES))
def test_named_sizes_have_the_parameters_of_the_known_vits(size):
    with torch.device("meta"):
        model = SelfViTModel(SelfViTConfig.from_name(f"vit{size}16"))
    assert count_parameters(model) == NUM_PARAMETERS[size]


@pytest.mark.parametrize("size", list(SIZES))
def test_named_sizes_have_the_parameters_of_timm(size):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        model = SelfViTModel(SelfViTConfig.from_name(f"vit{size}16"))
        peer = timm.create_model(f"vit_{TIMM_NAMES[size]}_patch16_224", num_classes=0)
    assert count_parameters(model) == count_parameters(peer)


@pytest.mark.parametrize("patch_size", PATCH_SIZES)
def test_a_name_ends_with_the_patch_size(patch_size):
    config = SelfViTConfig.from_name(f"vits{patch_size}")
    assert config.patch_size == patch_size
    assert config.grid_size == (224 // patch_size, 224 // patch_size)


def test_overrides_take_precedence_over_the_name():
    config = SelfViTConfig.from_name(
        "vits16", image_size=96, pooling="cls+mean", num_hidden_layers=2, dino_config=DINOConfig()
    )
    assert (config.hidden_size, config.num_hidden_layers, config.image_size) == (384, 2, 96)
    assert (config.pooling, config.embedding_size) == ("cls+mean", 768)
    assert config.dino_config.num_prototypes == 65536


@pytest.mark.parametrize("name", ["vitx16", "vits15", "vits", "resnet50", "vits16-extra"])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(ValueError) as error:
        SelfViTConfig.from_name(name)
    assert repr(name) in str(error.value)
    for known in ("vitti8", "vits16", "vitb14", "vitl32"):
        assert known in str(error.value)


def test_image_size_is_height_then_width():
    config = tiny_config(image_size=(48, 32))
    assert config.image_height_width == (48, 32)
    assert config.grid_size == (6, 4)
    positions = SelfViTModel(config).embeddings.position_embeddings
    assert positions.shape == (1, 1 + 6 * 4, 32)


@pytest.mark.parametrize(
    ("pooling", "num_class_blocks", "embedding_size"),
    [("cls", 1, 32), ("mean", 0, 32), ("cls+mean", 1, 64), ("gem", 0, 32), ("concat:3", 3, 96)],
)
def test_embedding_size_follows_the_pooling(pooling, num_class_blocks, embedding_size):
    config = tiny_config(pooling=pooling)
    assert config.num_class_blocks == num_class_blocks
    assert config.embedding_size == embedding_size


def test_prefix_tokens_are_the_class_token_and_the_registers():
    assert tiny_config().num_prefix_tokens == 1
    assert tiny_config(num_register_tokens=4).num_prefix_tokens == 5


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {
            "image_size": [48, 32],
            "mlp_ratio": 2,
            "layerscale_value": 1e-5,
            "drop_path_rate": 0.1,
            "num_register_tokens": 4,
            "pooling": "concat:2",
            "position_embedding_type": "sincos",
            "use_mask_token": True,
            "num_labels": 7,
            "dino_config": {"num_prototypes": 99, "teacher_temperature": 0.05},
        },
        {
            **DINOV3,
            "rope_theta": 50,
            "pos_embed_shift": 0.1,
            "pos_embed_jitter": 1.2,
            "pos_embed_rescale": 2,
        },
    ],
)
def test_a_round_trip_keeps_every_field(tmp_path, overrides):
    config = tiny_config(**overrides)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is SelfViTConfig
    assert loaded.to_diff_dict() == config.to_diff_dict()
    if "dino_config" in overrides:
        assert isinstance(loaded.dino_config, DINOConfig)
        assert loaded.dino_config.num_prototypes == 99
        assert loaded.num_labels == 7


def test_a_round_trip_keeps_a_tuple_of_sizes(tmp_path):
    tiny_config(image_size=(48, 32)).save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).image_height_width == (48, 32)


def test_from_pretrained_accepts_overrides(tmp_path):
    tiny_config(dino_config=tiny_dino_config()).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path, pooling="mean", drop_path_rate=0.2)
    assert (config.pooling, config.drop_path_rate) == ("mean", 0.2)
    assert config.dino_config.num_prototypes == 24


def test_a_loaded_configuration_is_validated(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "pooling": "max"}))
    with pytest.raises(StrictDataclassClassValidationError, match="pooling"):
        AutoConfig.from_pretrained(tmp_path)


def test_the_configuration_of_an_absent_objective_is_none(tmp_path):
    config = tiny_config()
    assert config.dino_config is None
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).dino_config is None


def test_stages_are_the_blocks():
    config = tiny_config(out_features=["stage1", "stage3"])
    assert config.stage_names == ["stem", "stage1", "stage2", "stage3"]
    assert config.out_features == ["stage1", "stage3"]
    assert list(config.out_indices) == [1, 3]
