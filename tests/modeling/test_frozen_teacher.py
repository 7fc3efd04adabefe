"""Frozen teachers: features of the model types of transformers, and errors of opening."""

# B batch · N patches · D hidden

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from selfvit import SelfViTModel
from selfvit.modeling.frozen_teacher import FrozenTeacher, open_teacher, token_grid
from tests.objectives import TINY_TEACHER, tiny_config

SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
# Model, its configuration, number of tokens before the patches.
VISION_TRANSFORMERS = [
    ("ViT", SIZES, 1),
    ("DeiT", SIZES, 2),
    ("Beit", SIZES, 1),
    ("Dinov2", {**SIZES, "mlp_ratio": 2}, 1),
    ("Dinov2WithRegisters", {**SIZES, "num_register_tokens": 3}, 4),
    ("DINOv3ViT", {**SIZES, "num_register_tokens": 4}, 5),
    ("CLIPVision", SIZES, 1),
    ("SiglipVision", SIZES, 0),
]


def build(name: str, settings: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**settings)
    return getattr(transformers, f"{name}Model")(config).eval()


def images(height: int = 32, width: int = 48) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "settings", "num_prefix"), VISION_TRANSFORMERS)
def test_class_token_and_patches_of_a_vision_transformer(name, settings, num_prefix):
    model = build(name, settings)
    size = (32, 32) if name == "Beit" else (32, 48)  # Beit reads its own size only
    teacher = FrozenTeacher(model)
    features = teacher(images(*size))
    assert features.grid == (4, size[1] // 8)
    assert features.patches.shape == (2, 4 * size[1] // 8, 24)
    vision: Any = getattr(model, "vision_model", model)
    with torch.no_grad():
        resizes = teacher._resizes and size != (32, 32)
        options = {"interpolate_pos_encoding": True} if resizes else {}
        outputs = vision(pixel_values=images(*size), **options)
    tokens = outputs.last_hidden_state
    assert tokens.shape[1] - features.patches.shape[1] == num_prefix
    assert torch.equal(features.patches, tokens[:, num_prefix:])
    expected = tokens[:, 0] if num_prefix else outputs.pooler_output
    assert torch.equal(features.class_tokens, expected)


def test_a_hierarchical_and_a_convolutional_network_give_their_last_feature_map():
    swin = build(
        "Swin", {"embed_dim": 6, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2,
                 "image_size": 32, "patch_size": 4}
    )  # fmt: skip
    convnext = build("ConvNext", {"hidden_sizes": [6, 12], "depths": [1, 1], "num_stages": 2})
    for model, grid in ((swin, (4, 4)), (convnext, (4, 4))):
        features = FrozenTeacher(model)(images(32, 32))
        assert features.grid == grid and features.patches.shape == (2, 16, 12)
        assert features.class_tokens.shape == (2, 12)


def test_a_selfvit_checkpoint_of_any_objective_is_a_teacher(tmp_path):
    torch.manual_seed(0)
    model = SelfViTModel(tiny_config(num_register_tokens=2)).eval()
    model.save_pretrained(tmp_path)
    features = open_teacher(str(tmp_path))(images())
    with torch.no_grad():
        expected = model(images()).last_hidden_state
    assert torch.equal(features.class_tokens, expected[:, 0])
    assert torch.equal(features.patches, expected[:, 3:])


def test_opening_a_teacher_draws_no_random_numbers_and_returns_it_frozen(tmp_path):
    # transformers initializes the pooler, which this checkpoint lacks
    vit = build("ViT", SIZES)
    vit.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights = {name: value for name, value in weights.items() if not name.startswith("pooler")}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    teacher = open_teacher(str(tmp_path))
    assert torch.rand(1) == expected
    assert not teacher.has_pooler and not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize(
    ("num_tokens", "size", "patch_size", "grid"),
    [
        (1 + 196, (224, 224), 16, (14, 14)),
        (5 + 14 * 20, (224, 320), 16, (14, 20)),
        (49, (224, 224), 4, (7, 7)),
    ],
)
def test_the_grid_of_the_patches(num_tokens, size, patch_size, grid):
    assert token_grid(num_tokens, size, patch_size) == grid


def test_tokens_without_a_grid_are_an_error():
    with pytest.raises(ValueError, match="50 tokens cannot be assigned to patches"):
        token_grid(50, (224, 224), None)


def test_the_teachers_patch_size_must_divide_the_image():
    with pytest.raises(ValueError, match=r"24 x 32\) must be .* patch size \(16\); use 16 32\."):
        open_teacher(TINY_TEACHER)(images(24, 32))


def test_errors_of_opening_are_one_line_that_names_the_teacher(tmp_path):
    with pytest.raises(ValueError, match="needs a teacher, and none is named; give --teacher"):
        open_teacher("")
    missing = str(tmp_path / "missing")
    with pytest.raises(
        FileNotFoundError, match=f"the teacher '{missing}' cannot be opened"
    ) as info:
        open_teacher(missing)
    assert "\n" not in str(info.value) and "--teacher" in str(info.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="cannot be opened .*there is none of model.safet"):
        open_teacher(str(tmp_path / "empty"))


def test_missing_weights_and_other_weights_are_errors(tmp_path):
    folder = tmp_path / "teacher"
    shutil.copytree(TINY_TEACHER, folder)
    revision = open_teacher(str(folder)).revision
    assert open_teacher(str(folder), revision).revision == revision
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("mlp.fc1.weight"))
    save_file({**weights, name: weights[name] + 1}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="other weights than the student was trained with"):
        open_teacher(str(folder), revision)
    del weights[name]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks weights of Dinov2WithRegistersModel: {name}"):
        open_teacher(str(folder))
