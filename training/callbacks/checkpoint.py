"""Save checkpoints, and the result at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...data.dataset_source import StreamingImageSource
from ...data.image_source import ImageSource
from ..checkpoints.card import RunCard
from ..checkpoints.checkpointer import Checkpointer
from ..dataloader.streaming import stream_state
from ..state import TrainState
from .base import Callback
from .before_after import BeforeAfterReport
from .cost import CostMeter


class CheckpointSaver(Callback):
    """Saves a checkpoint every `save_steps` and at a stop, and the result at the end; collective.

    Args:
        checkpointer: Checkpointer of the run.
        card: Model card of the run.
        cost: Cost so far, for the cards.
        report: Comparison of the result with the initial weights.
        source: Training images, whose fingerprint is saved.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        card: RunCard,
        cost: CostMeter,
        report: BeforeAfterReport,
        source: ImageSource | StreamingImageSource,
    ):
        self.checkpointer = checkpointer
        self.card = card
        self.cost = cost
        self.report = report
        self.source = source
        self.callbacks: Sequence[Callback] = ()  # all callbacks of the run; their states are saved

    def on_step_end(self, state: TrainState) -> None:
        """Save a checkpoint if it is due."""
        is_due = state.step % state.run.checkpoints.save_steps == 0
        if not (is_due or state.step == state.num_steps or state.stop_signal):
            return
        saved: dict[str, Any] = {
            "step": state.step,
            "data": self.source.fingerprint,
            "images": self.source.description,
            "evaluation": state.evaluation,
            "stream": stream_state(state.loader),
            "callbacks": {
                type(callback).__name__: content
                for callback in self.callbacks
                if (content := callback.state_dict())
            },
        }
        card = self.card.render(state, self.cost.read())
        state.checkpoint = self.checkpointer.save(saved, card, state.collapse_onset)

    def on_train_end(self, state: TrainState) -> None:
        """Write the trained model into the run folder."""
        full_model, is_main = self.checkpointer.writer.full_model, state.accelerator.is_main_process
        processor = self.checkpointer.writer.processor
        full_model.gather()
        picture = self.card.draw(full_model.gathered, processor) if is_main else None
        self.checkpointer.save_result(
            self.card.render(state, self.cost.read(), self.report.comparison, picture)
        )


__all__ = ["CheckpointSaver"]
