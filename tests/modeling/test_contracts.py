"""Contracts that every objective must keep."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoBackbone,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    PreTrainedModel,
)

from selfvit import SelfViTBackbone, SelfViTForImageClassification, SelfViTModel
from tests.objectives import OBJECTIVES, Objective

pytestmark = pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda entry: entry.name)


def build(objective: Objective, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return objective.model_class(objective.config())


def train(model: PreTrainedModel, objective: Objective, num_steps: int) -> list[float]:
    """Train like the training loop, on new random inputs in each step; return the losses."""
    generator = torch.Generator().manual_seed(1)
    parameters = [parameter for _, parameter in model.trained_parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    model.train()
    losses = []
    for step in range(num_steps):
        inputs = objective.inputs(generator, 4)
        loss = model(**inputs, **model.scheduled_values(step, num_steps)).loss
        loss.backward()
        model.before_optimizer_step(step, num_steps)
        optimizer.step()
        optimizer.zero_grad()
        model.after_optimizer_step(step, num_steps)
        losses.append(loss.item())
    return losses


def fixed_loss(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """Return the loss, with the same random numbers in each call."""
    torch.manual_seed(11)
    return model(**inputs).loss


def make_inputs(objective: Objective, batch_size: int = 4) -> dict[str, Tensor]:
    return objective.inputs(torch.Generator().manual_seed(2), batch_size)


def images_of(objective: Objective) -> Tensor:
    height, width = objective.config().image_height_width
    return torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(3))


def test_a_round_trip_is_bit_exact(objective, tmp_path):
    model = build(objective)
    train(model, objective, 3)
    model.save_pretrained(tmp_path)
    loaded, report = objective.model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in report), report
    state, loaded_state = model.state_dict(), loaded.state_dict()
    assert list(state) == list(loaded_state)
    for name, value in state.items():
        assert loaded_state[name].dtype == value.dtype, name
        assert torch.equal(loaded_state[name], value), name
    inputs = make_inputs(objective)
    assert torch.equal(fixed_loss(loaded.train(), inputs), fixed_loss(model, inputs))


def test_a_loaded_model_continues_training_exactly(objective, tmp_path):
    model = build(objective)
    train(model, objective, 2)
    model.save_pretrained(tmp_path)
    loaded = objective.model_class.from_pretrained(tmp_path)
    torch.manual_seed(4)
    expected = train(model, objective, 3)
    torch.manual_seed(4)
    assert train(loaded, objective, 3) == expected


def test_auto_classes_open_the_checkpoint(objective, tmp_path):
    model = build(objective)
    train(model, objective, 2)
    model.save_pretrained(tmp_path)
    assert type(AutoModelForPreTraining.from_pretrained(tmp_path)) is objective.model_class
    encoder = AutoModel.from_pretrained(tmp_path)
    assert type(encoder) is SelfViTModel
    classifier = AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=3)
    assert type(classifier) is SelfViTForImageClassification
    backbone = SelfViTBackbone.from_pretrained(tmp_path)
    assert type(AutoBackbone.from_config(encoder.config)) is SelfViTBackbone
    expected = model.vit.state_dict()
    for opened in (encoder, classifier.vit, backbone.vit):
        state = opened.state_dict()
        assert list(state) == list(expected)
        for name, value in expected.items():
            assert torch.equal(state[name], value), name
    assert classifier(images_of(objective)).logits.shape == (3, 3)


OPEN_IN_A_NEW_PROCESS = """
import sys, warnings
warnings.simplefilter("error", UserWarning)
import torch
import selfvit
from transformers import AutoModel
from transformers.utils import logging
logging.disable_progress_bar()
folder, image_file, *networks = sys.argv[1:]
for network in networks:
    choice = {} if network == "default" else {"network": network}
    model = AutoModel.from_pretrained(folder, **choice)
    with torch.no_grad():
        torch.save(model(torch.load(image_file)).pooler_output, f"{folder}/{network}.pt")
"""


def embed_in_a_new_process(
    python: Path, folder: Path, networks: Iterable[str], images: Tensor
) -> tuple[list[Tensor], str]:
    """Return the embeddings that AutoModel computes in a new process, and its output."""
    image_file = folder / "images.pt"
    torch.save(images, image_file)
    result = subprocess.run(
        [python, "-c", OPEN_IN_A_NEW_PROCESS, folder, image_file, *networks],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    embeddings = [torch.load(folder / f"{network}.pt") for network in networks]
    return embeddings, result.stdout + result.stderr


def test_a_new_process_opens_the_checkpoint_silently_and_computes_the_same(
    objective, python_with_torch, tmp_path
):
    model = build(objective)
    train(model, objective, 3)
    model.eval()
    model.save_pretrained(tmp_path)
    networks: dict[str, Any] = {"default": model.vit}
    if model.trained_encoder is not model.vit:
        networks["student"] = model.trained_encoder
    images = images_of(objective)
    embeddings, printed = embed_in_a_new_process(python_with_torch, tmp_path, networks, images)
    assert printed == ""
    for embedding, (network, encoder) in zip(embeddings, networks.items(), strict=True):
        with torch.no_grad():
            assert torch.equal(embedding, encoder(images).pooler_output), network
    if len(embeddings) == 2:
        assert not torch.equal(*embeddings)


def test_one_step_lowers_the_loss(objective):
    model = build(objective)
    inputs = make_inputs(objective)
    optimizer = torch.optim.SGD([value for _, value in model.trained_parameters()], lr=1e-3)
    before = fixed_loss(model, inputs)
    before.backward()
    optimizer.step()
    assert fixed_loss(model, inputs) < before


def test_a_seed_determines_the_run(objective):
    runs = [train(build(objective), objective, 3) for _ in range(2)]
    assert runs[0] == runs[1]
    assert train(build(objective, seed=1), objective, 3) != runs[0]


def test_every_trained_parameter_receives_a_gradient(objective):
    model = build(objective)
    model(**make_inputs(objective)).loss.backward()
    for name, parameter in model.trained_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("precision", ["autocast", "weights"])
def test_bf16_is_close_to_float32(objective, precision):
    model, inputs = build(objective), make_inputs(objective)
    expected = fixed_loss(model, inputs).item()
    if precision == "weights":
        model.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        loss = fixed_loss(model, inputs)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=0.05)
    for name, parameter in model.trained_parameters():
        assert parameter.grad.isfinite().all(), name


def test_gradient_checkpointing_gives_the_same_gradients(objective):
    inputs, gradients = make_inputs(objective), []
    for checkpointing in (False, True):
        model = build(objective)
        if checkpointing:
            model.activation_checkpointing_enable()
        fixed_loss(model, inputs).backward()
        gradients.append({name: value.grad for name, value in model.trained_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
