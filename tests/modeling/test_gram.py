"""Gram anchoring: reference values, values computed by hand, properties."""

from __future__ import annotations

import pytest
import torch

from selfvit.modeling.gram import gram_loss
from tests.golden import load_golden


@pytest.mark.parametrize("case", ["same_grid", "finer_teacher"])
def test_the_loss_and_its_gradient_match_the_reference(case):
    golden, config = load_golden("gram")
    grid = tuple(config["cases"]["finer_teacher"]["grid"])
    finer = tuple(config["cases"]["finer_teacher"]["teacher_grid"])
    teacher_grid = grid if case == "same_grid" else finer
    student = golden[f"{case}.student"].requires_grad_()
    loss = gram_loss(student, golden[f"{case}.teacher"], grid, teacher_grid)
    torch.testing.assert_close(loss.detach(), golden[f"{case}.loss"][0], rtol=1e-5, atol=0)
    loss.backward()
    expected = golden[f"{case}.student_grad"]
    close = {"rtol": 1e-4, "atol": 1e-6 * float(expected.abs().max())}
    torch.testing.assert_close(student.grad, expected, **close)


def test_two_patches_match_a_value_computed_by_hand():
    # cosine 0 for the student and -1 for the teacher: two of the four pairs differ by 1
    student = torch.tensor([[[2.0, 0.0], [0.0, 3.0]]])
    teacher = torch.tensor([[[1.0, 0.0, 0.0], [-4.0, 0.0, 0.0]]])
    assert gram_loss(student, teacher, (1, 2), (1, 2)).item() == pytest.approx(0.5)


def test_only_similarities_within_an_image_count():
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(3, 6, 8, generator=generator)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    scales = torch.rand(3, 6, 1, generator=generator) + 0.5
    assert gram_loss(teacher @ rotation * scales, teacher, (2, 3), (2, 3)) < 1e-12
    assert gram_loss(teacher.flip(1), teacher, (2, 3), (2, 3)) > 0.01


def test_no_gradient_flows_into_the_teacher_and_autocast_keeps_float32():
    student = torch.randn(2, 4, 8, requires_grad=True)
    teacher = torch.randn(2, 4, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = gram_loss(student, teacher, (2, 2), (2, 2))
    loss.backward()
    assert loss.dtype == torch.float32 and teacher.grad is None and student.grad.any()
    torch.testing.assert_close(loss, gram_loss(student, teacher, (2, 2), (2, 2)))
