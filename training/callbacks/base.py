"""Events of the training loop that callbacks can react to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..state import TrainState


class Callback:
    """Base of the callbacks of the training loop; every method does nothing by default.

    Callbacks run in the order of their list (callbacks/build.py), in every process. A callback sees
    what the callbacks before it wrote into the state at the same event: the checkpoint saver sees a
    new evaluation, and the Hub callback sees a new checkpoint.
    """

    def on_init(self, state: TrainState) -> None:
        """Called once with the initial weights, before a checkpoint is loaded."""

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Called on resume with the values that `state_dict` returned for the checkpoint."""

    def on_train_begin(self, state: TrainState) -> None:
        """Called before the first step of this process; `state.step` is above 0 after a resume."""

    def on_step_end(self, state: TrainState) -> None:
        """Called after a step, which `state.step` already counts."""

    def on_train_end(self, state: TrainState) -> None:
        """Called after the last step of the run."""

    def on_result(self, state: TrainState) -> None:
        """Called when the result is complete in the run folder and all processes have finished."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state to store in a checkpoint, as JSON values."""
        return {}

    def close(self) -> None:
        """Called at the end, also after an error, in reverse order. May be called twice."""


def notify(callbacks: Iterable[Callback], event: str, state: TrainState) -> None:
    """Call one method of every callback, in their order."""
    for callback in callbacks:
        getattr(callback, event)(state)


def close_all(callbacks: Iterable[Callback]) -> None:
    """Close every callback, in reverse order."""
    for callback in reversed(list(callbacks)):
        callback.close()


__all__ = ["Callback", "close_all", "notify"]
