"""Configuration of MSN and PMSN."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
from huggingface_hub.errors import (
    StrictDataclassClassValidationError,
    StrictDataclassFieldValidationError,
)
from transformers import AutoConfig, PreTrainedConfig

from selfvit import PMSNConfig, SelfViTConfig
from tests.objectives import tiny_config


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("num_prototypes", 1, "at least 2"),
        ("head_hidden_size", 0, "at least 1"),
        ("head_output_size", 0, "at least 1"),
        ("sinkhorn_iterations", -1, "0 or more"),
        ("regularization_weight", -1.0, "0 or more"),
        ("entropy_weight", -0.5, "0 or more"),
        ("power_law_exponent", -0.25, "0 or more"),
        ("student_temperature", 0.0, "above 0; the paper uses 0.1"),
        ("teacher_temperature", -0.1, "above 0; the paper uses 0.1"),
        ("teacher_momentum", 1.1, "between 0 and 1"),
        ("teacher_momentum_end", -0.5, "between 0 and 1"),
        ("patch_drop_ratio", 1.0, "at least one patch is left"),
        ("patch_drop_ratio", -0.1, "at least 0 and below 1"),
    ],
)
def test_an_error_names_value_and_fix(name, value, fix):
    with pytest.raises(StrictDataclassClassValidationError) as error:
        PMSNConfig(**{name: value})
    assert f"{name} ({value})" in str(error.value)
    assert fix in str(error.value)


@pytest.mark.parametrize(("name", "value"), [("prior", "normal"), ("kl_direction", "both")])
def test_an_unknown_choice_is_an_error(name, value):
    with pytest.raises(StrictDataclassFieldValidationError, match=name):
        PMSNConfig(**{name: value})


def test_ratios_and_weights_may_be_integers():
    config = PMSNConfig(teacher_momentum=1, patch_drop_ratio=0, regularization_weight=5)
    assert (config.teacher_momentum, config.patch_drop_ratio) == (1, 0)


def test_defaults_are_from_the_paper():
    config = PMSNConfig()
    assert (config.prior, config.power_law_exponent) == ("power_law", 0.25)
    assert (config.num_prototypes, config.head_output_size) == (1024, 256)
    assert (config.student_temperature, config.teacher_temperature) == (0.1, 0.025)
    assert (config.teacher_momentum, config.teacher_momentum_end) == (0.996, 1.0)
    assert config.patch_drop_ratio == 0.15
    assert not config.freeze_prototypes


def test_only_its_own_fields_are_written(tmp_path):
    tiny_config(pmsn_config=PMSNConfig()).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    inherited = {field.name for field in fields(PreTrainedConfig)}
    own = {field.name for field in fields(PMSNConfig)} - inherited
    assert set(content["pmsn_config"]) == own | {"model_type"}
    assert content["pmsn_config"]["model_type"] == "selfvit_pmsn"
    assert content["dino_config"] is None


def test_a_round_trip_keeps_it_nested_and_alone(tmp_path):
    config = PMSNConfig(num_prototypes=77, prior="uniform", freeze_prototypes=True)
    config.save_pretrained(tmp_path / "alone")
    tiny_config(pmsn_config=config).save_pretrained(tmp_path / "inside")
    alone = PMSNConfig.from_pretrained(tmp_path / "alone")
    inside = AutoConfig.from_pretrained(tmp_path / "inside").pmsn_config
    assert alone.to_dict() == inside.to_dict() == config.to_dict()
    assert (inside.num_prototypes, inside.prior, inside.freeze_prototypes) == (77, "uniform", True)


def test_a_dictionary_becomes_a_validated_configuration():
    config = SelfViTConfig(pmsn_config={"num_prototypes": 77})
    assert isinstance(config.pmsn_config, PMSNConfig)
    assert config.pmsn_config.head_output_size == 256
    with pytest.raises(StrictDataclassClassValidationError, match="num_prototypes"):
        SelfViTConfig(pmsn_config={"num_prototypes": 1})
