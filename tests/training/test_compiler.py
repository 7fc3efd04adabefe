"""Encoders are compiled for training without a graph break, and train as before."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._dynamo.utils import counters

from selfvit.training.runtime.compiler import compile_encoders
from tests.objectives import OBJECTIVES

CASES = [case for case in OBJECTIVES if case.name in ("dino", "mae")]  # both entries of an encoder


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_encoders_compile_without_graph_breaks_and_train_the_same(case):
    torch.manual_seed(0)
    model = case.model_class(case.config()).train()
    compiled = copy.deepcopy(model)
    names = list(compiled.state_dict())
    compile_encoders(compiled, backend="aot_eager")
    inputs = case.inputs(torch.Generator().manual_seed(0), 2)
    losses, gradients = [], []
    for trained in (model, compiled):
        torch.manual_seed(1)
        loss = trained(**inputs).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: p.grad for name, p in trained.trained_parameters()})
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["graph_break"]
    assert list(compiled.state_dict()) == names
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_a_copy_of_a_compiled_model_computes_with_its_own_weights():
    case = CASES[0]
    model = case.model_class(case.config()).eval()
    compile_encoders(model, backend="aot_eager")
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.vit.layernorm.weight.zero_()
        images = torch.randn(1, 3, 32, 32)
        assert not torch.equal(copied.vit.embed(images), model.vit.embed(images))
