"""Configuration of DINOv2."""

from __future__ import annotations

import pytest
from huggingface_hub.errors import (
    StrictDataclassClassValidationError,
    StrictDataclassFieldValidationError,
)

from selfvit import DINOv2Config, SelfViTConfig


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("class_loss_weight", -1.0, "0 or more"),
        ("patch_loss_weight", -1.0, "0 or more"),
        ("koleo_weight", -0.1, "0 or more"),
        ("gram_weight", -0.1, "0 or more"),
        ("num_prototypes", 1, "at least 2"),
        ("head_hidden_size", 0, "at least 1"),
        ("head_bottleneck_size", 0, "at least 1"),
        ("num_head_layers", 0, "at least 1"),
        ("sinkhorn_iterations", -1, "0 or more"),
        ("student_temperature", 0.0, "above 0; the paper uses 0.04 to 0.1"),
        ("teacher_temperature", 0.0, "above 0; the paper uses 0.04 to 0.1"),
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
        DINOv2Config(**{name: value})
    assert f"{name} ({value})" in str(error.value)
    assert fix in str(error.value)


def test_at_least_one_loss_has_a_weight():
    with pytest.raises(StrictDataclassClassValidationError, match="must not both be 0"):
        DINOv2Config(class_loss_weight=0, patch_loss_weight=0.0)
    DINOv2Config(class_loss_weight=0)


def test_a_field_of_the_wrong_type_is_an_error():
    with pytest.raises(StrictDataclassFieldValidationError, match="separate_patch_head"):
        DINOv2Config(separate_patch_head="yes")


def test_defaults_are_from_the_paper():
    config = DINOv2Config()
    assert (config.class_loss_weight, config.patch_loss_weight, config.koleo_weight) == (1, 1, 0.1)
    assert (config.num_prototypes, config.separate_patch_head) == (65536, False)
    assert (config.teacher_momentum, config.teacher_momentum_end) == (0.992, 1.0)
    assert (config.gram_weight, config.sinkhorn_iterations) == (0, 0)
    assert SelfViTConfig(dinov2_config=config).pooling == "cls"
