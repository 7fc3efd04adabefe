"""Evaluate the encoder every `eval_steps`."""

from __future__ import annotations

from ..checkpoints.card import RunCard
from ..evaluation import Evaluation
from ..runtime.fsdp import FullModel
from ..state import TrainState
from .base import Callback
from .best_checkpoint import BestCheckpoint
from .cost import CostMeter
from .progress import ProgressLogger


class Evaluator(Callback):
    """Evaluates the encoder, logs the metrics, and keeps the best checkpoint.

    The main process evaluates and the others wait; gathering the model is collective.

    Args:
        full_model: Model in training, with full weights.
        evaluation: Evaluation of its encoder.
        best: Best checkpoint so far.
        logger: Logger of the metrics.
        card: Model card of the run.
        cost: Cost so far, for the card.
    """

    def __init__(
        self,
        full_model: FullModel,
        evaluation: Evaluation,
        best: BestCheckpoint,
        logger: ProgressLogger,
        card: RunCard,
        cost: CostMeter,
    ):
        self.full_model = full_model
        self.evaluation = evaluation
        self.best = best
        self.logger = logger
        self.card = card
        self.cost = cost

    def on_step_end(self, state: TrainState) -> None:
        """Evaluate if it is due: every `eval_steps` and after the last step."""
        eval_steps = state.run.evaluation.eval_steps
        if not eval_steps or (state.step % eval_steps and state.step != state.num_steps):
            return
        self.full_model.gather()
        if state.accelerator.is_main_process:
            state.evaluation = self.evaluation(state.step)
            self.logger.log_metrics(state.step, state.evaluation)
            self.best.offer(
                state.step,
                state.evaluation,
                lambda: self.card.render(state, self.cost.read()),
            )
        state.accelerator.wait_for_everyone()


__all__ = ["Evaluator"]
