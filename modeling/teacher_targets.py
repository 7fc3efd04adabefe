"""Targets from the outputs of a momentum teacher: centered or balanced, and sharpened."""

# B rows of this process · K prototypes

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from .distributed import all_reduce_logsumexp, all_reduce_sum


@torch.no_grad()
def sinkhorn(log_probabilities: Tensor, num_iterations: int) -> Tensor:
    """Balance the assignments of a batch over the prototypes (SwAV, arXiv 2006.09882, Sec. 3.1).

    Each iteration normalizes the total weight of every prototype over the rows of all processes,
    then the weight of every row to 1. It works in the log domain: the weight of a prototype that
    is far from all rows would be 0 in float32, and the reference would divide by it.

    Args:
        log_probabilities: (B, K), float32. Unnormalized logits give the same result. The number of
            rows may differ between processes, and may be 0.
        num_iterations: Number of iterations; 0 returns the argument.

    Returns:
        (B, K) log-probabilities; probabilities of a row sum to 1. They are uniform for a single
        row.
    """
    for _ in range(num_iterations):
        of_prototypes = all_reduce_logsumexp(log_probabilities.logsumexp(dim=0))
        log_probabilities = F.log_softmax(log_probabilities - of_prototypes, dim=-1)
    return log_probabilities


class TeacherTargets(nn.Module):
    """Base of losses that compare a student with the sharpened outputs of a teacher.

    By default, a moving center is subtracted from the logits (DINO, arXiv 2104.14294, Eq. 4).
    `update_center` moves it once per optimizer step, by all outputs of the teacher since the last
    update. The micro-batches of a step therefore use the same center, and their mean loss is the
    loss of the full batch.

    Args:
        num_prototypes: Number of prototypes (K).
        student_temperature: Temperature that the loss divides the student's logits by.
        center_momentum: EMA momentum of the center.
        sinkhorn_iterations: Number of Sinkhorn iterations that balance the targets of a
            (micro-)batch of all processes instead; 0 subtracts the center.
    """

    center: Tensor  # (K,) float32

    def __init__(
        self,
        num_prototypes: int,
        student_temperature: float,
        center_momentum: float,
        sinkhorn_iterations: int = 0,
    ):
        super().__init__()
        self.student_temperature = student_temperature
        self.center_momentum = center_momentum
        self.sinkhorn_iterations = sinkhorn_iterations
        self.register_buffer("center", torch.zeros(num_prototypes, dtype=torch.float32))
        self._pending_sum: Tensor | None = None  # teacher's logits since the last update
        self._pending_count = 0

    def teacher_log_probabilities(self, teacher_logits: Tensor, temperature: float) -> Tensor:
        """Center or balance logits, and sharpen them: (*, K) float32 -> (*, K) float32.

        Collective with Sinkhorn: every process must call it.
        """
        if self.sinkhorn_iterations == 0:
            return F.log_softmax((teacher_logits - self.center) / temperature, dim=-1)
        rows = teacher_logits.flatten(0, -2) / temperature
        return sinkhorn(rows, self.sinkhorn_iterations).view_as(teacher_logits)

    @torch.no_grad()
    def accumulate_for_center(self, teacher_logits: Tensor) -> None:
        """Add (*, K) float32 logits of this process to those that move the center next."""
        if not self.training or self.sinkhorn_iterations:
            return
        rows = teacher_logits.flatten(0, -2)
        total = rows.sum(dim=0)
        self._pending_sum = total if self._pending_sum is None else self._pending_sum + total
        self._pending_count += len(rows)

    @torch.no_grad()
    def update_center(self) -> None:
        """Move the center toward the mean of the teacher's logits since the last call (Eq. 4).

        The mean is taken over all processes. Without any logits, the center stays where it is.
        """
        if self._pending_sum is None:
            return
        count = self._pending_sum.new_tensor([self._pending_count])
        reduced = all_reduce_sum(torch.cat([self._pending_sum, count]))
        mean = (reduced[:-1] / reduced[-1]).to(self.center.dtype)
        mean = torch.where(reduced[-1] > 0, mean, self.center)
        self.center.lerp_(mean, 1 - self.center_momentum)
        self._pending_sum, self._pending_count = None, 0


__all__ = ["TeacherTargets", "sinkhorn"]
