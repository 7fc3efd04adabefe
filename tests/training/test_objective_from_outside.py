"""An objective defined outside the package trains without changes to selfvit."""

import json
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForPreTraining
from transformers.utils import ModelOutput

import selfvit
from selfvit import RECIPES, SelfViTConfig, SelfViTModel, SelfViTPreTrainedModel
from selfvit.modeling.registry import MODEL_CLASSES, TRAINABLE_CLASSES

from .tiny_runs import log_of, weights_of


@dataclass
class ColorOutput(ModelOutput):
    loss: torch.Tensor | None = None


class SelfViTForColor(SelfViTPreTrainedModel):
    """Model that predicts the mean color of an image from its embedding."""

    def __init__(self, config):
        super().__init__(config)
        self.vit = SelfViTModel(config)
        self.head = nn.Linear(config.embedding_size, 3)
        self.post_init()

    def forward(self, pixel_values, noise=None, weight=1.0):
        embeddings = self.vit(pixel_values).pooler_output
        if self.observations is not None:
            self.observations.record(embeddings)
        color = pixel_values.mean(dim=(2, 3))
        return ColorOutput(loss=weight * nn.functional.mse_loss(self.head(embeddings), color))

    def scheduled_values(self, step, num_steps):
        return {"weight": 1 - step / num_steps}

    def after_optimizer_step(self, step, num_steps):
        return {"head_norm": self.head.weight.norm().item()}


def color_demo(num_images, batch_size):
    """Recipe that predicts the mean color of small images."""
    run = RECIPES["mae_demo"](num_images, batch_size)
    encoder = SelfViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    return replace(run, recipe="color_demo", architecture="SelfViTForColor", model=encoder)


@pytest.fixture
def registered():
    selfvit.register_objective(SelfViTForColor)
    selfvit.register_recipe(color_demo)
    yield
    del RECIPES["color_demo"], MODEL_CLASSES["SelfViTForColor"]
    del TRAINABLE_CLASSES["SelfViTForColor"]


OPTIONS = {
    "batch_size": 8, "max_steps": 6, "save_steps": 2, "save_total_limit": 9, "num_workers": 0,
    "log_steps": 1, "monitor_steps": 1, "image_steps": 0, "tracker": "none",
    "energy_meter": "none", "cpu": True,
}  # fmt: skip


def test_a_registered_objective_trains_resumes_and_loads_with_auto_classes(
    registered, two_classes, tmp_path
):
    out = tmp_path / "out"
    selfvit.train("color_demo", data=two_classes, output=out, **OPTIONS)
    log, weights = log_of(out), weights_of(out)
    assert list(log) == [1, 2, 3, 4, 5, 6]
    assert log[1]["weight"] == 1 and log[6]["head_norm"] > 0
    assert "feature_std" in (out / "log.jsonl").read_text()  # logged by the collapse monitor

    for step in (4, 6):  # resume from the checkpoint of step 2
        checkpoint = out / "checkpoints" / f"step-{step:08d}"
        checkpoint.rename(tmp_path / checkpoint.name)
    (out / "config.json").unlink()
    selfvit.train("color_demo", data=two_classes, output=out, resume=True, **OPTIONS)
    assert log_of(out) == log
    resumed = weights_of(out)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in weights.items())

    assert json.loads((out / "config.json").read_text())["architectures"] == ["SelfViTForColor"]
    assert isinstance(AutoModelForPreTraining.from_pretrained(out), SelfViTForColor)
    pixels = torch.rand(1, 3, 16, 16)
    expected = AutoModelForPreTraining.from_pretrained(out).vit(pixels).pooler_output
    assert torch.equal(AutoModel.from_pretrained(out)(pixels).pooler_output, expected)


def test_names_of_existing_recipes_and_classes_are_errors(registered):
    with pytest.raises(ValueError, match="a recipe named 'color_demo' exists already"):
        selfvit.register_recipe(replace_name(lambda num_images, batch_size: None))
    other = type("SelfViTForColor", (SelfViTForColor,), {})
    with pytest.raises(ValueError, match="there is a model class 'SelfViTForColor' already"):
        selfvit.register_objective(other)


def replace_name(function):
    function.__name__ = "color_demo"
    return function
