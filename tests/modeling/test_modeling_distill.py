"""Distillation: pure functions, queue, head and model."""

# B batch · N patches · E teacher hidden · M queue

from __future__ import annotations

import copy
import shutil
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModel, AutoModelForPreTraining

from selfvit import DistillConfig, SelfViTForDistill
from selfvit.modeling.distributed import without_others
from selfvit.modeling.frozen_teacher import TeacherFeatures
from selfvit.modeling.modeling_distill import (
    DistillHead,
    DistillLoss,
    global_loss,
    local_loss,
    mix_images,
    resize_patches,
)
from tests.golden import load_golden
from tests.objectives import (
    TINY_TEACHER,
    random_images_to_mix,
    tiny_config,
    tiny_distill_config,
)
from tests.training.processes import call_in_two

OUTPUTS = {"rtol": 1e-5, "atol": 0.0}
TEMPERATURE = 0.07
STEPS = ("step0", "step1", "step2")


def make_model(seed: int = 0, **distill: Any) -> SelfViTForDistill:
    torch.manual_seed(seed)
    return SelfViTForDistill(tiny_config(distill_config=tiny_distill_config(**distill)))


def make_inputs(batch_size: int = 4, seed: int = 1) -> dict[str, Tensor]:
    return random_images_to_mix(torch.Generator().manual_seed(seed), batch_size)


def unit(*shape: int, seed: int = 0) -> Tensor:
    """Return random vectors of length 1."""
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def assert_gradient(value: Tensor, source: Tensor, expected: Tensor) -> None:
    (gradient,) = torch.autograd.grad(value, source, retain_graph=True)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6 * expected.abs().max())


# Values of the reference


def loss_of(golden: dict[str, Tensor], queue: Tensor | None = None) -> DistillLoss:
    _, config = load_golden("distillation")
    width = golden["step0.teacher_cls"].shape[-1]
    loss = DistillLoss(DistillConfig(queue_size=config["queue"], teacher_hidden_size=width))
    if queue is not None:
        loss.queue.copy_(queue)
    return loss.train()


@pytest.mark.parametrize("start", ["filled", "given"])
def test_losses_gradients_and_queue_match_the_reference(start):
    golden, config = load_golden("distillation")
    loss = loss_of(golden, golden["queue_start"] if start == "given" else None)
    grid = tuple(config["teacher_grid"])
    for step in STEPS:
        class_tokens = golden[f"{step}.student_cls"].requires_grad_()
        patches = golden[f"{step}.student_patch"].requires_grad_()
        teacher = TeacherFeatures(
            golden[f"{step}.teacher_cls"], golden[f"{step}.teacher_patch"], grid
        )
        output = loss(class_tokens, patches, grid, teacher)
        expected = golden[f"{step}.{start}.loss_global"][0]
        torch.testing.assert_close(output.global_loss, expected, **OUTPUTS)
        torch.testing.assert_close(output.local_loss, golden[f"{step}.loss_local"][0], **OUTPUTS)
        if start == "given":
            torch.testing.assert_close(output.loss, golden[f"{step}.loss"][0], **OUTPUTS)
        assert_gradient(output.loss, class_tokens, golden[f"{step}.{start}.student_cls_grad"])
        assert_gradient(output.loss, patches, golden[f"{step}.student_patch_grad"])
        loss.update_queue()
        stored = golden[f"{step}.{start}.queue"]
        torch.testing.assert_close(loss.queue[: len(stored)], stored)
        assert not loss.queue[len(stored) :].any()


@pytest.mark.parametrize("step", STEPS)
def test_rows_of_zeros_count_unless_they_are_left_out(step):
    golden, _ = load_golden("distillation")
    class_tokens = golden[f"{step}.student_cls"].requires_grad_()
    student = F.normalize(class_tokens, dim=-1)
    teacher = F.normalize(golden[f"{step}.teacher_cls"], dim=-1)
    queue = golden[f"{step}.zeros.queue"]
    value = global_loss(student, teacher, queue, TEMPERATURE)
    torch.testing.assert_close(value, golden[f"{step}.zeros.loss_global"][0], **OUTPUTS)
    assert_gradient(value, class_tokens, golden[f"{step}.zeros.student_cls_grad"])
    filled = global_loss(student, teacher, queue, TEMPERATURE, queue.any(dim=1))
    torch.testing.assert_close(filled, golden[f"{step}.filled.loss_global"][0], **OUTPUTS)


def test_patches_of_another_grid_are_resized_as_in_the_reference():
    golden, config = load_golden("distillation")
    grids = tuple(config["student_grid"]), tuple(config["teacher_grid"])
    patches = golden["resized.student_patch"].requires_grad_()
    student = F.normalize(resize_patches(patches, *grids), dim=-1)
    teacher = F.normalize(golden["resized.teacher_patch"], dim=-1)
    value = local_loss(student, teacher, TEMPERATURE)
    torch.testing.assert_close(value, golden["resized.loss_local"][0], **OUTPUTS)
    assert_gradient(value, patches, golden["resized.student_patch_grad"])


# Values computed by hand, and properties


def test_a_student_equal_to_its_teacher_has_a_loss_of_0():
    vectors, patches = unit(4, 6), unit(2, 9, 6)
    assert global_loss(vectors, vectors, unit(5, 6, seed=1), TEMPERATURE) == 0
    assert local_loss(patches, patches, TEMPERATURE) == 0


def test_a_queue_of_equal_vectors_gives_a_loss_of_0_for_any_student():
    queue = unit(1, 6, seed=2).expand(5, 6)
    value = global_loss(unit(4, 6), unit(4, 6, seed=1), queue, TEMPERATURE)
    assert value.item() == pytest.approx(0, abs=1e-6)


def test_the_divergence_of_two_vectors_is_as_computed_by_hand():
    # teacher on the first of two orthogonal vectors, student on the second, temperature 1:
    # p = (e, 1) / (e + 1), q reversed; KL = sum p log(p / q) = (e - 1) / (e + 1)
    axes = torch.eye(2)
    value = global_loss(axes[1:], axes[:1], axes, temperature=1.0)
    assert value.item() == pytest.approx(0.46211716, rel=1e-6)


def test_the_local_loss_does_not_depend_on_a_common_rotation_of_the_patches():
    student, teacher = unit(2, 9, 6), unit(2, 9, 6, seed=1)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(3)))[0]
    turned = local_loss(student @ rotation, teacher, TEMPERATURE)
    torch.testing.assert_close(turned, local_loss(student, teacher, TEMPERATURE))


def test_resizing_keeps_a_linear_ramp_and_equal_grids():
    rows = torch.arange(4.0).repeat_interleave(4).view(1, 16, 1)
    resized = resize_patches(rows, (4, 4), (2, 2))
    assert resized.flatten().tolist() == [0.5, 0.5, 2.5, 2.5]
    assert resize_patches(rows, (4, 4), (4, 4)) is rows
    assert resize_patches(rows, (2, 8), (1, 4)).shape == (1, 4, 1)


def test_the_queue_holds_the_newest_vectors_and_drops_the_oldest():
    loss = DistillLoss(tiny_distill_config(queue_size=5, local_weight=0)).train()
    batches = [unit(3, 24, seed=seed) for seed in range(3)]
    for batch in batches:
        loss(torch.ones(3, 24), None, (2, 2), TeacherFeatures(batch * 7, batch, (1, 1)))
        before = loss.queue.clone()
        assert torch.equal(loss.queue, before)  # only update_queue changes it
        loss.update_queue()
    torch.testing.assert_close(loss.queue, torch.cat([batches[2], batches[1][:2]]))
    loss.eval()(torch.ones(3, 24), None, (2, 2), TeacherFeatures(batches[0], batches[0], (1, 1)))
    loss.update_queue()
    torch.testing.assert_close(loss.queue[:3], batches[2])


def test_an_image_is_compared_with_all_images_of_a_batch_larger_than_the_queue():
    small = DistillLoss(tiny_distill_config(queue_size=2, local_weight=0))
    large = DistillLoss(tiny_distill_config(queue_size=6, local_weight=0))
    student, vectors = torch.randn(6, 24), unit(6, 24)
    teacher = TeacherFeatures(vectors, vectors, (1, 1))
    values = [loss(student, None, (2, 2), teacher).loss for loss in (small, large)]
    assert values[0] == values[1] > 0


def test_mixup_blends_each_image_with_a_partner_by_one_share():
    images = torch.eye(3).view(3, 3, 1, 1)
    mixing = torch.tensor([[0.5, 0.75], [0.9, 0.1], [0.2, 0.2]])  # order 2, 0, 1
    mixed = mix_images(images, mixing).flatten(1)
    assert mixed.tolist() == [[0.75, 0, 0.25], [0.25, 0.75, 0], [0, 0.25, 0.75]]


def test_images_are_mixed_in_training_only_and_only_with_mixup():
    inputs = make_inputs()
    plain = {"pixel_values": mix_images(**inputs)}
    mixing, without = make_model(), make_model(mixup=False)
    mixed = mixing.train()(**inputs).loss
    assert mixed == without.train()(**plain).loss != without(**inputs).loss
    assert mixing.eval()(**inputs).loss == without.eval()(**inputs).loss


# Model


def test_teacher_and_student_get_no_gradient_and_a_gradient():
    model = make_model().train()
    model(**make_inputs()).loss.backward()
    teacher = model.load_teacher()
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not teacher.model.training
    assert all(p.grad is not None and p.grad.any() for n, p in model.named_parameters()
               if not n.endswith("k_proj.bias"))  # fmt: skip


def test_the_teacher_is_neither_saved_nor_counted_nor_copied():
    model = make_model()
    names = list(model.state_dict())
    teacher = model.load_teacher()
    assert list(model.state_dict()) == names
    assert copy.deepcopy(model).load_teacher() is teacher
    outside = {id(parameter) for parameter in model.outside_parameters()}
    assert outside and not outside & {id(parameter) for parameter in model.parameters()}


def test_without_a_local_loss_there_is_no_layer_for_patches():
    model = make_model(local_weight=0)
    assert not [name for name in model.state_dict() if "local" in name]
    output = model(**make_inputs())
    assert output.local_loss is None and output.loss == output.global_loss


def test_the_head_maps_to_the_width_of_the_teacher():
    head = DistillHead(32, tiny_distill_config())
    class_tokens, patches = head(torch.zeros(2, 32), torch.zeros(2, 16, 32))
    assert class_tokens.shape == (2, 24) and patches.shape == (2, 16, 24)


def test_the_loss_is_float32_under_autocast():
    model = make_model().eval()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**make_inputs())
    assert {value.dtype for value in output.values()} == {torch.float32}


def test_training_lowers_both_losses():
    torch.manual_seed(0)
    model = make_model(mixup=False).train()
    inputs = make_inputs(batch_size=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(60):
        output = model(**inputs)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        metrics = model.after_optimizer_step(step, 60)
        losses.append((output.global_loss.item(), output.local_loss.item()))
    assert metrics == pytest.approx({"global_loss": losses[-1][0], "local_loss": losses[-1][1]})
    assert losses[-1][0] < 0.2 * losses[0][0] and losses[-1][1] < 0.5 * losses[0][1]


def test_a_checkpoint_opens_without_its_teacher_which_is_needed_for_the_loss_only(tmp_path):
    folder = tmp_path / "teacher"
    shutil.copytree(TINY_TEACHER, folder)
    model = make_model(teacher=str(folder))
    model.save_pretrained(tmp_path / "student")
    shutil.rmtree(folder)
    encoder = AutoModel.from_pretrained(tmp_path / "student")
    inputs = make_inputs()
    with torch.no_grad():
        expected = model.vit(inputs["pixel_values"]).pooler_output
        assert torch.equal(encoder(inputs["pixel_values"]).pooler_output, expected)
    opened = AutoModelForPreTraining.from_pretrained(tmp_path / "student")
    assert type(opened) is SelfViTForDistill
    with pytest.raises(FileNotFoundError, match="the teacher '.*teacher' cannot be opened"):
        opened(**inputs)
    opened.load_teacher(make_model().load_teacher())  # another copy of it
    assert opened(**inputs).loss > 0


def test_a_teacher_of_another_width_is_an_error():
    model = make_model(teacher_hidden_size=20)
    with pytest.raises(ValueError, match=r"teacher_hidden_size \(20\) must be .*, 24"):
        model(**make_inputs())


def compare_with_one_process(rank: int, store_file: str) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(store_file, 2), rank=rank, world_size=2)
    torch.set_num_threads(1)
    images = make_inputs(batch_size=6)["pixel_values"]
    shared, alone = make_model(mixup=False).train(), make_model(mixup=False).train()
    parallel = DistributedDataParallel(shared)  # averages the gradients
    for step in range(3):  # 18 images, the queue holds 12
        parallel.zero_grad()
        loss = parallel(images[3 * rank : 3 * rank + 3] * (step + 1)).loss
        loss.backward()
        metrics = shared.after_optimizer_step(step, 3)
        with without_others():
            alone.zero_grad()
            expected = alone(images * (step + 1)).loss
            expected.backward()
            expected_metrics = alone.after_optimizer_step(step, 3)
        assert metrics == pytest.approx(expected_metrics, rel=1e-5)
        torch.testing.assert_close(shared.loss.queue, alone.loss.queue)
        for (name, own), (_, other) in zip(
            shared.named_parameters(), alone.named_parameters(), strict=True
        ):
            torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)
    dist.destroy_process_group()


def test_two_processes_have_losses_gradients_and_queue_of_one(tmp_path):
    call_in_two(compare_with_one_process, (str(tmp_path / "store"),))
