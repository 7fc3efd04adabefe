"""8-bit weights by torchao through TorchAoConfig of transformers, if torchao is installed.

The extra `dev` does not include torchao: transformers imports it with every model if it is
installed, and version 0.18.0 prints warnings (2026-11-25, torch 2.14.1) that fail other tests.
"""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel, AutoModelForImageClassification, TorchAoConfig

from selfvit import SelfViTConfig, SelfViTForImageClassification, SelfViTModel

quantization = pytest.importorskip(
    "torchao.quantization", reason="torchao is not installed; `pip install torchao` runs these"
)


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def save(model_class, folder):
    """Save and return a model with random weights, wide enough for 8 bits to have an effect."""
    torch.manual_seed(0)
    config = SelfViTConfig(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        initializer_range=0.1,
        num_labels=5,
    )
    model = model_class(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("auto_class", "model_class", "compared"),
    [
        (AutoModel, SelfViTModel, "pooler_output"),
        (AutoModelForImageClassification, SelfViTForImageClassification, "logits"),
    ],
    ids=["encoder", "classifier"],
)
def test_8_bit_weights_give_nearly_the_same_outputs(
    auto_class, model_class, compared, images, tmp_path
):
    model = save(model_class, tmp_path)
    config = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    small = auto_class.from_pretrained(
        tmp_path, quantization_config=config, dtype=torch.float32, device_map="cpu"
    ).eval()
    linear = [layer for layer in small.modules() if isinstance(layer, torch.nn.Linear)]
    in_8_bits = [layer for layer in linear if type(layer.weight.data) is not torch.Tensor]
    assert len(in_8_bits) >= 4 * 6  # four blocks with q, k, v, o and two MLP layers
    with torch.no_grad():
        expected = model(images)[compared]
        outputs = small(images)[compared]
    cosine = torch.nn.functional.cosine_similarity(outputs, expected)
    assert cosine.min() > 0.99
    assert not torch.equal(outputs, expected)
