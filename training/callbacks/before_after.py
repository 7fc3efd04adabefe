"""Did it help? The report on a run that started from weights, and the best of its checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator

from ...evaluation.comparison import Comparison, Measurement, compare, format_comparison
from ...evaluation.evaluate import format_metric, metric_title, save_metrics
from ...sharing.provenance import display_name
from ..checkpoints.run_folder import BEFORE_FILE, CHECKPOINTS, REPORT_FILE
from ..config.run_config import Run
from ..evaluation import Evaluation
from ..exceptions import NoImprovementError
from .best_checkpoint import BestCheckpoint


class BeforeAfterReport:
    """Measures an encoder before and after training, and says whether it got better.

    Args:
        accelerator: tells which process this is; the main one measures.
        evaluation: of the model that is trained.
        run: what is trained.
        best: says where a better one is, if there was one.
    """

    def __init__(
        self, accelerator: Accelerator, evaluation: Evaluation, run: Run, best: BestCheckpoint
    ):
        self.accelerator = accelerator
        self.evaluation = evaluation
        self.run = run
        self.best = best
        self.output = Path(run.training.output)
        self.is_wanted = run.training.compares_with_start
        self.comparison: Comparison | None = None
        self._before: Measurement | None = None

    def measure_before(self) -> None:
        """Measure the model as it starts, or read what was measured before an interruption.

        To be called before a checkpoint is loaded: then it is right at a resume, too, after the
        data to evaluate on was changed, or in a run of an older version.
        """
        if not (self.is_wanted and self.accelerator.is_main_process):
            return
        path = self.output / CHECKPOINTS / BEFORE_FILE
        if path.is_file():
            self._before = Measurement.load(path)
        if self._before is None or self._before.data != self.evaluation.data:
            self._announce("before")
            self._before = self.evaluation.measure(0)
            if self.run.training.init_scope != "all":
                self._before = _without_accuracy(self._before)
            self._before.save(path)

    def measure_after(self, step: int) -> dict[str, float]:
        """Measure the trained model, write report.json, print the table; return the figures."""
        if self._before is None:
            return {}
        self._announce("after")
        after = self.evaluation.measure(step)
        images = self.evaluation.images
        assert images is not None
        metric = self.best.metric
        if metric is not None and metric not in self._before.samples:  # that of a new classifier
            metric = images.accuracies()[0]
        self.comparison = compare(self._before, after, metric, images.note)
        content = {
            "init_from": display_name(str(self.run.training.init_from)),
            "step": step,
            **self.comparison.to_dict(),
            "best": self.best.read(),
        }
        save_metrics(content, self.output / REPORT_FILE)
        self.accelerator.print(f"\n{format_comparison(self.comparison)}")
        return dict(after.metrics)

    def _announce(self, when: str) -> None:
        """Say what takes a while: of a large encoder on a CPU, minutes."""
        images = self.evaluation.images
        assert images is not None
        count = sum(map(len, images.sources))
        self.accelerator.print(f"measuring the encoder {when} training, on {count:,} images")

    def require_improvement(self) -> None:
        """End a run that was to improve the encoder and did not; all is saved by then.

        From report.json, so that a resume of a run that has ended says the same.

        Raises:
            NoImprovementError: on the main process.
        """
        path = self.output / REPORT_FILE
        if not (self.run.training.require_improvement and self.accelerator.is_main_process):
            return
        report = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if report.get("improved"):
            return
        name, training = report.get("metric"), self.run.training
        metrics = report.get("metrics", report.get("figures", {}))  # "figures" in older reports
        before = metrics[name]["before"]["value"] if name else None
        best = report.get("best")
        hint = ""
        if best is not None and name == best["metric"] and best["value"] > before:
            hint = (
                f" The checkpoint of step {best['step']} is better than the start "
                f"({metric_title(name)} {format_metric(name, best['value'])}): {self.best.folder}."
            )
        raise NoImprovementError(
            f"{report.get('verdict', 'There is no report.')} --require_improvement asks for more "
            f"than before. The model is saved in {self.output}, and not published.{hint} Try a "
            f"lower base_learning_rate (it was {training.base_learning_rate:g}), a lower "
            "layer_decay or fewer epochs, or keep the weights that it started from."
        )


def _without_accuracy(measurement: Measurement) -> Measurement:
    """Leave out the accuracy of a classifier that is drawn anew: anything is better than that."""
    samples, metrics = dict(measurement.samples), dict(measurement.metrics)
    samples.pop("accuracy", None)
    metrics.pop("accuracy", None)
    return replace(measurement, samples=samples, metrics=metrics)


__all__ = ["BeforeAfterReport"]
