"""Compare the encoder before and after training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator

from ...evaluation.comparison import Comparison, Measurement, compare, format_comparison
from ...evaluation.evaluate import format_metric, metric_title, save_metrics
from ...sharing.provenance import display_name
from ..checkpoints.run_folder import BEFORE_FILE, CHECKPOINTS, REPORT_FILE
from ..config.run_config import RunConfig
from ..evaluation import Evaluation
from ..exceptions import NoImprovementError
from ..runtime.fsdp import FullModel
from ..state import TrainState
from .base import Callback
from .best_checkpoint import BestCheckpoint


class BeforeAfterReport(Callback):
    """Measures an encoder before and after training, and reports whether it improved.

    The main process measures and the others wait; gathering the model is collective.

    Args:
        accelerator: Accelerator of the run.
        full_model: Model in training, with full weights.
        evaluation: Evaluation of its encoder.
        run: Configuration of the run.
        best: Best checkpoint, which the report mentions.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        full_model: FullModel,
        evaluation: Evaluation,
        run: RunConfig,
        best: BestCheckpoint,
    ):
        self.accelerator = accelerator
        self.full_model = full_model
        self.evaluation = evaluation
        self.run = run
        self.best = best
        self.output = Path(run.start.output)
        self.comparison: Comparison | None = None
        self._before: Measurement | None = None

    def on_init(self, state: TrainState) -> None:
        """Measure the initial weights, or read the measurement from before an interruption.

        No checkpoint is loaded yet, so a resumed run can measure the initial weights again. It does
        so if the evaluation data has changed, or if an older version started the run.
        """
        if not (self.run.compares_with_start and self.accelerator.is_main_process):
            return
        path = self.output / CHECKPOINTS / BEFORE_FILE
        if path.is_file():
            self._before = Measurement.load(path)
        if self._before is None or self._before.data != self.evaluation.data:
            self._announce("before")
            self._before = self.evaluation.measure(0)
            if self.run.start.init_scope != "all":
                self._before = _without_accuracy(self._before)
            self._before.save(path)

    def on_train_end(self, state: TrainState) -> None:
        """Measure the trained model, write report.json and print the table."""
        self.full_model.gather()
        if self._before is None:
            return
        self._announce("after")
        after = self.evaluation.measure(state.step)
        images = self.evaluation.images
        assert images is not None
        metric = self.best.metric
        if metric is not None and metric not in self._before.samples:  # a new classifier's accuracy
            metric = images.accuracy_names()[0]
        self.comparison = compare(self._before, after, metric, images.note)
        content = {
            "init_from": display_name(str(self.run.start.init_from)),
            "step": state.step,
            **self.comparison.to_dict(),
            "best": self.best.read(),
        }
        save_metrics(content, self.output / REPORT_FILE)
        self.accelerator.print(f"\n{format_comparison(self.comparison)}")
        state.evaluation = dict(after.metrics)

    def _announce(self, when: str) -> None:
        """Announce the measurement, which takes minutes for a large encoder on a CPU."""
        images = self.evaluation.images
        assert images is not None
        count = sum(map(len, images.sources))
        self.accelerator.print(f"measuring the encoder {when} training, on {count:,} images")

    def on_result(self, state: TrainState) -> None:
        """Raise an error if the run had to improve the encoder and did not; everything is saved.

        The result is read from report.json, so that resuming a finished run gives the same error.

        Raises:
            NoImprovementError: If there was no improvement; on the main process only.
        """
        path = self.output / REPORT_FILE
        if not (self.run.evaluation.require_improvement and self.accelerator.is_main_process):
            return
        report = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if report.get("improved"):
            return
        name = report.get("metric")
        metrics = report.get("metrics", report.get("figures", {}))  # "figures" in version 0.1
        before = metrics[name]["before"]["value"] if name else None
        best = report.get("best")
        hint = ""
        if best is not None and name == best["metric"] and best["value"] > before:
            hint = (
                f" The checkpoint of step {best['step']} is better than the start "
                f"({metric_title(name)} {format_metric(name, best['value'])}): {self.best.folder}."
            )
        raise NoImprovementError(
            f"{report.get('verdict', 'There is no report.')} --require-improvement asks for a "
            f"higher metric than before. The model is saved in {self.output}, but not published."
            f"{hint} Try a lower --base-learning-rate (it was "
            f"{self.run.schedule.base_learning_rate:g}), a lower --layer-decay or fewer --epochs, "
            "or keep the initial weights."
        )


def _without_accuracy(measurement: Measurement) -> Measurement:
    """Remove the accuracy of a newly initialized classifier, which any training would beat."""
    samples, metrics = dict(measurement.samples), dict(measurement.metrics)
    samples.pop("accuracy", None)
    metrics.pop("accuracy", None)
    return replace(measurement, samples=samples, metrics=metrics)


__all__ = ["BeforeAfterReport"]
