"""Momentum of the teacher when a checkpoint is fine-tuned."""

from __future__ import annotations

from .run_config import RunConfig

FINETUNING = ("dino_finetune", "dino_lora", "dinov2_finetune", "pmsn_finetune")
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


def with_finetuning_momentum(run: RunConfig, num_images: int | None) -> RunConfig:
    """Return the run of a recipe with the momentum for its own batch size and length.

    Args:
        run: Run with all its options; those of other recipes are returned unchanged.
        num_images: Size of the dataset; None for a stream, whose length `max_steps` gives.
    """
    if run.recipe not in FINETUNING or (num_images is None and run.schedule.max_steps is None):
        return run
    num_steps = run.schedule.num_steps(num_images)
    momentum = finetuning_momentum(run.schedule.batch_size, num_steps)
    return run.with_options({"teacher_momentum": momentum})


__all__ = ["finetuning_momentum", "with_finetuning_momentum"]
