"""Schedules: pure functions of the step, counted from 0."""

from __future__ import annotations

import math


def cosine_schedule(
    step: int, num_steps: int, start: float, end: float, *, num_warmup_steps: int = 0
) -> float:
    """Rise linearly from 0 to `start` over the warm-up, then follow half a cosine towards `end`.

    The value that facebookresearch/dino's `cosine_scheduler` has at this step: the warm-up reaches
    `start` at its own last step, and the cosine would reach `end` at step `num_steps`.

    Args:
        step: optimizer step, from 0 to `num_steps` - 1.
        num_steps: optimizer steps of the whole run.
        start: value after the warm-up.
        end: value at the end.
        num_warmup_steps: steps of the warm-up; 0 starts at `start`.
    """
    if step < num_warmup_steps:
        return start * step / max(1, num_warmup_steps - 1) if num_warmup_steps > 1 else start
    progress = (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps)
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * progress))


def linear_schedule(step: int, num_warmup_steps: int, start: float, end: float) -> float:
    """Go linearly from `start` to `end` over `num_warmup_steps`, and stay there."""
    if step >= num_warmup_steps - 1:
        return end
    return start + (end - start) * step / (num_warmup_steps - 1)


__all__ = ["cosine_schedule", "linear_schedule"]
