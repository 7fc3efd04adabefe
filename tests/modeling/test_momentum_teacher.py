"""Momentum teacher."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from selfvit.modeling.momentum_teacher import copy_student, update_ema


def make_pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return (
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)),
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)),
    )


def test_an_update_matches_hand_computed_values():
    student, teacher = nn.Linear(1, 1), nn.Linear(1, 1)
    with torch.no_grad():
        student.weight.fill_(2.0)
        student.bias.fill_(-1.0)
        teacher.weight.fill_(1.0)
        teacher.bias.fill_(0.0)
    update_ema(student, teacher, 0.9)
    torch.testing.assert_close(teacher.weight.detach(), torch.tensor([[1.1]]))
    torch.testing.assert_close(teacher.bias.detach(), torch.tensor([-0.1]))
    assert student.weight.item() == 2.0


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_momentum_0_copies_the_student_and_1_keeps_the_teacher(momentum):
    student, teacher = make_pair()
    expected = [p.detach().clone() for p in (teacher if momentum else student).parameters()]
    update_ema(student, teacher, momentum)
    for parameter, value in zip(teacher.parameters(), expected, strict=True):
        assert torch.equal(parameter, value)


def test_many_updates_converge_to_the_student():
    student, teacher = make_pair()
    for _ in range(60):
        update_ema(student, teacher, 0.7)
    for ours, target in zip(teacher.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(ours, target)


def test_shared_parameters_are_not_changed():
    student, teacher = make_pair()
    teacher[0].weight = student[0].weight
    shared, own = student[0].weight.detach().clone(), teacher[0].bias.detach().clone()
    update_ema(student, teacher, 0.7)
    assert torch.equal(student[0].weight, shared)
    torch.testing.assert_close(teacher[0].bias, 0.7 * own + 0.3 * student[0].bias)


def test_an_update_works_on_networks_with_gradients():
    student, teacher = make_pair()
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    update_ema(student, teacher, 0.5)
    assert all(parameter.grad_fn is None for parameter in teacher.parameters())


def test_a_copy_includes_buffers_and_shares_no_memory():
    student, teacher = make_pair()
    student(torch.randn(8, 3))  # updates the running statistics
    copy_student(student, teacher)
    for name, value in student.state_dict().items():
        assert torch.equal(teacher.state_dict()[name], value), name
    with torch.no_grad():
        student[0].weight.add_(1)
    assert not torch.equal(teacher[0].weight, student[0].weight)
