"""Errors that end a training run."""

from __future__ import annotations

import signal
from pathlib import Path


class CollapseError(FloatingPointError):
    """The outputs no longer depend on the images, and `on_collapse` asks to stop or roll back.

    Args:
        message: Readings and settings to change.
        kept: Last checkpoint before the collapse, or None.
    """

    def __init__(self, message: str, kept: Path | None):
        last = (
            f"The last checkpoint before it is {kept}"
            if kept
            else "There is no checkpoint before it"
        )
        super().__init__(f"{message} {last}.")
        self.kept = kept


class NonFiniteError(FloatingPointError):
    """A value of a step is infinite or not a number. Raised before it can affect the weights.

    Args:
        name: Name of the value, such as "loss" or "gradient norm".
        value: The value.
        step: Optimizer step, counted from 1.
        recipe: Name of the recipe.
        kept: Last checkpoint, or None.
    """

    def __init__(self, name: str, value: float, step: int, recipe: str, kept: Path | None):
        good = f"the last checkpoint is {kept}" if kept else "there is no checkpoint yet"
        super().__init__(
            f"the {name} of recipe {recipe} became {value} at step {step}; {good}. Try a lower "
            "--base-learning-rate, a longer --warmup-ratio, --max-gradient-norm 1, or bf16 instead "
            "of fp16."
        )


class NoImprovementError(ValueError):
    """Training did not improve the encoder, and `require_improvement` asks for it."""


class NotPublishedError(OSError):
    """The model is trained and saved, but could not be published."""


class RunInterrupted(SystemExit):
    """The run saved a checkpoint or its result, and stopped, because a signal asked for it.

    This ends the process, with the exit code that shells use: 143 after SIGTERM, 130 after Ctrl-C.

    Args:
        number: Number of the signal.
        step: Number of optimizer steps done.
        num_steps: Number of optimizer steps of the run.
    """

    def __init__(self, number: int, step: int, num_steps: int):
        super().__init__(128 + number)
        name = signal.Signals(number).name
        self.message = (
            f"stopped by {name} and saved after step {step} of {num_steps}; continue with --resume."
        )
        if step == num_steps:
            self.message = f"stopped by {name} after the last step; the model is saved."


__all__ = [
    "CollapseError",
    "NoImprovementError",
    "NonFiniteError",
    "NotPublishedError",
    "RunInterrupted",
]
