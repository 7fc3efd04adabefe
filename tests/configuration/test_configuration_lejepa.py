"""Configuration of LeJEPA and VISReg."""

from __future__ import annotations

import pytest
from huggingface_hub.errors import (
    StrictDataclassClassValidationError,
    StrictDataclassFieldValidationError,
)

from selfvit import LeJEPAConfig, SelfViTConfig


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("regularization_weight", -0.1, "between 0 and 1; LeJEPA uses 0.01 to 0.1"),
        ("regularization_weight", 1.5, "VISReg 0.6 to 0.9"),
        ("num_slices", 0, "at least 1"),
        ("sigreg_num_knots", 1, "at least 2"),
        ("sigreg_max_frequency", 0.0, "above 0; the paper uses 3"),
        ("visreg_center_weight", -1.0, "0 or more"),
        ("visreg_scale_weight", -1.0, "0 or more"),
        ("visreg_shape_weight", -1.0, "0 or more"),
        ("head_hidden_size", 0, "at least 1"),
        ("head_output_size", 0, "at least 1"),
    ],
)
def test_an_error_names_value_and_fix(name, value, fix):
    with pytest.raises(StrictDataclassClassValidationError) as error:
        LeJEPAConfig(**{name: value})
    assert f"{name} ({value})" in str(error.value)
    assert fix in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"), [("regularizer", "vicreg"), ("head_input", "max"), ("head_activation", "x")]
)
def test_an_unknown_choice_is_an_error(name, value):
    with pytest.raises(StrictDataclassFieldValidationError, match=name):
        LeJEPAConfig(**{name: value})


def test_weights_may_be_integers():
    config = LeJEPAConfig(regularization_weight=1, visreg_scale_weight=2)
    assert (config.regularization_weight, config.visreg_scale_weight) == (1, 2)


def test_defaults_are_from_the_paper():
    config = LeJEPAConfig()
    assert (config.regularizer, config.regularization_weight) == ("sigreg", None)
    assert config.regularizer_weight == 0.05
    assert LeJEPAConfig(regularizer="visreg").regularizer_weight == 0.6
    assert (config.num_slices, config.sigreg_num_knots) == (1024, 17)
    assert config.sigreg_max_frequency == 3


def test_class_tokens_are_the_embedding_by_default():
    assert SelfViTConfig(lejepa_config=LeJEPAConfig()).pooling == "cls"
