"""Stop at the end of a step when a signal asks for it."""

from __future__ import annotations

from ..runtime.signals import StopSignal
from ..state import TrainState
from .base import Callback


class SignalStop(Callback):
    """Records a received signal in the state; collective, so that all processes stop together.

    Args:
        stop: Signal handlers.
    """

    def __init__(self, stop: StopSignal):
        self.stop = stop

    def on_train_begin(self, state: TrainState) -> None:
        """Defer signals to the end of a step from now on."""
        self.stop.defer()

    def on_step_end(self, state: TrainState) -> None:
        """Ask all processes whether one of them received a signal."""
        state.stop_signal = self.stop.agreed(state.accelerator)


__all__ = ["SignalStop"]
