"""Schedules as pure functions of the step, which is counted from 0."""

from __future__ import annotations

import math


def cosine_schedule(
    step: int, num_steps: int, start: float, end: float, *, num_warmup_steps: int = 0
) -> float:
    """Return the value of a linear warm-up from 0 to `start`, followed by half a cosine to `end`.

    The values are those of `cosine_scheduler` in facebookresearch/dino: the last step of the
    warm-up has the value `start`, and the cosine would reach `end` at step `num_steps`.

    Args:
        step: Index of the optimizer step, from 0 to `num_steps` - 1.
        num_steps: Number of optimizer steps of the run.
        start: Value after the warm-up.
        end: Value at the end.
        num_warmup_steps: Number of steps of the warm-up; 0 begins with `start`.
    """
    if step < num_warmup_steps:
        return start * step / max(1, num_warmup_steps - 1) if num_warmup_steps > 1 else start
    progress = (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps)
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * progress))


def linear_schedule(step: int, num_warmup_steps: int, start: float, end: float) -> float:
    """Return the value of a line from `start` to `end` over `num_warmup_steps`, then `end`."""
    if step >= num_warmup_steps - 1:
        return end
    return start + (end - start) * step / (num_warmup_steps - 1)


__all__ = ["cosine_schedule", "linear_schedule"]
