"""The momentum teacher: an exponential moving average of the student."""

from __future__ import annotations

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

    teacher = momentum * teacher + (1 - momentum) * student, for every parameter.

    Args:
        student: the network that the optimizer trains.
        teacher: a network of the same parameters; changed in place.
        momentum: unitless, in [0, 1]; 1 leaves the teacher as it is.
    """
    get_ema_multi_avg_fn(momentum)(list(teacher.parameters()), list(student.parameters()), None)


__all__ = ["copy_student", "update_teacher"]
