"""Default hooks of the training loop."""

from __future__ import annotations

import ast
import inspect

from selfvit import SelfViTForImageClassification
from selfvit.modeling import modeling_selfvit
from selfvit.modeling.trainable import Trainable
from tests.objectives import tiny_config


def test_the_default_hooks_do_nothing():
    model = SelfViTForImageClassification(tiny_config(num_labels=3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.init_student_from_teacher()
    model.before_optimizer_step(0, 10)
    assert model.scheduled_values(0, 10) == {}
    assert model.after_optimizer_step(0, 10) == {}
    assert model.undecayed_parameters == () and model.observations is None
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_frozen_parameters_are_not_trained():
    model = SelfViTForImageClassification(tiny_config(num_labels=3))
    assert model.trained_encoder is model.vit
    model.trained_encoder.requires_grad_(False)
    names = [name for name, _ in model.trained_parameters()]
    assert names == ["classifier.weight", "classifier.bias"]


def test_the_encoder_does_not_depend_on_the_collapse_monitors():
    tree = ast.parse(inspect.getsource(modeling_selfvit))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "trainable" in imported and "observations" not in imported
    assert issubclass(SelfViTForImageClassification, Trainable)
