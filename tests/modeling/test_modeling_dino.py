"""DINO: head, loss, and model with teacher."""

# B batch · G global views · V all views · K prototypes · D hidden

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import AutoModelForPreTraining

from selfvit import SelfViTForDINO, SelfViTModel
from selfvit.modeling.dino_head import (
    PROTOTYPES_AT_A_TIME,
    DINOHead,
    DINOLoss,
    NormalizedLinear,
)
from tests.golden import load_golden, weights_of
from tests.modeling.test_modeling_selfvit import INITIALIZATION, assert_statistics
from tests.objectives import random_views, tiny_config, tiny_dino_config


def make_model(
    seed: int = 0, dino: dict[str, Any] | None = None, **overrides: Any
) -> SelfViTForDINO:
    torch.manual_seed(seed)
    return SelfViTForDINO(tiny_config(dino_config=tiny_dino_config(**(dino or {})), **overrides))


def make_views(batch_size: int = 3, num_local_views: int = 2, seed: int = 1) -> dict[str, Tensor]:
    return random_views(torch.Generator().manual_seed(seed), batch_size, num_local_views)


def make_loss(num_prototypes: int = 5, seed: int = 0) -> DINOLoss:
    """Return a loss with a nonzero center."""
    loss = DINOLoss(num_prototypes, student_temperature=0.1, center_momentum=0.9)
    loss.center.copy_(torch.randn(num_prototypes, generator=torch.Generator().manual_seed(seed)))
    return loss


def teacher_and_student(model: SelfViTForDINO) -> list[tuple[str, Tensor, Tensor]]:
    """Return names, tensors of the teacher and tensors of the student."""
    state = model.state_dict()
    return [
        (name, state[name], state[f"student.{name}"])
        for name in state
        if name.startswith(("vit.", "head."))
    ]


# The head


def test_the_head_matches_the_reference():
    golden, reference = load_golden("dino_head")
    config = tiny_config(
        hidden_size=48,
        num_attention_heads=3,
        dino_config=tiny_dino_config(
            num_prototypes=96,
            head_hidden_size=reference["hidden_dim"],
            head_bottleneck_size=reference["bottleneck_dim"],
            num_head_layers=reference["nlayers"],
        ),
    )
    head = DINOHead(48, config.dino_config)
    weights = {
        re.sub(
            r"mlp\.(\d)", lambda match: f"layers.{int(match[1]) // 2}", name
        )  # the reference counts activations, too
        .replace("weight_v", "direction")
        .replace("weight_g", "magnitude"): tensor
        for name, tensor in weights_of(golden).items()
    }
    head.load_state_dict(weights, strict=True)
    features = golden["features"].requires_grad_()
    logits = head(features)
    torch.testing.assert_close(logits, golden["logits"], rtol=1e-5, atol=1e-5)
    logits.square().sum().backward()
    expected = golden["grad_features_of_sum_of_squares"]
    torch.testing.assert_close(features.grad, expected, rtol=1e-4, atol=1e-5)


def test_logits_are_cosines_if_the_magnitude_is_one():
    model = make_model()
    features = torch.randn(4, 32) * 100
    logits = model.head(features)
    hidden = features
    for layer in model.head.layers[:-1]:
        hidden = F.gelu(layer(hidden))
    hidden = model.head.layers[-1](hidden)
    expected = F.cosine_similarity(
        hidden.unsqueeze(1), model.head.last_layer.direction.unsqueeze(0), dim=-1
    )
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert logits.abs().max() <= 1 + 1e-5


@pytest.mark.parametrize("num_head_layers", [1, 2, 4])
def test_the_head_has_the_configured_number_of_layers(num_head_layers):
    head = make_model(dino={"num_head_layers": num_head_layers}).head
    assert len(head.layers) == num_head_layers
    assert head(torch.randn(3, 32)).shape == (3, 24)


def test_the_head_is_finite_for_extreme_features_in_half_precision():
    head = make_model().head.half()
    for scale in (0.0, 1e-4, 3e4):
        assert head(torch.full((2, 32), scale, dtype=torch.float16)).isfinite().all()


@pytest.mark.parametrize("rows", [PROTOTYPES_AT_A_TIME, PROTOTYPES_AT_A_TIME + 3])
def test_the_last_layer_is_a_linear_layer_with_a_normalized_weight(rows):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, 4, generator=generator)
    directions = torch.randn(rows, 4, generator=generator)
    directions[1] = 0  # without a direction
    magnitudes = torch.rand(rows, 1, generator=generator)
    downstream = torch.randn(2, 5, rows, generator=generator)

    def plain(features, directions, magnitudes):
        return F.linear(features, F.normalize(directions, dim=-1) * magnitudes)

    results = []
    for layer in (NormalizedLinear.apply, plain):
        leaves = features.clone().requires_grad_(), directions.clone().requires_grad_()
        logits = layer(*leaves, magnitudes)
        results.append([logits, *torch.autograd.grad(logits, leaves, downstream)])
    for ours, theirs in zip(*results, strict=True):
        if rows == PROTOTYPES_AT_A_TIME:
            assert torch.equal(ours, theirs)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
def test_the_magnitude_is_trained_unless_the_last_layer_is_normalized(normalize, tmp_path):
    model = make_model(dino={"normalize_last_layer": normalize})
    name = "student.head.last_layer.magnitude"
    assert (name in dict(model.named_buffers())) == normalize
    assert (name in dict(model.trained_parameters())) == (not normalize)
    with torch.no_grad():
        model.student.head.last_layer.magnitude.uniform_(0.5, 2.0)
    model.save_pretrained(tmp_path)
    loaded = SelfViTForDINO.from_pretrained(tmp_path)
    assert torch.equal(loaded.state_dict()[name], model.state_dict()[name])


# The loss


def golden_views(golden: dict[str, Tensor], step: int) -> tuple[Tensor, Tensor]:
    """Return the logits of student (V, B, K) and teacher (G, B, K) in a step."""
    return (
        golden[f"step{step}.student"].unflatten(0, (6, -1)),
        golden[f"step{step}.teacher"].unflatten(0, (2, -1)),
    )


@pytest.mark.parametrize(("name", "num_steps"), [("dino_loss", 5), ("dino_loss_lightly", 3)])
def test_consecutive_steps_match_the_reference(name, num_steps):
    inputs, config = load_golden("dino_loss")
    golden = load_golden(name)[0]
    loss = DINOLoss(config["out_dim"], config["student_temp"], config["center_momentum"])
    for step in range(num_steps):
        student, teacher = golden_views(inputs, step)
        student.requires_grad_()
        output = loss(student, teacher, inputs[f"step{step}.teacher_temp"].item())
        output.loss.backward()
        loss.update_center()
        close = {"rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(output.loss, golden[f"step{step}.loss"][0], **close)
        expected_center = golden[f"step{step}.center_after"].flatten()
        torch.testing.assert_close(loss.center, expected_center, **close)
        if f"step{step}.student_grad" in golden:
            gradient = golden[f"step{step}.student_grad"]
            torch.testing.assert_close(student.grad.flatten(0, 1), gradient, **close)


def test_two_views_of_one_image_match_hand_computed_values():
    # teacher temperature 0.5, student temperature 0.1, center (0.5, 0)
    loss = DINOLoss(2, student_temperature=0.1, center_momentum=0.9)
    loss.center.copy_(torch.tensor([0.5, 0.0]))
    teacher = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    student = torch.tensor([[[0.1, 0.0]], [[0.0, 0.2]]])
    output = loss(student, teacher, 0.5)

    def log_sigmoid(value: float) -> float:
        return -math.log1p(math.exp(-value))

    # a softmax over two logits is the sigmoid of their difference, centered and sharpened
    first, second = 1 / (1 + math.exp(-1.0)), 1 / (1 + math.exp(3.0))  # prototype 0, teacher
    cross_entropies = [
        -(first * log_sigmoid(-2.0) + (1 - first) * log_sigmoid(2.0)),  # student's second view
        -(second * log_sigmoid(1.0) + (1 - second) * log_sigmoid(-1.0)),  # student's first view
    ]
    assert output.loss.item() == pytest.approx(sum(cross_entropies) / 2, rel=1e-6)
    entropies = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (first, second)]
    assert output.teacher_entropy.item() == pytest.approx(sum(entropies) / 2, rel=1e-6)
    loss.update_center()  # 0.9 * (0.5, 0) + 0.1 * (0.5, 0.5)
    torch.testing.assert_close(loss.center, torch.tensor([0.5, 0.05]))


def test_the_loss_is_the_mean_cross_entropy_over_pairs_of_different_views():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(5, 3, 7, generator=generator)
    teacher = torch.randn(2, 3, 7, generator=generator)
    loss = make_loss(7)
    targets = ((teacher - loss.center) / 0.05).softmax(dim=-1)
    pairs = [
        -(targets[g] * (student[v] / 0.1).log_softmax(dim=-1)).sum(dim=-1).mean()
        for g in range(2)
        for v in range(5)
        if g != v
    ]
    torch.testing.assert_close(loss(student, teacher, 0.05).loss, torch.stack(pairs).mean())


def test_the_loss_of_uniform_outputs_is_ln_k():
    output = DINOLoss(24, 0.1, 0.9)(torch.zeros(4, 3, 24), torch.zeros(2, 3, 24), 0.04)
    assert output.loss.item() == pytest.approx(math.log(24), rel=1e-6)
    assert output.teacher_entropy.item() == pytest.approx(math.log(24), rel=1e-6)


def test_the_center_is_subtracted_from_the_teachers_logits():
    student, teacher = torch.randn(3, 2, 5), torch.randn(2, 2, 5)
    loss = make_loss()
    uncentered = DINOLoss(5, 0.1, 0.9)
    torch.testing.assert_close(
        loss(student, teacher + loss.center, 0.07).loss, uncentered(student, teacher, 0.07).loss
    )


def test_no_gradient_flows_into_the_teacher():
    student = torch.randn(3, 2, 5, requires_grad=True)
    teacher = torch.randn(2, 2, 5, requires_grad=True)
    make_loss()(student, teacher, 0.07).loss.backward()
    assert teacher.grad is None
    assert (student.grad.abs().sum(dim=-1) > 0).all()


def test_the_center_moves_to_the_mean_over_all_micro_batches():
    loss, start = make_loss(), make_loss().center
    batches = [torch.randn(2, size, 5) for size in (1, 4, 3)]
    for teacher in batches:
        loss(torch.randn(3, teacher.shape[1], 5), teacher, 0.07)
        assert torch.equal(loss.center, start)  # it moves once per step
    loss.update_center()
    mean = torch.cat(batches, dim=1).mean(dim=(0, 1))
    torch.testing.assert_close(loss.center, 0.9 * start + 0.1 * mean)
    moved = loss.center.clone()
    loss.update_center()  # there are no new logits
    assert torch.equal(loss.center, moved)


def test_evaluation_does_not_move_the_center():
    loss = make_loss().eval()
    loss(torch.randn(3, 2, 5), torch.randn(2, 2, 5), 0.07)
    loss.update_center()
    assert torch.equal(loss.center, make_loss().center)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((1, 2, 5), (1, 2, 5)),  # a view compared with itself only
        ((2, 2, 5), (3, 2, 5)),
        ((2, 2, 5), (0, 2, 5)),
        ((3, 2, 5), (2, 3, 5)),
        ((3, 2, 5), (2, 2, 6)),
    ],
)
def test_views_without_pairs_are_an_error_that_names_the_shapes(student, teacher):
    with pytest.raises(ValueError, match="at least 2 views") as error:
        make_loss()(torch.zeros(student), torch.zeros(teacher), 0.07)
    assert f"{student} and {teacher}" in str(error.value)


def test_large_logits_give_a_finite_loss_and_gradient():
    student = (torch.randn(4, 2, 5) * 1e4).requires_grad_()
    output = make_loss()(student, torch.randn(2, 2, 5) * 1e4, 0.04)
    output.loss.backward()
    assert output.loss.isfinite()
    assert output.teacher_entropy.item() == pytest.approx(0, abs=1e-5)
    assert student.grad.isfinite().all()


# The model


def test_a_missing_dino_config_is_an_error():
    with pytest.raises(ValueError, match=r"dino_config=DINOConfig\(\)"):
        SelfViTForDINO(tiny_config())


@pytest.mark.parametrize("normalize", [True, False])
def test_every_parameter_and_buffer_is_initialized_as_documented(normalize):
    model = make_model(
        hidden_size=128,
        dino={
            "num_prototypes": 100,
            "head_hidden_size": 96,
            "head_bottleneck_size": 64,
            "normalize_last_layer": normalize,
        },
    )
    encoder = set()
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name == "loss.center":
            assert torch.equal(value, torch.zeros(100))
        elif re.search(r"head\.layers\.\d\.weight", name):
            assert_statistics(name, value, 0.0, 0.02)
        elif re.search(r"head\.layers\.\d\.bias", name):
            assert (value == 0).all(), name
        elif name.endswith("direction"):
            assert_statistics(name, value, 0.0, 1 / math.sqrt(64) / math.sqrt(3))
            assert value.abs().max() <= 1 / math.sqrt(64)
        elif name.endswith("magnitude"):
            assert torch.equal(value, torch.ones(100, 1))
        else:
            assert name.startswith(("vit.", "student.vit.")), name
            encoder.add(name)
    names = [pattern for pattern, _ in INITIALIZATION.values()]
    assert all(any(re.search(pattern, name) for pattern in names) for name in encoder)
    weights = [model.student.vit.layers[i].mlp.fc1.weight for i in range(3)]
    for weight in weights:
        assert_statistics("fc1", weight, 0.0, 0.02)


def test_the_teacher_starts_as_a_copy_of_the_student():
    model = make_model()
    for name, teacher, student in teacher_and_student(model):
        assert torch.equal(teacher, student), name
        assert teacher.data_ptr() != student.data_ptr(), name


def test_a_pretrained_encoder_is_copied_to_the_student(tmp_path):
    torch.manual_seed(5)
    encoder = SelfViTModel(tiny_config())
    encoder.save_pretrained(tmp_path)
    config = tiny_config(dino_config=tiny_dino_config())
    model = SelfViTForDINO.from_pretrained(tmp_path, config=config)
    model.init_student_from_teacher()
    for name, value in encoder.state_dict().items():
        assert torch.equal(model.vit.state_dict()[name], value), name
    # the heads, which the checkpoint lacks, used to keep two different random values
    for name, teacher, student in teacher_and_student(model):
        assert torch.equal(teacher, student), name


def test_the_teacher_never_receives_a_gradient(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    for candidate in (model, SelfViTForDINO.from_pretrained(tmp_path).train()):
        candidate(**make_views()).loss.backward()
        for network in (candidate.vit, candidate.head):
            for parameter in network.parameters():
                assert not parameter.requires_grad
                assert parameter.grad is None
        for name, parameter in candidate.student.named_parameters():
            assert parameter.grad is not None, name


def test_only_the_student_is_trained():
    model = make_model()
    names = [name for name, _ in model.trained_parameters()]
    expected = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names == expected
    assert all(name.startswith("student.") for name in names)
    assert model.trained_encoder is model.student.vit
    assert model.base_model is model.vit


def test_prototypes_receive_gradient():
    model = make_model()
    model(**make_views()).loss.backward()
    assert (model.student.head.last_layer.direction.grad.abs().sum(dim=1) > 0).all()


def test_the_teacher_is_in_evaluation_mode_while_the_student_trains():
    model = make_model(drop_path_rate=0.5)
    assert model.training
    assert model.student.training
    assert not any(module.training for module in [*model.vit.modules(), *model.head.modules()])
    model.eval()
    assert not model.student.training
    model.train()
    views = make_views()
    outputs = [model(**views) for _ in range(6)]
    assert len({output.teacher_entropy.item() for output in outputs}) == 1
    assert len({output.loss.item() for output in outputs}) > 1


def test_the_forward_pass_is_the_loss_of_student_and_teacher():
    model, views = make_model(), make_views()
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)

    def logits_of(network: Any, view: Tensor) -> Tensor:
        return network.head(network.vit(view).last_hidden_state[:, 0])

    all_views = [*views["global_views"], *views["local_views"]]
    student = torch.stack([logits_of(model.student, view) for view in all_views])
    teacher = torch.stack([logits_of(model, view) for view in views["global_views"]])
    expected = model.loss(student, teacher, 0.05).loss
    output = model(**views, teacher_temperature=0.05)
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=1e-6)


def test_the_default_temperature_is_the_final_one():
    model, views = make_model(dino={"teacher_temperature": 0.06}), make_views()
    assert torch.equal(model(**views).loss, model(**views, teacher_temperature=0.06).loss)
    assert not torch.equal(model(**views).loss, model(**views, teacher_temperature=0.04).loss)


@pytest.mark.parametrize("num_local_views", [0, 1, 5])
def test_any_number_of_local_views_works(num_local_views):
    model, views = make_model(), make_views(num_local_views=num_local_views)
    loss = model(**views).loss
    assert loss.isfinite()
    if num_local_views == 0:
        empty = torch.empty(0, 3, 3, 16, 16)
        assert torch.equal(model(**views, local_views=empty).loss, loss)


def test_a_single_global_view_is_an_error():
    with pytest.raises(ValueError, match="at least 2 views"):
        make_model()(torch.randn(1, 2, 3, 32, 32))


def test_a_tuple_has_the_same_values():
    model, views = make_model(), make_views()
    values = model(**views, return_dict=False)
    assert isinstance(values, tuple)
    assert torch.equal(values[0], model(**views).loss)


def test_micro_batches_are_equivalent_to_one_batch():
    whole, parts, views = make_model(), make_model(), make_views(batch_size=8)
    for model in (whole, parts):
        torch.manual_seed(7)
        for parameter in model.student.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
        model.loss.center.copy_(torch.linspace(-0.1, 0.1, 24))
    loss = whole(**views).loss
    loss.backward()
    losses = []
    for index in range(4):
        micro = {name: view[:, 2 * index : 2 * index + 2] for name, view in views.items()}
        losses.append(parts(**micro).loss)
        (losses[-1] / 4).backward()
    torch.testing.assert_close(torch.stack(losses).mean(), loss, rtol=1e-5, atol=1e-6)
    for (name, one), (_, other) in zip(
        whole.trained_parameters(), parts.trained_parameters(), strict=True
    ):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-5, msg=name)
    for model in (whole, parts):
        model.after_optimizer_step(0, 10)
    torch.testing.assert_close(parts.loss.center, whole.loss.center)
    assert not torch.equal(whole.loss.center, torch.linspace(-0.1, 0.1, 24))


# Hooks of the training loop


@pytest.mark.parametrize("normalize", [True, False])
def test_the_last_layer_moves_only_after_the_frozen_steps(normalize):
    model = make_model(dino={"freeze_last_layer_ratio": 0.5, "normalize_last_layer": normalize})
    named = list(model.trained_parameters())
    optimizer = torch.optim.AdamW([value for _, value in named], lr=1e-3, weight_decay=0.1)
    for step in range(4):
        before = {name: value.detach().clone() for name, value in named}
        model(**make_views(seed=step), **model.scheduled_values(step, 4)).loss.backward()
        model.before_optimizer_step(step, 4)
        optimizer.step()
        optimizer.zero_grad()
        model.after_optimizer_step(step, 4)
        for name, value in named:
            frozen = "last_layer" in name and step < 2
            assert torch.equal(value, before[name]) == frozen, (step, name)


def test_a_teacher_update_matches_hand_computed_values():
    model = make_model(dino={"teacher_momentum": 0.9, "teacher_momentum_end": 1.0})
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(1.0)
    before = [
        (name, teacher.clone(), student) for name, teacher, student in teacher_and_student(model)
    ]
    logged = model.after_optimizer_step(0, 10)
    assert logged == {"teacher_momentum": 0.9}
    state = model.state_dict()
    for name, teacher, student in before:
        torch.testing.assert_close(state[name], 0.9 * teacher + 0.1 * student)


def test_momentum_matches_the_reference_at_every_step():
    golden = load_golden("schedules")[0]["momentum"]
    model = make_model()
    ours = [
        model.after_optimizer_step(step, len(golden))["teacher_momentum"]
        for step in range(len(golden))
    ]
    torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), golden, rtol=1e-12, atol=0)


def test_teacher_temperature_matches_the_reference_at_every_step():
    golden, config = load_golden("dino_loss")
    model = make_model(
        dino={
            "warmup_teacher_temperature": config["warmup_teacher_temp"],
            "teacher_temperature": config["teacher_temp"],
            "teacher_temperature_warmup_ratio": (
                config["warmup_teacher_temp_epochs"] / config["nepochs"]
            ),
        }
    )
    for step in range(5):
        values = model.scheduled_values(step, config["nepochs"])
        expected = golden[f"step{step}.teacher_temp"].item()
        assert values == {"teacher_temperature": pytest.approx(expected, rel=1e-12)}


# Precision


def test_the_center_stays_in_float32_under_autocast():
    model = make_model()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**make_views())
    assert output.loss.dtype == torch.float32
    output.loss.backward()
    model.after_optimizer_step(0, 10)
    center = model.loss.center
    assert center.dtype == torch.float32
    assert not torch.equal(center, center.bfloat16().float())


def test_the_center_is_loaded_in_float32_for_every_dtype(tmp_path):
    # it used to be rounded, and `update_center` then failed because the dtypes differ
    model = make_model()
    model.loss.center.normal_()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path, dtype=torch.bfloat16).train()
    assert loaded.vit.layernorm.weight.dtype == torch.bfloat16
    assert torch.equal(loaded.loss.center, model.loss.center)
    loaded(**make_views()).loss.backward()
    loaded.after_optimizer_step(0, 10)
    assert not torch.equal(loaded.loss.center, model.loss.center)


def test_a_model_cast_to_bfloat16_moves_its_center():
    model = make_model().to(torch.bfloat16)
    model(**make_views()).loss.backward()
    model.after_optimizer_step(0, 10)
    assert (model.loss.center != 0).any()
