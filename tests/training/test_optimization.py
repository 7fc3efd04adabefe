import sys

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
from selfvit.training.config.training_config import OptimizerConfig, ScheduleConfig
from selfvit.training.optimization import (
    build_optimizer,
    check_optimizer,
    layer_index,
    set_schedules,
    state_bytes,
)

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


def test_the_optimizer_has_all_parameters_of_the_student_and_none_of_the_teacher(dino):
    held = groups_by_name(dino, build_optimizer(dino, OptimizerConfig()))
    assert held.keys() == {name for name, _ in dino.student.named_parameters(prefix="student")}


def test_weight_decay_applies_to_all_parameters_except_biases_and_norms(dino):
    optimizer = build_optimizer(dino, OptimizerConfig())
    set_schedules(optimizer, ScheduleConfig(weight_decay=0.3), step=0, num_steps=10)
    for name, group in groups_by_name(dino, optimizer).items():
        is_vector = name.endswith(".bias") or "layernorm" in name
        assert group["weight_decay"] == (0.0 if is_vector else 0.3), name


def test_parameters_that_a_model_excludes_have_no_weight_decay():
    head = PMSNConfig(num_prototypes=16, head_hidden_size=24, head_output_size=8)
    model = SelfViTForPMSN(SelfViTConfig(**GEOMETRY, pmsn_config=head))
    groups = groups_by_name(model, build_optimizer(model, OptimizerConfig()))
    assert not groups["prototypes"]["decays"]
    assert groups["student.head.fc3.weight"]["decays"]


def test_layer_decay_lowers_the_learning_rate_block_by_block_down_to_the_embeddings(dino):
    optimizer = build_optimizer(dino, OptimizerConfig(layer_decay=0.5))
    schedule = ScheduleConfig(warmup_ratio=0.0, base_learning_rate=1.0)
    set_schedules(optimizer, schedule, step=0, num_steps=10)
    rates = {name: group["lr"] for name, group in groups_by_name(dino, optimizer).items()}
    assert rates["student.vit.embeddings.cls_token"] == 1 / 16
    assert rates["student.vit.layers.0.mlp.fc1.weight"] == 1 / 8
    assert rates["student.vit.layers.2.mlp.fc1.weight"] == 1 / 2
    assert rates["student.vit.layernorm.weight"] == 1
    assert rates["student.head.layers.0.weight"] == 1


def test_layers_of_a_head_do_not_count_as_encoder_blocks():
    assert layer_index("student.head.layers.0.weight", num_layers=12) == 13
    assert layer_index("vit.layers.11.mlp.fc1.bias", num_layers=12) == 12
    assert layer_index("vit.embeddings.position_embeddings", num_layers=12) == 0


def test_learning_rate_scales_with_the_batch_and_ends_near_its_minimum(dino):
    schedule = ScheduleConfig(base_learning_rate=1e-3, batch_size=512, min_learning_rate=1e-5)
    optimizer = build_optimizer(dino, OptimizerConfig())
    rates = [set_schedules(optimizer, schedule, step, 100) for step in range(100)]
    assert max(rates) == pytest.approx(2e-3)
    assert rates[0] == 0 and rates.index(max(rates)) in (9, 10)
    assert 1e-5 < rates[-1] < 2e-5


def test_a_peak_below_the_minimum_is_not_raised_to_it(dino):
    schedule = ScheduleConfig(base_learning_rate=1e-6, batch_size=64, min_learning_rate=1e-5)
    optimizer = build_optimizer(dino, OptimizerConfig())
    rates = [set_schedules(optimizer, schedule, step, 100) for step in range(100)]
    assert max(rates) == pytest.approx(2.5e-7) and rates[10:] == [max(rates)] * 90


def test_the_optimizer_does_not_have_the_parameters_of_a_frozen_encoder():
    model = SelfViTForImageClassification(SelfViTConfig(**GEOMETRY, num_labels=3))
    model.trained_encoder.requires_grad_(False)
    held = groups_by_name(model, build_optimizer(model, OptimizerConfig()))
    assert held.keys() == {"classifier.weight", "classifier.bias"}


def test_weight_decay_follows_a_cosine_schedule(dino):
    schedule = ScheduleConfig(weight_decay=0.04, weight_decay_end=0.4)
    optimizer = build_optimizer(dino, OptimizerConfig())
    values = []
    for step in (0, 50, 99):
        set_schedules(optimizer, schedule, step, 100)
        values.append(max(group["weight_decay"] for group in optimizer.param_groups))
    assert values == pytest.approx([0.04, 0.22, 0.4], abs=1e-3)
    assert isinstance(optimizer, torch.optim.AdamW)


def stepped(model, config):
    """Return the optimizer after one step that updates every parameter."""
    optimizer = build_optimizer(model, config)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def moments_of(optimizer):
    """Return the bytes of the states without step counts and shared tables."""
    shared = ("step", "qmap1", "qmap2")
    return sum(
        tensor.nbytes
        for state in optimizer.state.values()
        for name, tensor in state.items()
        if name not in shared
    )


def test_state_bytes_equals_the_size_of_the_optimizer_state(dino):
    optimizer = stepped(dino, OptimizerConfig())
    trained = [value for group in optimizer.param_groups for value in group["params"]]
    assert state_bytes(trained, "adamw_torch_fused") == moments_of(optimizer)


@pytest.mark.parametrize("name", ["adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit"])
def test_bitsandbytes_optimizers_have_the_same_groups_and_the_planned_size(name):
    pytest.importorskip("bitsandbytes")
    head = DINOConfig(num_prototypes=301, head_hidden_size=70, head_bottleneck_size=20)
    model = SelfViTForDINO(SelfViTConfig(**{**GEOMETRY, "hidden_size": 64}, dino_config=head))
    groups = build_optimizer(model, OptimizerConfig(layer_decay=0.5)).param_groups
    optimizer = stepped(model, OptimizerConfig(optimizer=name, layer_decay=0.5))
    for ours, theirs in zip(optimizer.param_groups, groups, strict=True):
        assert all(map(torch.equal, ours["params"], theirs["params"]))
        assert (ours["scale"], ours["decays"]) == (theirs["scale"], theirs["decays"])
    trained = [value for group in groups for value in group["params"]]
    assert {value.numel() >= 4096 for value in trained} == {True, False}
    assert any(value.numel() > 4096 and value.numel() % 256 for value in trained)
    assert state_bytes(trained, name) == moments_of(optimizer)
    schedule = ScheduleConfig()
    set_schedules(optimizer, schedule, step=5, num_steps=10)
    assert 0 < optimizer.param_groups[0]["lr"] < schedule.learning_rate


def test_a_paged_optimizer_without_a_gpu_is_an_error():
    pytest.importorskip("bitsandbytes")
    for name in ("paged_adamw_8bit", "paged_adamw_32bit"):
        with pytest.raises(ValueError, match="this run is on the CPU; use adamw_bnb_8bit"):
            check_optimizer(OptimizerConfig(optimizer=name), torch.device("cpu"))
        check_optimizer(OptimizerConfig(optimizer=name), torch.device("cuda"))


def test_without_bitsandbytes_the_error_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("bitsandbytes")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=r"pip install 'selfvit\[bitsandbytes\]', or use adamw"):
        check_optimizer(OptimizerConfig(optimizer="adamw_bnb_8bit"), torch.device("cpu"))
    check_optimizer(OptimizerConfig(), torch.device("cpu"))
