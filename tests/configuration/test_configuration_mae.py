"""Configuration of MAE, and its default pooling."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
from huggingface_hub.errors import (
    StrictDataclassClassValidationError,
    StrictDataclassFieldValidationError,
)
from transformers import AutoConfig, PreTrainedConfig

from selfvit import MAEConfig, SelfViTConfig
from tests.objectives import tiny_config, tiny_dino_config, tiny_mae_config


@pytest.mark.parametrize(
    ("overrides", "value_and_fix"),
    [
        ({"mask_ratio": 0}, ["mask_ratio (0)", "above 0 and below 1", "0.75"]),
        ({"mask_ratio": 1}, ["mask_ratio (1)", "at least one patch"]),
        ({"mask_ratio": -0.1}, ["mask_ratio (-0.1)", "above 0"]),
        ({"mask_ratio": float("nan")}, ["mask_ratio (nan)", "above 0"]),
        ({"decoder_hidden_size": 0}, ["decoder_hidden_size (0)", "at least 1"]),
        ({"decoder_num_layers": 0}, ["decoder_num_layers (0)", "at least 1"]),
        ({"decoder_num_attention_heads": 0}, ["decoder_num_attention_heads (0)", "at least 1"]),
        (
            {"decoder_hidden_size": 100},
            ["decoder_hidden_size (100)", "decoder_num_attention_heads (16)", "use 2 "],
        ),
        (
            {"decoder_hidden_size": 30, "decoder_num_attention_heads": 2},
            ["decoder_hidden_size (30)", "multiple of 4", "use 32."],
        ),
        ({"decoder_mlp_ratio": 0}, ["decoder_mlp_ratio (0)", "the usual choice is 4"]),
    ],
)
def test_an_error_names_value_and_fix(overrides, value_and_fix):
    with pytest.raises(StrictDataclassClassValidationError) as error:
        MAEConfig(**overrides)
    for part in value_and_fix:
        assert part in str(error.value)


@pytest.mark.parametrize(("name", "value"), [("norm_pix_loss", "yes"), ("decoder_num_layers", 2.0)])
def test_a_field_of_the_wrong_type_is_an_error(name, value):
    with pytest.raises(StrictDataclassFieldValidationError, match=name):
        MAEConfig(**{name: value})


def test_defaults_are_from_the_paper():
    config = MAEConfig()
    assert config.mask_ratio == 0.75
    assert (config.decoder_hidden_size, config.decoder_num_layers) == (512, 8)
    assert (config.decoder_num_attention_heads, config.decoder_mlp_ratio) == (16, 4.0)
    assert config.norm_pix_loss


def test_only_its_own_fields_are_written(tmp_path):
    tiny_config(mae_config=MAEConfig()).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())["mae_config"]
    inherited = {field.name for field in fields(PreTrainedConfig)}
    own = {field.name for field in fields(MAEConfig)} - inherited
    assert set(written) == own | {"model_type"}
    assert written["model_type"] == "selfvit_mae"


def test_a_round_trip_keeps_it_nested_and_alone(tmp_path):
    config = tiny_mae_config(mask_ratio=0.6, norm_pix_loss=False)
    config.save_pretrained(tmp_path / "alone")
    tiny_config(mae_config=config).save_pretrained(tmp_path / "inside")
    alone = MAEConfig.from_pretrained(tmp_path / "alone")
    inside = AutoConfig.from_pretrained(tmp_path / "inside").mae_config
    assert alone.to_dict() == inside.to_dict() == config.to_dict()
    assert (inside.mask_ratio, inside.norm_pix_loss) == (0.6, False)


def test_a_dictionary_becomes_a_validated_configuration():
    config = SelfViTConfig(mae_config={"mask_ratio": 0.5})
    assert isinstance(config.mae_config, MAEConfig)
    assert config.mae_config.mask_ratio == 0.5
    with pytest.raises(StrictDataclassClassValidationError, match="mask_ratio"):
        SelfViTConfig(mae_config={"mask_ratio": 2})


# Pooling


@pytest.mark.parametrize("mae", [MAEConfig(), {"mask_ratio": 0.5}, {}])
def test_mae_pools_by_the_mean(mae):
    assert SelfViTConfig(mae_config=mae).pooling == "mean"


def test_other_configurations_pool_by_the_class_token():
    assert SelfViTConfig().pooling == "cls"
    assert SelfViTConfig(dino_config=tiny_dino_config()).pooling == "cls"


@pytest.mark.parametrize("pooling", ["auto", "cls", "mean", "cls+mean", "concat:2"])
@pytest.mark.parametrize("has_mae", [True, False])
def test_a_round_trip_keeps_the_pooling(pooling, has_mae, tmp_path):
    # a pooling that equals the default of another configuration is written, too
    config = tiny_config(pooling=pooling, mae_config=tiny_mae_config() if has_mae else None)
    assert config.pooling != "auto"
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["pooling"] == config.pooling
    assert AutoConfig.from_pretrained(tmp_path).pooling == config.pooling
    assert SelfViTConfig(**config.to_diff_dict()).pooling == config.pooling


def test_an_encoder_keeps_its_pooling_without_its_objective(tmp_path):
    tiny_config(mae_config=tiny_mae_config()).save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path, mae_config=None).pooling == "mean"
