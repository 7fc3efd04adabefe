"""Backbone with dense heads of transformers: UperNet uses its feature maps, DPT its tokens."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    DPTConfig,
    DPTForDepthEstimation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from tests.objectives import tiny_config

STAGES = ["stem", "stage1", "stage2", "stage3"]  # with the last one, every block gets a gradient
HEIGHT, WIDTH = 32, 48  # 4 x 6 patches, to detect swapped rows and columns


@pytest.fixture
def images():
    return torch.randn(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))


def upernet() -> UperNetForSemanticSegmentation:
    torch.manual_seed(0)
    config = UperNetConfig(
        backbone_config=tiny_config(out_features=STAGES),
        hidden_size=16,
        auxiliary_in_channels=32,
        auxiliary_channels=8,
        num_labels=5,
    )
    return UperNetForSemanticSegmentation(config)


def dpt(**overrides) -> DPTForDepthEstimation:
    torch.manual_seed(0)
    backbone = tiny_config(out_features=STAGES, reshape_hidden_states=False, **overrides)
    config = DPTConfig(
        backbone_config=backbone,
        hidden_size=backbone.hidden_size,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
    )
    return DPTForDepthEstimation(config)


def parameters_without_gradient(model) -> list[str]:
    """Return the names of parameters of the backbone without a gradient or with zero gradient."""
    return [
        name
        for name, parameter in model.backbone.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]


def test_upernet_segments_and_every_weight_of_the_backbone_gets_a_gradient(images):
    model = upernet()
    labels = torch.randint(5, (2, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(1))
    outputs = model(images, labels=labels)
    assert outputs.logits.shape == (2, 5, HEIGHT, WIDTH)
    outputs.loss.backward()
    assert not parameters_without_gradient(model)


def test_upernet_learns_which_patches_are_bright(images):
    patches = torch.nn.functional.avg_pool2d(images, 8).mean(1, keepdim=True).sign()  # (B, 1, 4, 6)
    bright = torch.nn.functional.interpolate(patches, size=(HEIGHT, WIDTH))
    labels = (bright[:, 0] > 0).long()
    model = upernet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = model(bright.expand(-1, 3, -1, -1), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("num_register_tokens", [0, 2])
def test_dpt_estimates_depth_and_every_weight_of_the_backbone_gets_a_gradient(
    num_register_tokens, images
):
    model = dpt(num_register_tokens=num_register_tokens)
    depth = model(images).predicted_depth
    assert depth.shape == (2, 2 * HEIGHT, 2 * WIDTH)  # DPT assumes patches of 16 pixels
    depth.square().mean().backward()
    assert not parameters_without_gradient(model)


@pytest.mark.parametrize("make", [upernet, dpt])
def test_a_dense_model_saves_and_loads_with_its_backbone(make, images, tmp_path):
    model = make().eval()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert loaded.config.backbone_config.out_features == STAGES
    with torch.no_grad():
        torch.testing.assert_close(loaded(images)[0], model(images)[0], rtol=0, atol=0)


def test_tokens_and_maps_of_the_backbone_are_the_same_features(images):
    model = dpt(num_register_tokens=2).backbone.eval()
    with torch.no_grad():
        tokens = model(images).feature_maps
        model.config.reshape_hidden_states = True
        maps = model(images).feature_maps
    for token, feature_map in zip(tokens, maps, strict=True):
        assert token.shape == (2, 1 + 4 * 6, 32)
        torch.testing.assert_close(token[:, 1:].transpose(1, 2), feature_map.flatten(2))
