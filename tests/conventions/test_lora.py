"""LoRA adapters of PEFT on the attention projections, which have the names of transformers."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel

from selfvit import SelfViTForImageClassification, SelfViTModel
from tests.objectives import tiny_config

LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.fixture
def images():
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def lora(**overrides) -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"], **overrides)


def classifier() -> SelfViTForImageClassification:
    torch.manual_seed(0)
    return SelfViTForImageClassification(tiny_config(num_labels=3, initializer_range=0.2))


def encoder(folder) -> SelfViTModel:
    """Return an encoder loaded by AutoModel."""
    torch.manual_seed(0)
    SelfViTModel(tiny_config(initializer_range=0.2)).save_pretrained(folder)
    return AutoModel.from_pretrained(folder)


def classification_loss(model, images):
    return model(pixel_values=images, labels=LABELS).loss


def embedding_loss(model, images):
    """Return a loss that is low if embeddings are similar for equal labels only."""
    embeddings = torch.nn.functional.normalize(model(pixel_values=images).pooler_output)
    same_label = (LABELS[:, None] == LABELS).float()
    return (embeddings @ embeddings.T - same_label).square().mean()


def train(model, loss_of, images, num_steps=20) -> list[float]:
    """Return the loss of each step."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(num_steps):
        loss = loss_of(model, images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture(params=["classifier", "encoder"])
def case(request, tmp_path):
    """(new model, configuration of an adapter, loss, name of the output to compare)."""
    if request.param == "classifier":
        adapter = lora(modules_to_save=["classifier"])
        return classifier(), adapter, classification_loss, "logits"
    return encoder(tmp_path / "encoder"), lora(), embedding_loss, "pooler_output"


def test_an_adapter_trains_saves_loads_and_merges(case, images, tmp_path):
    model, adapter, loss_of, compared = case
    base = copy.deepcopy(model)
    adapted = get_peft_model(model, adapter)
    before = {name: value.clone() for name, value in adapted.state_dict().items()}

    losses = train(adapted, loss_of, images)
    assert losses[-1] < 0.7 * losses[0]
    changed = {
        name for name, value in adapted.state_dict().items() if not value.equal(before[name])
    }
    trained = {name for name, value in adapted.named_parameters() if value.requires_grad}
    assert changed == trained
    adapted_projections = {name.split(".lora_")[0] for name in trained if ".lora_" in name}
    assert len(adapted_projections) == 2 * 3  # query and value of three blocks

    adapted.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = adapted.eval()(pixel_values=images)[compared]
        assert not torch.allclose(base.eval()(pixel_values=images)[compared], expected, atol=1e-3)
        torch.testing.assert_close(loaded(pixel_values=images)[compared], expected)
        merged = loaded.merge_and_unload()
        assert type(merged) is type(base)
        assert merged.state_dict().keys() == base.state_dict().keys()
        outputs = merged(pixel_values=images)[compared]
        torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-5)

        merged.save_pretrained(tmp_path / "merged")
        opened = type(base).from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(opened(pixel_values=images)[compared], outputs, rtol=0, atol=0)


def test_adapters_learn_the_same_with_gradient_checkpointing(images):
    # the input of a frozen encoder has no gradient, but recomputed blocks need one
    losses = {}
    for checkpointing in (False, True):
        model = classifier()
        if checkpointing:
            model.gradient_checkpointing_enable()
            model.enable_input_require_grads()
        torch.manual_seed(1)
        adapted = get_peft_model(model, lora(modules_to_save=["classifier"])).train()
        losses[checkpointing] = train(adapted, classification_loss, images, num_steps=5)
    torch.testing.assert_close(losses[True], losses[False])
