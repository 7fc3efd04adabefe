"""Suggestions against collapse for each objective, and their order."""

import re

import pytest
from transformers import PreTrainedConfig

from selfvit import (
    DINOConfig,
    DINOv2Config,
    DistillConfig,
    LeJEPAConfig,
    MAEConfig,
    PMSNConfig,
)
from selfvit.training.callbacks.collapse_advice import (
    WHAT_HAPPENS,
    Suggestion,
    advice_against,
    collapse_suggestions,
    settings_at_risk,
)
from selfvit.training.recipes import RECIPES

CONFIGURATIONS = [DINOConfig, DINOv2Config, DistillConfig, LeJEPAConfig, MAEConfig, PMSNConfig]
BAD_SETTINGS = [
    (DINOConfig(warmup_teacher_temperature=0.07), "uniform", "--warmup-teacher-temperature"),
    (DINOConfig(center_momentum=1), "constant", "--center-momentum (now 1)"),
    (DINOConfig(teacher_momentum=0.5), "constant", "--teacher-momentum (now 0.5)"),
    (DINOv2Config(center_momentum=1), "constant", "--center-momentum (now 1)"),
    (DistillConfig(temperature=1), "constant", "--temperature (now 1)"),
    (LeJEPAConfig(regularization_weight=0), "constant", "--regularization-weight (now 0)"),
    (LeJEPAConfig(regularizer="visreg", regularization_weight=0.05), "constant", "between 0.6"),
    (MAEConfig(mask_ratio=0.97), "constant", "--mask-ratio (now 0.97)"),
    (PMSNConfig(teacher_temperature=0.1), "uniform", "--teacher-temperature (now 0.1)"),
    (PMSNConfig(regularization_weight=0), "constant", "--regularization-weight (now 0)"),
    (PMSNConfig(teacher_momentum=0.5), "constant", "--teacher-momentum (now 0.5)"),
]


@pytest.mark.parametrize(("config", "kind", "setting"), BAD_SETTINGS)
def test_a_setting_known_to_cause_the_collapse_is_a_suspect(config, kind, setting):
    (suspect,) = [entry for entry in collapse_suggestions(config, kind) if entry.suspect]
    assert setting in suspect.advice


@pytest.mark.parametrize("kind", WHAT_HAPPENS)
@pytest.mark.parametrize("config_class", CONFIGURATIONS)
def test_no_default_setting_is_a_suspect(config_class, kind):
    assert not any(entry.suspect for entry in collapse_suggestions(config_class(), kind))


def test_a_regularization_weight_of_0_is_no_suspect_with_sinkhorn():
    config = PMSNConfig(regularization_weight=0, sinkhorn_iterations=3)
    assert not any(entry.suspect for entry in collapse_suggestions(config, "constant"))


RANGE = re.compile(r"^(lower|raise) .*\(now ([\d.]+)\) to between ([\d.]+) and ([\d.]+)$")
LIMIT = re.compile(r"^(lower|raise) .*\(now ([\d.]+)\) to ([\d.]+)( at least| at most)?$")


@pytest.mark.parametrize("recipe", RECIPES)
def test_suggestions_for_a_recipe_lead_away_from_its_values(recipe):
    run = RECIPES[recipe](1000, None)
    for kind in WHAT_HAPPENS:
        for advice in advice_against(kind, run):
            if found := RANGE.match(advice):
                verb, now, low, high = found[1], *map(float, found.groups()[1:])
                assert now > high if verb == "lower" else now < low, advice
            elif found := LIMIT.match(advice):
                verb, now, to = found[1], float(found[2]), float(found[3])
                assert now > to if verb == "lower" else now < to, advice


def test_sinkhorn_has_no_center_to_change():
    config = DINOv2Config(sinkhorn_iterations=3, center_momentum=1)
    assert "center" not in str(collapse_suggestions(config, "constant"))


def test_mae_has_no_uniform_collapse():
    assert collapse_suggestions(MAEConfig(mask_ratio=0.97), "uniform") == []


def test_a_configuration_without_registered_suggestions_has_none():
    assert collapse_suggestions(PreTrainedConfig(), "constant") == []


def test_a_new_objective_registers_its_own_suggestions():
    class NewConfig(PreTrainedConfig):
        weight = 2

    @collapse_suggestions.register
    def _(config: NewConfig, kind: str) -> list[Suggestion]:
        return [Suggestion(f"lower --weight (now {config.weight})")]

    assert collapse_suggestions(NewConfig(), "constant") == [("lower --weight (now 2)", False)]


def test_suspects_come_first_then_training_settings_then_other_suggestions():
    run = RECIPES["dino_demo"](None, None).with_options(
        {"center_momentum": 1, "batch_size": 8, "base_learning_rate": 0.5}
    )
    advice = advice_against("constant", run)
    assert advice[0].startswith("lower --center-momentum (now 1)")
    assert advice[1:3] == ["raise --batch-size (now 8)", "lower --base-learning-rate (now 0.5)"]
    assert advice[-1].startswith("raise --warmup-teacher-temperature")
    (risk,) = settings_at_risk(run)
    assert "constant output" in risk and "--center-momentum (now 1)" in risk
