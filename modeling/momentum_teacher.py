"""Momentum teacher: an exponential moving average (EMA) of the student."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


@torch.no_grad()
def copy_student(student: nn.Module, teacher: nn.Module) -> None:
    """Copy every parameter and buffer of `student` to `teacher`."""
    teacher.load_state_dict(student.state_dict())


@torch.no_grad()
def update_ema(student: nn.Module, teacher: nn.Module, momentum: float) -> None:
    """Move the teacher toward the student (DINO, arXiv 2104.14294, Sec. 3.1).

    teacher = momentum * teacher + (1 - momentum) * student

    Parameters that both networks share are skipped: with LoRA, they share the frozen base.

    Args:
        student: Network that the optimizer trains.
        teacher: Network with the same parameters; changed in place.
        momentum: Unitless, in [0, 1]; 1 leaves the teacher unchanged.
    """
    pairs = zip(teacher.parameters(), student.parameters(), strict=True)
    moving = [(average, value) for average, value in pairs if average is not value]
    averages, values = [pair[0] for pair in moving], [pair[1] for pair in moving]
    get_ema_multi_avg_fn(momentum)(averages, values, None)


class MomentumTeacher:
    """Mixin for models with a teacher (`vit`, `head`) and a `student` with the same two parts."""

    vit: Any
    head: Any
    student: Any

    @property
    def trained_encoder(self) -> Any:
        """The student's encoder."""
        return self.student.vit

    def init_teacher_from_student(self) -> None:
        """Copy the student, including its head, to the teacher: the start of training."""
        copy_student(self.student.vit, self.vit)
        copy_student(self.student.head, self.head)

    def init_student_from_teacher(self) -> None:
        """Copy the teacher's encoder to the student after pretrained weights were loaded into it.

        An encoder checkpoint has no head, so the teacher's head becomes a copy of the student's.
        """
        copy_student(self.vit, self.student.vit)
        copy_student(self.student.head, self.head)

    def update_teacher(self, momentum: float) -> None:
        """Move the teacher, including its head, toward the student."""
        update_ema(self.student.vit, self.vit, momentum)
        update_ema(self.student.head, self.head, momentum)


__all__ = ["MomentumTeacher", "copy_student", "update_ema"]
