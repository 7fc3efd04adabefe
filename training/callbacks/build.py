"""The callbacks of a run, in their order."""

from __future__ import annotations

from pathlib import Path

from ..checkpoints.card import RunCard
from ..checkpoints.checkpointer import Checkpointer
from ..evaluation import Evaluation
from ..runtime.signals import StopSignal
from ..state import CheckedRun, TrainState
from .base import Callback
from .before_after import BeforeAfterReport
from .best_checkpoint import BestCheckpoint
from .checkpoint import CheckpointSaver
from .collapse import CollapseMonitor
from .cost import CostMeter
from .evaluate import Evaluator
from .hub import HubPusher
from .images import ImageLogger
from .progress import ProgressLogger
from .stop import SignalStop
from .trackers import Trackers


def build_callbacks(
    checked: CheckedRun,
    state: TrainState,
    checkpointer: Checkpointer,
    stop: StopSignal,
) -> list[Callback]:
    """Return the callbacks of a run in the order in which they are notified.

    The order matters. The monitors come before the log line of the step. An evaluation comes before
    the checkpoint, whose card shows it. The stop signal comes before the checkpoint that it asks
    for. The report, which fails a run without improvement, comes before the push to the Hub.

    Args:
        checked: Run and the results of the preflight checks.
        state: State of the run.
        checkpointer: Checkpointer of the run.
        stop: Signal handlers.
    """
    run, accelerator, writer = checked.run, state.accelerator, checkpointer.writer
    full_model, processor = writer.full_model, writer.processor
    evaluation = Evaluation(full_model.gathered, processor, run, checked.images, accelerator.device)
    card = RunCard(run, checked.source, accelerator)
    logger = ProgressLogger(accelerator, run, checked.source.inventory.left_out)
    cost = CostMeter(accelerator, run.card.energy_meter)
    best = BestCheckpoint(writer, Path(run.start.output), checked.metric, evaluation.data)
    report = BeforeAfterReport(accelerator, full_model, evaluation, run, best, cost, stop)
    saver = CheckpointSaver(checkpointer, card, cost, report, checked.source)
    callbacks: list[Callback] = [
        CollapseMonitor(accelerator, run, logger),
        logger,
        Trackers(accelerator),
        ImageLogger(accelerator, processor, logger, run.monitoring.image_steps),
        Evaluator(full_model, evaluation, best, logger, card, cost),
        report,
        SignalStop(stop),
        saver,
        HubPusher(run, checked.push_target),
        cost,
    ]
    saver.callbacks = callbacks
    return callbacks


__all__ = ["build_callbacks"]
