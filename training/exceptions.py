"""Errors that end a training run."""

from __future__ import annotations

import signal
from pathlib import Path


class CollapseError(FloatingPointError):
    """The outputs say nothing of the images any more, and `on_collapse` asks for an end.

    Args:
        message: what was seen, and what to turn.
        kept: the last checkpoint from before, or None.
    """

    def __init__(self, message: str, kept: Path | None):
        last = (
            f"The last checkpoint from before is {kept}" if kept else "No checkpoint is from before"
        )
        super().__init__(f"{message} {last}.")
        self.kept = kept


class NotPublishedError(OSError):
    """The run is trained and whole, but the Hub has not got it."""


class RunInterrupted(SystemExit):
    """A run was asked to stop, and has saved. Ends the process, if nobody catches it.

    Args:
        number: of the signal.
        step: the last one done, counted from 1.
        num_steps: of the whole run.
    """

    def __init__(self, number: int, step: int, num_steps: int):
        super().__init__(128 + number)
        self.message = (
            f"stopped by {signal.Signals(number).name} and saved after step {step} of {num_steps}; "
            "go on with --resume true."
        )


class NonFiniteLossError(FloatingPointError):
    """The loss is infinite or not a number. Raised before it can spoil weights.

    Args:
        loss: the value.
        step: of the optimizer, counted from 1.
        recipe: name.
        kept: the last good checkpoint, or None.
    """

    def __init__(self, loss: float, step: int, recipe: str, kept: Path | None):
        good = f"the last good checkpoint is {kept}" if kept else "no checkpoint was saved before"
        super().__init__(
            f"the loss of recipe {recipe} became {loss} at step {step}; {good}. Try a lower "
            "base_learning_rate, a longer warmup_ratio, max_gradient_norm 1, or bf16 instead of "
            "fp16."
        )


class NoImprovementError(ValueError):
    """Training was to improve an encoder, and did not. Raised when all is saved."""


__all__ = [
    "CollapseError",
    "NoImprovementError",
    "NonFiniteLossError",
    "NotPublishedError",
    "RunInterrupted",
]
