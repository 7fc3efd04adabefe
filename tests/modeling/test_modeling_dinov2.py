"""DINOv2: losses, heads, masks, Gram anchoring, and model with teachers."""

# B batch · G global views · V all views · I global views of all images · N patches · M masked
# patches · K prototypes

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from selfvit import SelfViTForDINOv2, SelfViTModel
from selfvit.modeling.checkpoints.loading import load_strictly
from selfvit.modeling.dino_head import DINOLoss
from selfvit.modeling.gram import gram_loss
from selfvit.modeling.koleo import koleo_loss
from selfvit.modeling.modeling_dinov2 import PatchLoss, masked_patches
from tests.golden import load_golden
from tests.modeling.test_modeling_selfvit import INITIALIZATION, assert_statistics
from tests.objectives import masked_views, tiny_config, tiny_dinov2_config
from tests.training.processes import call_in_two

LOSSES = {"rtol": 1e-5, "atol": 0.0}
OUTPUTS = {"rtol": 1e-5, "atol": 1e-6}
ITERATIONS = {"center": 0, "sinkhorn": 3}
STEPS = range(3)


def make_model(
    seed: int = 0, dinov2: dict[str, Any] | None = None, **overrides: Any
) -> SelfViTForDINOv2:
    torch.manual_seed(seed)
    fields = {"use_mask_token": True, "initializer_range": 0.2, **overrides}
    return SelfViTForDINOv2(
        tiny_config(dinov2_config=tiny_dinov2_config(**(dinov2 or {})), **fields)
    )


def make_views(batch_size: int = 4, seed: int = 1, num_local_views: int = 2) -> dict[str, Tensor]:
    return masked_views(torch.Generator().manual_seed(seed), batch_size, num_local_views)


def assert_gradients_match(gradient: Tensor, expected: Tensor) -> None:
    close = {"rtol": 1e-4, "atol": 1e-6 * float(expected.abs().max())}
    torch.testing.assert_close(gradient, expected, **close)


# Values of the references


@pytest.mark.parametrize("method", ITERATIONS)
def test_class_losses_in_consecutive_steps_match_the_reference(method):
    golden, config = load_golden("dinov2_class_loss")
    loss = DINOLoss(
        config["prototypes"], config["student_temp"], config["center_momentum"], ITERATIONS[method]
    )
    for step in STEPS:
        temperature = config["teacher_temps"][step]
        views = [golden[f"step{step}.student_{kind}"] for kind in ("global", "local")]
        for logits in views:
            logits.requires_grad_()
        student = torch.cat([logits.unflatten(0, (-1, config["images"])) for logits in views])
        teacher = golden[f"step{step}.teacher_global"].unflatten(0, (2, -1))
        targets = loss.teacher_log_probabilities(teacher, temperature).exp().flatten(0, 1)
        expected = golden[f"step{step}.{method}.teacher_probabilities"]
        torch.testing.assert_close(targets, expected, **OUTPUTS)
        value = loss(student, teacher, temperature).loss
        value.backward()
        torch.testing.assert_close(value, golden[f"step{step}.{method}.loss"][0], **LOSSES)
        for kind, logits in zip(("global", "local"), views, strict=True):
            expected = golden[f"step{step}.{method}.student_{kind}_grad"]
            assert_gradients_match(logits.grad, expected)
            logits.grad = None
        without_local = loss.eval()(student[:2], teacher, temperature).loss
        # the reference divides by 3 without local crops, although there are 2 pairs
        expected = golden[f"step{step}.{method}.loss_global_without_local_crops_as_dinov2"][0]
        torch.testing.assert_close(without_local, expected * 3 / 2, **LOSSES)
        loss.train().update_center()
        if method == "center":
            expected = golden[f"step{step}.center.center_after"][0]
            torch.testing.assert_close(loss.center, expected, **OUTPUTS)


@pytest.mark.parametrize("reference", ["dinov2_center", "dinov2_sinkhorn", "lightly_center"])
def test_patch_losses_in_consecutive_steps_match_the_reference(reference):
    golden, config = load_golden("ibot_patch_loss")
    iterations = ITERATIONS[reference.partition("_")[2]]
    loss = PatchLoss(
        config["prototypes"], config["student_temp"], config["center_momentum"], iterations
    )
    for step in STEPS:
        temperature = config["teacher_temps"][step]
        student = golden[f"step{step}.student"].requires_grad_()
        teacher = golden[f"step{step}.teacher"]
        ids, weights = masked_patches(golden[f"step{step}.mask"].flatten(1))
        assert len(ids) == len(student)
        name = f"step{step}.{reference}"
        if f"{name}.teacher_probabilities" in golden:
            targets = loss.teacher_log_probabilities(teacher, temperature).exp()
            torch.testing.assert_close(targets, golden[f"{name}.teacher_probabilities"], **OUTPUTS)
        value = loss(student, teacher, weights, temperature)
        value.backward()
        torch.testing.assert_close(value, golden[f"{name}.loss"][0], **LOSSES)
        assert_gradients_match(student.grad, golden[f"{name}.student_grad"])
        loss.update_center()
        if f"{name}.center_after" in golden:
            torch.testing.assert_close(loss.center, golden[f"{name}.center_after"][0], **OUTPUTS)


def test_both_losses_of_ibot_match_its_code_with_its_center():
    golden, config = load_golden("ibot_loss_reference")
    classes = DINOLoss(config["prototypes"], 0.1, 0.9)
    patches = PatchLoss(config["patch_prototypes"], 0.1, 0.9)
    temperatures = {
        kind: [config[f"warmup_teacher_temp{kind}"]] + [config[f"teacher_temp{kind}"]] * 2
        for kind in ("", "2")
    }
    for kind in ("", "2"):  # a linear warm-up over two epochs
        first, last = config[f"warmup_teacher_temp{kind}"], config[f"teacher_temp{kind}"]
        assert config["warmup_epochs"] == 2 and temperatures[kind] == [first, last, last]
    for step in STEPS:
        tensors = {
            name: golden[f"step{step}.student_{name}"].requires_grad_()
            for name in ("global", "local", "patch")
        }
        student = torch.cat([tensors["global"], tensors["local"]])
        class_loss = classes(
            student.unflatten(0, (-1, config["images"])),
            golden[f"step{step}.teacher_global"].unflatten(0, (2, -1)),
            temperatures[""][step],
        ).loss
        ids, weights = masked_patches(golden[f"step{step}.mask"].flatten(1))
        patch_loss = patches(
            tensors["patch"].flatten(0, 1)[ids],
            golden[f"step{step}.teacher_patch"].flatten(0, 1)[ids],
            weights,
            temperatures["2"][step],
        )
        torch.testing.assert_close(class_loss, golden[f"step{step}.loss_class"][0], **LOSSES)
        torch.testing.assert_close(patch_loss, golden[f"step{step}.loss_patch"][0], **LOSSES)
        (class_loss + patch_loss).backward()
        for name, tensor in tensors.items():
            assert_gradients_match(tensor.grad, golden[f"step{step}.student_{name}_grad"])
        classes.update_center()
        torch.testing.assert_close(classes.center, golden[f"step{step}.center_after"][0], **OUTPUTS)
        # iBOT's center is over all patches, DINOv2's and ours over masked ones
        patches.center.copy_(golden[f"step{step}.patch_center_after"][0])


# Values computed by hand


def test_masked_patches_have_equal_weights_within_a_view_and_unmasked_views_count():
    masks = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]]).bool()
    ids, weights = masked_patches(masks)
    assert ids.tolist() == [0, 3, 9]
    torch.testing.assert_close(weights, torch.tensor([1 / 6, 1 / 6, 1 / 3]))


def test_the_patch_loss_matches_a_value_computed_by_hand():
    # student at temperature 0.5, teacher at 1 with center (1, 0): targets 1/2 and sigmoid(-1)
    loss = PatchLoss(2, student_temperature=0.5, center_momentum=0.9)
    loss.center.copy_(torch.tensor([1.0, 0.0]))
    student = torch.tensor([[1.0, 0.0], [0.0, 0.5]])
    teacher = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    weights = torch.tensor([0.25, 0.5])
    value = loss(student, teacher, weights, 1.0).item()

    def softplus(x: float) -> float:
        return math.log1p(math.exp(x))

    second = 1 / (1 + math.exp(1.0))  # prototype 0 of the second patch
    first_loss = 0.5 * softplus(-2.0) + 0.5 * softplus(2.0)
    second_loss = second * softplus(1.0) + (1 - second) * softplus(-1.0)
    assert value == pytest.approx(0.25 * first_loss + 0.5 * second_loss, rel=1e-6)
    loss.update_center()  # 0.9 * (1, 0) + 0.1 * (0.5, 0)
    torch.testing.assert_close(loss.center, torch.tensor([0.95, 0.0]))


def test_uniform_patches_have_the_loss_ln_k_times_the_fraction_of_masked_views():
    masks = torch.zeros(4, 9, dtype=torch.bool)
    masks[1, :5] = masks[2, 3] = True
    _, weights = masked_patches(masks)
    zeros = torch.zeros(6, 8)
    assert PatchLoss(8, 0.1, 0.9)(zeros, zeros, weights, 0.04).item() == pytest.approx(
        math.log(8) / 2
    )


# Properties of the losses


@pytest.mark.parametrize("method", ITERATIONS)
def test_a_batch_without_masks_has_loss_zero_and_leaves_the_center(method):
    # the center of Lightly becomes NaN after such a batch, for good
    loss = PatchLoss(5, 0.1, 0.9, ITERATIONS[method])
    loss.center.fill_(0.5)
    student = torch.zeros(0, 5, requires_grad=True)
    value = loss(student, torch.zeros(0, 5), torch.zeros(0), 0.04)
    value.backward()
    loss.update_center()
    assert value == 0 and student.grad.shape == (0, 5)
    assert torch.equal(loss.center, torch.full((5,), 0.5))


def test_sinkhorn_is_finite_for_large_logits_and_prototypes_that_are_never_near():
    # the reference overflows above 3.5 at temperature 0.04, and divides 0 by 0 for the last column
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)) * 100
    logits[:, -1] = -1e4
    loss = PatchLoss(4, 0.1, 0.9, sinkhorn_iterations=3)
    targets = loss.teacher_log_probabilities(logits, 0.04).exp()
    assert targets.isfinite().all()
    torch.testing.assert_close(targets.sum(dim=-1), torch.ones(6))


def test_sinkhorn_moves_no_center():
    loss = DINOLoss(5, 0.1, 0.9, sinkhorn_iterations=3).train()
    loss(torch.randn(3, 4, 5), torch.randn(2, 4, 5), 0.07)
    loss.update_center()
    assert not loss.center.any()


def test_the_patch_loss_is_float32_under_autocast_and_gives_the_teacher_no_gradient():
    loss = PatchLoss(5, 0.1, 0.9)
    student = torch.randn(6, 5, requires_grad=True)
    teacher = torch.randn(6, 5, requires_grad=True)
    weights = torch.full((6,), 1 / 6)
    expected = loss(student, teacher, weights, 0.04)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(student, teacher, weights, 0.04)
    value.backward()
    assert torch.equal(value, expected) and value.dtype == torch.float32
    assert teacher.grad is None and student.grad.any(dim=-1).all()


# Two processes


def parallel_model(method: str) -> SelfViTForDINOv2:
    return make_model(dinov2={"sinkhorn_iterations": ITERATIONS[method]})


def uneven_views() -> dict[str, Tensor]:
    """Return the views of 6 images; the last three have hardly a mask."""
    views = make_views(6)
    views["bool_masked_pos"][:, 3:] = False
    views["bool_masked_pos"][0, 4, 2] = True
    return views


def step_in_process(rank: int, store_file: str, result_file: str, method: str) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(store_file, 2), rank=rank, world_size=2)
    torch.set_num_threads(1)
    model = parallel_model(method)
    views = {name: value[:, 3 * rank : 3 * rank + 3] for name, value in uneven_views().items()}
    parallel = DistributedDataParallel(model)  # a reference: without one, gradients stay local
    output = parallel(**views)
    output.loss.backward()
    metrics = model.after_optimizer_step(0, 10)
    gradients = {name: value.grad for name, value in model.trained_parameters()}
    torch.save(
        (output.loss.detach(), gradients, model.loss.state_dict(), metrics), f"{result_file}{rank}"
    )
    dist.destroy_process_group()


@pytest.mark.parametrize("method", ITERATIONS)
def test_two_processes_have_loss_gradients_and_centers_of_one(method, tmp_path):
    call_in_two(step_in_process, (str(tmp_path / "store"), str(tmp_path / "result"), method))
    losses, gradients, centers, metrics = zip(
        *(torch.load(tmp_path / f"result{rank}") for rank in range(2)), strict=True
    )
    model = parallel_model(method)
    whole = model(**uneven_views())
    whole.loss.backward()
    torch.testing.assert_close((losses[0] + losses[1]) / 2, whole.loss.detach(), **LOSSES)
    for name, parameter in model.trained_parameters():
        scale = float(parameter.grad.abs().max())
        for gradient in gradients:
            torch.testing.assert_close(
                gradient[name], parameter.grad, rtol=1e-4, atol=1e-5 * scale + 1e-7, msg=name
            )
    expected = model.after_optimizer_step(0, 10)
    for rank in range(2):
        assert metrics[rank] == pytest.approx(expected, rel=1e-5)
        for name, center in model.loss.state_dict().items():
            torch.testing.assert_close(centers[rank][name], center, **OUTPUTS)


# The model


def test_a_missing_config_or_mask_token_is_an_error():
    with pytest.raises(ValueError, match=r"dinov2_config=DINOv2Config\(\)"):
        SelfViTForDINOv2(tiny_config(use_mask_token=True))
    with pytest.raises(ValueError, match="pass use_mask_token=True"):
        SelfViTForDINOv2(tiny_config(dinov2_config=tiny_dinov2_config()))


def test_every_parameter_and_buffer_is_initialized_as_documented():
    sizes = {"num_prototypes": 100, "head_hidden_size": 96, "head_bottleneck_size": 64}
    model = make_model(hidden_size=128, initializer_range=0.02, dinov2=sizes)
    encoder = set()
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if re.fullmatch(r"loss\.(class|patch)_loss\.center", name):
            assert torch.equal(value, torch.zeros(100))
        elif re.search(r"head\.layers\.\d\.weight", name):
            assert_statistics(name, value, 0.0, 0.02)
        elif re.search(r"head\.layers\.\d\.bias", name):
            assert (value == 0).all(), name
        elif name.endswith("direction"):
            assert_statistics(name, value, 0.0, 1 / math.sqrt(64) / math.sqrt(3))
        elif name.endswith("magnitude"):
            assert torch.equal(value, torch.ones(100, 1))
        else:
            assert name.startswith(("vit.", "student.vit.", "gram_teacher.vit.")), name
            encoder.add(name)
    names = [pattern for pattern, _ in INITIALIZATION.values()]
    assert all(any(re.search(pattern, name) for pattern in names) for name in encoder)
    state = model.state_dict()
    for name in state:
        if name.startswith(("vit.", "head.")):
            assert torch.equal(state[name], state[f"student.{name}"]), name
        if name.startswith("vit."):
            assert torch.equal(state[name], state[f"gram_teacher.{name}"]), name


@pytest.mark.parametrize("separate", [False, True])
def test_heads_are_shared_or_separate(separate):
    model = make_model(dinov2={"separate_patch_head": separate, "freeze_last_layer_ratio": 0.5})
    assert len(model.head.last_layers()) == 1 + separate
    tokens = torch.randn(3, 32)
    classes, patches = model.head(tokens, tokens)
    assert torch.allclose(classes, patches) != separate
    model(**make_views()).loss.backward()
    model.before_optimizer_step(0, 10)
    frozen = {name for name, value in model.trained_parameters() if value.grad is None}
    assert len(frozen) == 2 * (1 + separate) and all("last_layer" in name for name in frozen)


@pytest.mark.parametrize("num_local_views", [0, 2])
@pytest.mark.parametrize("separate", [False, True])
def test_the_forward_pass_is_the_weighted_sum_of_its_losses(num_local_views, separate):
    fields = {
        "separate_patch_head": separate,
        "class_loss_weight": 2.0,
        "patch_loss_weight": 3.0,
        "koleo_weight": 0.5,
        "gram_weight": 7.0,
    }
    model, views = (
        make_model(dinov2=fields, num_register_tokens=2),
        make_views(3, 1, num_local_views),
    )
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    images, masks = views["global_views"].flatten(0, 1), views["bool_masked_pos"].flatten(0, 1)
    teacher = model.vit(images).last_hidden_state
    student = model.student.vit(images, bool_masked_pos=masks).last_hidden_state
    local_tokens = [
        model.student.vit(view).last_hidden_state[:, 0] for view in views.get("local_views", [])
    ]
    patch_head = (lambda head: head.patch_head) if separate else (lambda head: head.class_head)
    rows = torch.cat([student[:, 0], *local_tokens])
    class_loss = model.loss.class_loss(
        model.student.head.class_head(rows).unflatten(0, (-1, 3)),
        model.head.class_head(teacher[:, 0]).unflatten(0, (2, 3)),
        0.05,
    ).loss
    patch_loss = sum(
        model.loss.patch_loss(
            patch_head(model.student.head)(student[index, 3:][mask]),
            patch_head(model.head)(teacher[index, 3:][mask]),
            torch.full((int(mask.sum()),), 1 / max(1, int(mask.sum()))),
            0.05,
        )
        for index, mask in enumerate(masks)
    )
    patch_loss = patch_loss / len(masks)
    koleo = sum(koleo_loss(tokens[None]) for tokens in student[:, 0].unflatten(0, (2, 3)))
    gram = gram_loss(
        student[:, 3:], model.gram_teacher.vit(images).last_hidden_state[:, 3:], (4, 4), (4, 4)
    )
    output = model(**views, teacher_temperature=0.05)
    expected = {"class_loss": class_loss, "patch_loss": patch_loss, "koleo": koleo, "gram": gram}
    for name, value in expected.items():
        torch.testing.assert_close(output[name], value, rtol=1e-4, atol=1e-5, msg=name)
    total = 2 * class_loss + 3 * patch_loss + 0.5 * koleo + 7 * gram
    torch.testing.assert_close(output.loss, total, rtol=1e-4, atol=1e-5)


def test_terms_without_weight_are_not_computed():
    model = make_model(dinov2={"koleo_weight": 0, "gram_weight": 0})
    output = model(**make_views(1))  # KoLeo needs two images
    assert output.koleo is None and output.gram is None and model.gram_teacher is None
    torch.testing.assert_close(output.loss, output.class_loss + output.patch_loss)
    metrics = model.after_optimizer_step(0, 10)
    assert metrics.keys() == {"teacher_momentum", "class_loss", "patch_loss"}


def test_only_the_student_sees_masks():
    model, views = make_model(), make_views()
    before = model(**views)
    with torch.no_grad():
        model.vit.embeddings.mask_token.add_(1)
        model.gram_teacher.vit.embeddings.mask_token.add_(1)
        assert torch.equal(model(**views).loss, before.loss)
        model.student.vit.embeddings.mask_token.add_(1)
        assert not torch.equal(model(**views).loss, before.loss)


def test_missing_masks_are_an_error_in_training_only():
    model, views = make_model(), make_views()
    masks = views.pop("bool_masked_pos")
    with pytest.raises(ValueError, match=r"patch_loss_weight \(1.0\) needs masks in training"):
        model(**views)
    output = model.eval()(**views)
    assert output.patch_loss == 0 and output.loss.isfinite()
    with pytest.raises(ValueError, match=r"\(2, 4, 16\), got \(2, 4, 15\)"):
        model(**views, bool_masked_pos=masks[..., 1:])
    model = make_model(dinov2={"patch_loss_weight": 0})
    model(**views).loss.backward()
    assert model.student.vit.embeddings.mask_token.grad is not None  # for DDP


def test_gram_views_may_have_another_resolution():
    model, views = make_model(), make_views()
    same = model(**views).gram
    assert torch.equal(model(**views, gram_views=views["global_views"]).gram, same)
    larger = torch.randn(2, 4, 3, 64, 64)
    assert model(**views, gram_views=larger).gram.isfinite()
    with pytest.raises(ValueError, match="set gram_weight above 0"):
        make_model(dinov2={"gram_weight": 0})(**views, gram_views=larger)


def test_training_keeps_teachers_in_evaluation_mode_and_the_gram_teacher_frozen():
    model = make_model(drop_path_rate=0.5)
    teachers = (model.vit, model.head, model.gram_teacher)
    start = {name: value.clone() for name, value in model.gram_teacher.vit.state_dict().items()}
    optimizer = torch.optim.SGD([value for _, value in model.trained_parameters()], lr=0.1)
    for step in range(2):
        model.train()
        assert not any(module.training for teacher in teachers for module in teacher.modules())
        model(**make_views(seed=step)).loss.backward()
        assert all(value.grad is None for part in teachers for value in part.parameters())
        optimizer.step()
        model.after_optimizer_step(step, 10)
    for name, value in model.gram_teacher.vit.state_dict().items():
        assert torch.equal(value, start[name]), name
    assert not torch.equal(model.vit.layers[0].mlp.fc1.weight, start["layers.0.mlp.fc1.weight"])


def test_the_encoder_that_a_run_starts_from_is_the_gram_teacher(tmp_path):
    torch.manual_seed(5)
    encoder = SelfViTModel(tiny_config(use_mask_token=True))
    model = make_model()
    model.vit.load_state_dict(encoder.state_dict())
    model.init_student_from_teacher()
    for network in (model.vit, model.student.vit, model.gram_teacher.vit):
        for name, value in encoder.state_dict().items():
            assert torch.equal(network.state_dict()[name], value), name


def test_a_checkpoint_without_a_gram_teacher_becomes_its_own(tmp_path):
    plain = make_model(seed=3, dinov2={"gram_weight": 0})
    with torch.no_grad():
        plain.vit.embeddings.cls_token.add_(1)
    plain.save_pretrained(tmp_path / "plain")
    config = make_model().config
    model = load_strictly(SelfViTForDINOv2, tmp_path / "plain", config=config)
    for name, value in plain.vit.state_dict().items():
        assert torch.equal(model.gram_teacher.vit.state_dict()[name], value), name
    # a Gram teacher that is saved is kept, and a run without Gram anchoring leaves it out
    with torch.no_grad():
        model.gram_teacher.vit.embeddings.cls_token.add_(1)
    model.save_pretrained(tmp_path / "anchored")
    again = load_strictly(SelfViTForDINOv2, tmp_path / "anchored")
    assert torch.equal(
        again.gram_teacher.vit.embeddings.cls_token, model.gram_teacher.vit.embeddings.cls_token
    )
    without = load_strictly(SelfViTForDINOv2, tmp_path / "anchored", config=plain.config)
    assert without.gram_teacher is None


def test_the_temperature_warms_up_and_the_momentum_rises():
    fields = {"teacher_temperature_warmup_ratio": 0.3, "teacher_momentum": 0.9}
    model = make_model(dinov2=fields)
    temperatures = [model.scheduled_values(step, 10)["teacher_temperature"] for step in range(10)]
    assert temperatures[0] == 0.04 and temperatures[2:] == [0.07] * 8
    model(**make_views())
    momenta = [model.after_optimizer_step(step, 10)["teacher_momentum"] for step in range(10)]
    assert momenta[0] == 0.9 and momenta == sorted(momenta) and momenta[-1] < 1


def test_training_lowers_the_loss():
    model, views = make_model(), make_views(batch_size=8)
    optimizer = torch.optim.AdamW([value for _, value in model.trained_parameters()], lr=1e-3)
    losses = []
    for step in range(15):
        loss = model(**views, teacher_temperature=0.07).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.after_optimizer_step(step, 15)
        losses.append(loss.item())
    assert losses[-1] < losses[0]
