"""Did it help? The report on a run that started from weights, and the best of its checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..atomic_output import atomic_output
from ..data.image_source import hash_of
from ..evaluation.comparison import Comparison, Measurement, compare, format_comparison
from ..evaluation.evaluate import format_metric, metric_title, save_metrics
from ..sharing.provenance import shown_name
from .evaluation import Evaluation, EvaluationImages
from .run import Run
from .run_folder import CHECKPOINTS
from .trained_model import ModelWriter

REPORT_FILE = "report.json"
BEFORE_FILE = "before.npz"  # among the checkpoints: a run that is resumed needs it
BEST = "best"
BEST_FILE = "best.json"


class NoImprovementError(ValueError):
    """Training was to improve an encoder, and did not. Raised when all is saved."""


def choose_metric(run: Run, images: EvaluationImages | None) -> str | None:
    """Return the name of the figure that judges a run; None if nothing can.

    What the run asks for; else a classifier's own accuracy, or weighted k-NN, or, without labels,
    `view_retrieval`: neither a collapsed encoder nor a noisy one does well by it, while RankMe and
    uniformity alone rise with noise. None of the label-free figures judges a classifier: images
    of one class are meant to come together. The report on a classifier with a new head, which has
    no accuracy before, is judged by k-NN of its encoder.

    Raises:
        ValueError: if the run asks for a figure that its data does not give.
    """
    training = run.training
    wanted = training.best_metric
    if images is None:
        if wanted is not None:
            raise ValueError(
                f"best_metric ({wanted!r}) chooses among evaluations, and there are none; give "
                "eval_steps, or init_from."
            )
        return None
    names = images.accuracies()
    if run.is_classifier:
        names = ["accuracy", *names] if names else []
    else:
        names = [*names, "view_retrieval", "rankme"]
    if wanted is None and names:
        return names[0]
    if wanted not in names and (wanted is not None or training.require_improvement):
        raise ValueError(
            f"best_metric ({wanted!r}) cannot be measured on this data; it gives "
            f"{', '.join(names) or 'no figure that judges a classifier'}. Give --eval_train and "
            "--eval_test labelled images that are not trained on."
        )
    return wanted


class BestCheckpoint:
    """Keeps the model of the best evaluation so far in OUT/best, beside the last one.

    Args:
        writer: of the model in training.
        output: folder of the run.
        metric: name of the figure that decides; the first of equals stays.
        data: names what it is measured on (`Evaluation.data`).
    """

    def __init__(self, writer: ModelWriter, output: Path, metric: str | None, data: str):
        self.writer = writer
        self.folder = output / BEST
        self.metric = metric
        self.data = hash_of([data.encode()])

    def read(self) -> dict[str, Any] | None:
        """Return "step", "metric", "value" and "data" of the one that is kept, if any.

        One that was measured on other data, before a resume, does not count.
        """
        path = self.folder / BEST_FILE
        kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        return kept if kept is None or kept["data"] == self.data else None

    def offer(self, step: int, metrics: dict[str, float], card: Callable[[], str]) -> None:
        """Keep the model after some steps, with its card, if it is the best.

        For the main process alone.
        """
        if self.metric is None or self.metric not in metrics:
            return
        kept, value = self.read(), metrics[self.metric]
        if kept is not None and kept["metric"] == self.metric and kept["value"] >= value:
            return
        with atomic_output(self.folder) as unfinished:
            self.writer.write(unfinished, card())
            content = {"step": step, "metric": self.metric, "value": value, "data": self.data}
            save_metrics(content, unfinished / BEST_FILE)


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
        if metric is not None and metric not in self._before.figures:  # that of a new classifier
            metric = images.accuracies()[0]
        self.comparison = compare(self._before, after, metric, images.note)
        content = {
            "init_from": shown_name(str(self.run.training.init_from)),
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
        before = report["figures"][name]["before"]["value"] if name else None
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
    figures, metrics = dict(measurement.figures), dict(measurement.metrics)
    figures.pop("accuracy", None)
    metrics.pop("accuracy", None)
    return replace(measurement, figures=figures, metrics=metrics)


__all__ = ["BeforeAfterReport", "BestCheckpoint", "NoImprovementError", "choose_metric"]
