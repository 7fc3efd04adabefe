"""torch.compile and torch.export capture every class as one graph with the same outputs."""

from __future__ import annotations

import copy

import pytest
import torch

from selfvit import SelfViTBackbone, SelfViTForImageClassification, SelfViTForMAE, SelfViTModel
from tests.conventions.model_testers import encoder_tester, full_encoder_tester, objective_tester
from tests.objectives import OBJECTIVES

ENCODERS = (SelfViTModel, SelfViTForImageClassification, SelfViTBackbone)
CASES = {
    **{model_class.__name__: (model_class, encoder_tester()) for model_class in ENCODERS},
    "SelfViTModel-every-option": (SelfViTModel, full_encoder_tester()),
    **{
        objective.model_class.__name__: (objective.model_class, objective_tester(objective.name))
        for objective in OBJECTIVES
    },
}
FEATURES = [name for name, (model_class, _) in CASES.items() if model_class in ENCODERS]
FEATURES.append(SelfViTForMAE.__name__)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def model_and_inputs(name):
    model_class, tester = CASES[name]
    torch.manual_seed(0)
    config, inputs = tester.prepare_config_and_inputs_for_common()
    model = model_class(config).eval()
    if hasattr(model, "load_teacher"):
        model.load_teacher()  # opening a file cannot be traced
    return model, inputs


@pytest.mark.parametrize("name", CASES)
def test_a_model_compiles_as_one_graph_with_the_same_outputs(name):
    model, inputs = model_and_inputs(name)
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(**inputs).to_tuple(), model(**inputs).to_tuple())


@pytest.mark.parametrize("name", FEATURES)
def test_a_model_exports_with_the_same_outputs(name):
    model, inputs = model_and_inputs(name)
    program = torch.export.export(model, args=(), kwargs=inputs)
    with torch.no_grad():
        outputs = program.module()(**inputs)
        torch.testing.assert_close(outputs.to_tuple(), model(**inputs).to_tuple())
