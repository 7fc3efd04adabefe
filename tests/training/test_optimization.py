import pytest
import torch

from selfvit import (
    DINOConfig,
    PMSNConfig,
    SelfViTConfig,
    SelfViTForDINO,
    SelfViTForImageClassification,
    SelfViTForPMSN,
)
from selfvit.training.optimization import build_optimizer, layer_index, set_schedules
from selfvit.training.run import TrainingConfig

GEOMETRY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.fixture
def dino():
    head = DINOConfig(num_prototypes=16, head_hidden_size=24, head_bottleneck_size=8)
    return SelfViTForDINO(SelfViTConfig(**GEOMETRY, dino_config=head))


def groups_by_name(model, optimizer):
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: group for group in optimizer.param_groups for parameter in group["params"]
    }


def test_the_optimizer_holds_every_parameter_of_the_student_and_none_of_the_teacher(dino):
    held = groups_by_name(dino, build_optimizer(dino, TrainingConfig()))
    assert held.keys() == {name for name, _ in dino.student.named_parameters(prefix="student")}


def test_biases_and_norms_do_not_decay_and_all_else_does(dino):
    optimizer = build_optimizer(dino, TrainingConfig())
    set_schedules(optimizer, TrainingConfig(weight_decay=0.3), step=0, num_steps=10)
    for name, group in groups_by_name(dino, optimizer).items():
        is_vector = name.endswith(".bias") or "layernorm" in name
        assert group["weight_decay"] == (0.0 if is_vector else 0.3), name


def test_what_a_model_names_does_not_decay():
    head = PMSNConfig(num_prototypes=16, head_hidden_size=24, head_output_size=8)
    model = SelfViTForPMSN(SelfViTConfig(**GEOMETRY, pmsn_config=head))
    groups = groups_by_name(model, build_optimizer(model, TrainingConfig()))
    assert not groups["prototypes"]["decays"]
    assert groups["student.head.fc3.weight"]["decays"]


def test_layer_decay_lowers_the_rate_block_by_block_down_to_the_embeddings(dino):
    training = TrainingConfig(layer_decay=0.5, warmup_ratio=0.0, base_learning_rate=1.0)
    optimizer = build_optimizer(dino, training)
    set_schedules(optimizer, training, step=0, num_steps=10)
    rates = {name: group["lr"] for name, group in groups_by_name(dino, optimizer).items()}
    assert rates["student.vit.embeddings.cls_token"] == 1 / 16
    assert rates["student.vit.layers.0.mlp.fc1.weight"] == 1 / 8
    assert rates["student.vit.layers.2.mlp.fc1.weight"] == 1 / 2
    assert rates["student.vit.layernorm.weight"] == 1
    assert rates["student.head.layers.0.weight"] == 1


def test_layers_of_a_head_are_not_taken_for_blocks():
    assert layer_index("student.head.layers.0.weight", num_layers=12) == 13
    assert layer_index("vit.layers.11.mlp.fc1.bias", num_layers=12) == 12
    assert layer_index("vit.embeddings.position_embeddings", num_layers=12) == 0


def test_learning_rate_scales_with_the_batch_and_ends_near_its_minimum(dino):
    training = TrainingConfig(base_learning_rate=1e-3, batch_size=512, min_learning_rate=1e-5)
    optimizer = build_optimizer(dino, training)
    rates = [set_schedules(optimizer, training, step, 100) for step in range(100)]
    assert max(rates) == pytest.approx(2e-3)
    assert rates[0] == 0 and rates.index(max(rates)) in (9, 10)
    assert 1e-5 < rates[-1] < 2e-5


def test_a_frozen_encoder_stays_out_of_the_optimizer():
    model = SelfViTForImageClassification(SelfViTConfig(**GEOMETRY, num_labels=3))
    model.trained_encoder.requires_grad_(False)
    held = groups_by_name(model, build_optimizer(model, TrainingConfig()))
    assert held.keys() == {"classifier.weight", "classifier.bias"}


def test_weight_decay_follows_its_cosine(dino):
    training = TrainingConfig(weight_decay=0.04, weight_decay_end=0.4)
    optimizer = build_optimizer(dino, training)
    values = []
    for step in (0, 50, 99):
        set_schedules(optimizer, training, step, 100)
        values.append(max(group["weight_decay"] for group in optimizer.param_groups))
    assert values == pytest.approx([0.04, 0.22, 0.4], abs=1e-3)
    assert isinstance(optimizer, torch.optim.AdamW)
