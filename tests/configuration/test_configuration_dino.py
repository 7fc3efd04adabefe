"""Configuration of DINO."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
from huggingface_hub.errors import (
    StrictDataclassClassValidationError,
    StrictDataclassFieldValidationError,
)
from transformers import AutoConfig, PreTrainedConfig

from selfvit import DINOConfig, SelfViTConfig
from tests.objectives import tiny_config


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("num_prototypes", 1, "at least 2"),
        ("head_hidden_size", 0, "at least 1"),
        ("head_bottleneck_size", 0, "at least 1"),
        ("num_head_layers", 0, "at least 1"),
        ("student_temperature", 0.0, "above 0; the paper uses 0.04 to 0.1"),
        ("teacher_temperature", -0.1, "above 0; the paper uses 0.04 to 0.1"),
        ("warmup_teacher_temperature", 0.0, "above 0; the paper uses 0.04 to 0.1"),
        ("teacher_temperature_warmup_ratio", 1.5, "between 0 and 1"),
        ("teacher_momentum", 1.1, "between 0 and 1"),
        ("teacher_momentum_end", -0.5, "between 0 and 1"),
        ("center_momentum", 2.0, "between 0 and 1"),
        ("freeze_last_layer_ratio", -0.01, "between 0 and 1"),
    ],
)
def test_an_error_names_value_and_fix(name, value, fix):
    with pytest.raises(StrictDataclassClassValidationError) as error:
        DINOConfig(**{name: value})
    assert f"{name} ({value})" in str(error.value)
    assert fix in str(error.value)


def test_a_field_of_the_wrong_type_is_an_error():
    with pytest.raises(StrictDataclassFieldValidationError, match="normalize_last_layer"):
        DINOConfig(normalize_last_layer="yes")


def test_ratios_may_be_integers():
    config = DINOConfig(teacher_momentum=1, freeze_last_layer_ratio=0)
    assert (config.teacher_momentum, config.freeze_last_layer_ratio) == (1, 0)


def test_defaults_are_from_the_paper():
    config = DINOConfig()
    assert config.num_prototypes == 65536
    assert (config.head_hidden_size, config.head_bottleneck_size) == (2048, 256)
    assert (config.student_temperature, config.teacher_temperature) == (0.1, 0.07)
    assert (config.teacher_momentum, config.teacher_momentum_end) == (0.996, 1.0)


def test_only_its_own_fields_are_written(tmp_path):
    # the fields of every PreTrainedConfig (`id2label`, `dtype`, ...) used to be repeated here
    tiny_config(dino_config=DINOConfig()).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())["dino_config"]
    inherited = {field.name for field in fields(PreTrainedConfig)}
    own = {field.name for field in fields(DINOConfig)} - inherited
    assert set(written) == own | {"model_type"}
    assert "id2label" not in written
    assert written["model_type"] == "selfvit_dino"


def test_a_round_trip_keeps_it_nested_and_alone(tmp_path):
    config = DINOConfig(num_prototypes=77, normalize_last_layer=False, teacher_momentum=0.9)
    config.save_pretrained(tmp_path / "alone")
    tiny_config(dino_config=config).save_pretrained(tmp_path / "inside")
    alone = DINOConfig.from_pretrained(tmp_path / "alone")
    inside = AutoConfig.from_pretrained(tmp_path / "inside").dino_config
    assert alone.to_dict() == inside.to_dict() == config.to_dict()
    assert (inside.num_prototypes, inside.normalize_last_layer) == (77, False)


def test_a_dictionary_becomes_a_configuration():
    config = SelfViTConfig(dino_config={"num_prototypes": 77})
    assert isinstance(config.dino_config, DINOConfig)
    assert config.dino_config.num_prototypes == 77
    assert config.dino_config.head_hidden_size == 2048


def test_a_dictionary_is_validated():
    with pytest.raises(StrictDataclassClassValidationError, match="num_prototypes"):
        SelfViTConfig(dino_config={"num_prototypes": 1})
