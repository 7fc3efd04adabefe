"""What was found out about a run before it starts, and what its steps change."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from ..data.dataset_source import StreamingImageSource
from ..data.image_source import ImageSource
from ..sharing.publish import Target
from .config.run_config import RunConfig
from .dataloader.sampler import BatchPlan
from .evaluation import EvaluationImages


@dataclass(frozen=True)
class CheckedRun:
    """A run that passed the checks, and what it will need; nothing is written yet.

    Args:
        run: Configuration, with the classes of the data and the micro-batches that fit.
        source: The images.
        plan: Batches of the run.
        images: Images of the evaluations, or None.
        metric: Metric that judges the run, or None.
        push_target: Where to publish, on the main process; otherwise None.
    """

    run: RunConfig
    source: ImageSource | StreamingImageSource
    plan: BatchPlan
    images: EvaluationImages | None
    metric: str | None
    push_target: Target | None


@dataclass
class TrainState:
    """What a step changes, and what a callback may read.

    Args:
        run: Configuration of the run.
        accelerator: The processes and their devices.
        model: The model in training, unwrapped.
        wrapped: The model as Accelerate prepared it.
        optimizer: The optimizer as Accelerate prepared it.
        num_steps: Number of optimizer steps of the run.
        loader: DataLoader of the run, from the first step to do.
        step: Number of optimizer steps done.
        inputs: Model inputs of the last micro-batch.
        metrics: Metrics of the last step, by name.
        skipped: Unreadable images of the last step: (name, reason).
        evaluation: Metrics of an evaluation of exactly these weights, or empty.
        checkpoint: Checkpoint that was saved after the last step, or None.
        collapse_onset: Step since which a collapse monitor reads low, or None.
        stop_signal: Signal that asks the run to stop, or None.
    """

    run: RunConfig
    accelerator: Accelerator
    model: Any
    wrapped: Any
    optimizer: Any
    num_steps: int
    loader: Any = None
    step: int = 0
    inputs: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    evaluation: dict[str, float] = field(default_factory=dict)
    checkpoint: Path | None = None
    collapse_onset: int | None = None
    stop_signal: int | None = None

    @property
    def num_frozen_steps(self) -> int:
        """Number of steps, from the first, in which the encoder does not train."""
        return round(self.run.schedule.freeze_encoder_ratio * self.num_steps)


__all__ = ["CheckedRun", "TrainState"]
