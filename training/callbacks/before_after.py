"""Compare the encoder before and after training, and with raw pixels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ...evaluation.bootstrap import estimate
from ...evaluation.comparison import Comparison, Measurement, compare, format_comparison
from ...evaluation.evaluate import format_metric, metric_title, save_metrics
from ...sharing.provenance import display_name
from ...sharing.published_files import REPORT_FILE
from ..config.run_config import RunConfig
from ..evaluation import Evaluation, copy_for_evaluation
from ..evaluation_images import EvaluationImages
from ..exceptions import NoImprovementError
from ..report_size import report_size, sample_evaluation_images
from ..run_length import explain_too_short
from ..runtime.fsdp import FullModel
from ..runtime.signals import StopSignal
from ..state import TrainState
from .base import Callback
from .best_checkpoint import BestCheckpoint
from .cost import CostMeter

MIN_IMAGES = 3  # fewer have no neighbors to compare
ACCURACY_NOT_MEASURED = (
    "Accuracy was not measured; give labeled images that were not trained on with --eval-train "
    "and --eval-test."
)


class BeforeAfterReport(Callback):
    """Measures an encoder before and after training, and reports whether it improved.

    Both are measured at the end, when the training time is known: as many images as can be measured
    in a tenth of it. A run with `eval_steps` compares the images of its evaluations instead, so
    that nothing is embedded twice. The main process measures and the others wait; gathering the
    model is collective.

    Args:
        accelerator: Accelerator of the run.
        full_model: Model in training, with full weights.
        evaluation: Evaluation of its encoder.
        run: Configuration of the run.
        best: Best checkpoint, which the report mentions.
        cost: Training time so far.
        stop: Signal handlers, which interrupt the measurement.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        full_model: FullModel,
        evaluation: Evaluation,
        run: RunConfig,
        best: BestCheckpoint,
        cost: CostMeter,
        stop: StopSignal,
    ):
        self.accelerator = accelerator
        self.full_model = full_model
        self.evaluation = evaluation
        self.run = run
        self.best = best
        self.cost = cost
        self.stop = stop
        self.output = Path(run.start.output)
        self.comparison: Comparison | None = None
        self._initial: Any = None
        self._seconds_per_image = 0.0

    def on_init(self, state: TrainState) -> None:
        """Keep a copy of the initial weights, and time the measurement of a few images.

        No checkpoint is loaded yet, so a resumed run has its initial weights here, too.
        """
        images = self.evaluation.images
        if not (self.run.compares_with_start and self.accelerator.is_main_process):
            return
        if images is None or len(images) < MIN_IMAGES:
            return
        self._initial = copy_for_evaluation(self.full_model.gathered)
        self._seconds_per_image = self.evaluation.seconds_per_image()

    def on_train_end(self, state: TrainState) -> None:
        """Measure initial and trained weights, write report.json and print the table."""
        self.full_model.gather()
        too_short = explain_too_short(self.run, state.num_steps)
        if state.stop_signal is None:
            with self.stop.interrupting():
                self._measure(state, too_short)
        self._initial = None
        if too_short is not None:
            self.accelerator.print(f"This run was too short: {too_short}")

    def _measure(self, state: TrainState, too_short: str | None) -> None:
        """Report on the change, or on the accuracy of a classifier alone."""
        if self._initial is not None:
            self._report(state, too_short)
        elif self._lacks_accuracy:
            self.accelerator.print(ACCURACY_NOT_MEASURED)
        elif self.run.measures_accuracy and self.accelerator.is_main_process:
            measured = self.evaluation.measure(state.step)
            self._print_accuracy(measured)
            state.evaluation = state.evaluation or dict(measured.metrics)

    @property
    def _lacks_accuracy(self) -> bool:
        return self.run.is_classifier and not self.run.measures_accuracy

    def _report(self, state: TrainState, too_short: str | None) -> None:
        images, after = self._images(), self.evaluation
        count, available = len(images), images.available or len(images)
        if images is not self.evaluation.images:
            after = self.evaluation.of(self.full_model.gathered, images)
        sampled = f" of {available:,}" if count < available else ""
        self.accelerator.print(f"measuring before and after training, on {count:,}{sampled} images")
        before = self.evaluation.of(self._initial, images)
        raw_pixels = before.measure_raw_pixels()
        measured = before.measure(0), after.measure(state.step)
        is_scratch = self.run.start.init_from is None
        self.comparison = compare(
            measured[0] if self.run.start.init_scope == "all" else _without_accuracy(measured[0]),
            measured[1],
            self._deciding_metric(measured[0], images),
            images.note,
            raw_pixels,
            start="untrained" if is_scratch else "before",
            num_images=count,
            num_available=available,
            is_too_short=too_short is not None,
            **({"without_verdict": ACCURACY_NOT_MEASURED} if self._lacks_accuracy else {}),
        )
        content = {
            "init_from": None if is_scratch else display_name(str(self.run.start.init_from)),
            "step": state.step,
            "too_short": too_short,
            **self.comparison.to_dict(),
            "best": self.best.read(),
        }
        save_metrics(content, self.output / REPORT_FILE)
        self.accelerator.print(f"\n{format_comparison(self.comparison)}")
        if "accuracy" not in self.comparison.after:
            self._print_accuracy(measured[1])
        state.evaluation = state.evaluation or dict(measured[1].metrics)

    def _print_accuracy(self, after: Measurement) -> None:
        """Print the accuracy of a classifier; without a start to compare with, no table has it."""
        accuracy = after.samples.get("accuracy")
        if accuracy is None:
            return
        low, high = (format_metric("accuracy", end) for end in estimate(accuracy)[1:])
        self.accelerator.print(
            f"The classifier is right for {format_metric('accuracy', accuracy.value)} ({low} to "
            f"{high}) of {len(accuracy.influences):,} test images."
        )

    def _images(self) -> EvaluationImages:
        """Return the images to report on: those of the evaluations, or a sample."""
        images, requested = self.evaluation.images, self.run.evaluation.report_images
        assert images is not None
        if self.run.evaluation.eval_steps is not None and requested is None:
            return images
        seconds = self.cost.read()["seconds"] or 0.0
        size = report_size(seconds, self._seconds_per_image, len(images), requested)
        return sample_evaluation_images(images, max(MIN_IMAGES, size))

    def _deciding_metric(self, before: Measurement, images: EvaluationImages) -> str | None:
        """Return the metric of the run, or the best one that these images have instead."""
        metric = self.best.metric
        if metric is None or (metric in before.samples and metric != "accuracy"):
            return metric
        if metric == "accuracy" and self.run.start.init_scope == "all":
            return metric  # of the classifier that the run started from
        names = images.accuracy_names()
        if not self.run.is_classifier:
            names = [*names, "view_retrieval"]
        return next((name for name in names if name in before.samples), None)

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
