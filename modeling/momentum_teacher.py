"""The momentum teacher: an exponential moving average of the student."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


@torch.no_grad()
def copy_student(student: nn.Module, teacher: nn.Module) -> None:
    """Make every parameter and buffer of `teacher` equal to the one of `student`."""
    teacher.load_state_dict(student.state_dict())


@torch.no_grad()
def update_teacher(student: nn.Module, teacher: nn.Module, momentum: float) -> None:
    """Move the teacher towards the student (DINO, arXiv 2104.14294, Sec. 3.1).

    teacher = momentum * teacher + (1 - momentum) * student, for every parameter that is not one of
    both: a frozen base is shared where adapters train.

    Args:
        student: the network that the optimizer trains.
        teacher: a network of the same parameters; changed in place.
        momentum: unitless, in [0, 1]; 1 leaves the teacher as it is.
    """
    pairs = zip(teacher.parameters(), student.parameters(), strict=True)
    moving = [(average, value) for average, value in pairs if average is not value]
    averages, values = [pair[0] for pair in moving], [pair[1] for pair in moving]
    get_ema_multi_avg_fn(momentum)(averages, values, None)


class MomentumTeacher:
    """What models of a teacher (`vit`, `head`) and a `student` with the same two parts share."""

    vit: Any
    head: Any
    student: Any

    @property
    def trained_encoder(self) -> Any:
        """The student's encoder."""
        return self.student.vit

    def restart_teacher(self) -> None:
        """Make the teacher, head included, a copy of the student: how training starts."""
        copy_student(self.student.vit, self.vit)
        copy_student(self.student.head, self.head)

    def restart_from_encoder(self) -> None:
        """Make the student's encoder a copy of `vit`, after pretrained weights went there.

        A bare encoder brings no head: the teacher's becomes a copy of the student's again.
        """
        copy_student(self.vit, self.student.vit)
        copy_student(self.student.head, self.head)

    def move_teacher(self, momentum: float) -> None:
        """Move the teacher, head included, towards the student."""
        update_teacher(self.student.vit, self.vit, momentum)
        update_teacher(self.student.head, self.head, momentum)


__all__ = ["MomentumTeacher", "copy_student", "update_teacher"]
