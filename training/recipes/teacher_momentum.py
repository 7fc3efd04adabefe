"""Momentum of the teacher when a checkpoint is fine-tuned."""

from __future__ import annotations

PAPER_HORIZON = 1024 / (1 - 0.996)  # images that the teachers of DINO and MSN average over


def finetuning_momentum(batch_size: int, num_steps: int) -> float:
    """Return the momentum with which a teacher averages over as many images as in the papers.

    The average must not span more than a tenth of the run, otherwise the teacher would still be
    close to the pretrained network at its end.

    Args:
        batch_size: Images of an optimizer step.
        num_steps: Number of optimizer steps of the run.
    """
    return round(1 - max(batch_size / PAPER_HORIZON, min(0.1, 10 / num_steps)), 6)


__all__ = ["finetuning_momentum"]
