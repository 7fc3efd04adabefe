"""State of a run: the result of the preflight checks, and the values that training steps change."""

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
from .evaluation_images import EvaluationImages


@dataclass(frozen=True)
class CheckedRun:
    """Run that passed the preflight checks, with what it needs to start; nothing is written yet.

    Args:
        run: Configuration, with the classes of the data and the number of micro-batches that fit.
        source: Training images.
        plan: Batches of the run.
        images: Images of the evaluations, or None.
        metric: Metric that judges the run, or None.
        push_target: Destination on the Hub, on the main process; None on the others, and without a
            push.
    """

    run: RunConfig
    source: ImageSource | StreamingImageSource
    plan: BatchPlan
    images: EvaluationImages | None
    metric: str | None
    push_target: Target | None


@dataclass
class TrainState:
    """Values that a training step changes, and that callbacks may read.

    Args:
        run: Configuration of the run.
        accelerator: Accelerator, with the processes and their devices.
        model: Model in training, unwrapped.
        wrapped: Model as Accelerate prepared it.
        optimizer: Optimizer as Accelerate prepared it.
        num_steps: Number of optimizer steps of the run.
        loader: DataLoader of the run, from the first remaining step on.
        step: Number of optimizer steps done.
        inputs: Model inputs of the last micro-batch.
        metrics: Metrics of the last step, by name.
        skipped: Unreadable images of the last step: (name, reason).
        findings: Content of files of the last step besides the pixels, as `PixelCheck.add` takes
            it: (name, findings).
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
    findings: list[tuple[str, Any]] = field(default_factory=list)
    evaluation: dict[str, float] = field(default_factory=dict)
    checkpoint: Path | None = None
    collapse_onset: int | None = None
    stop_signal: int | None = None

    @property
    def num_frozen_steps(self) -> int:
        """Number of steps, from the first, in which the encoder does not train."""
        return round(self.run.schedule.freeze_encoder_ratio * self.num_steps)


__all__ = ["CheckedRun", "TrainState"]
