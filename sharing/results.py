"""Results of a model card: table of metrics, pictures, and accuracies in the Hub's format."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from huggingface_hub import EvalResult

from ..evaluation.evaluate import format_metric, metric_title
from .provenance import display_name, hub_id

# A metric, or (metric, low, high) with the ends of its 95 % interval.
MetricValue = float | tuple[float, float, float]


@dataclass(frozen=True)
class Results:
    """Metrics of a checkpoint and of baselines.

    Args:
        columns: Columns of the table by title; each is a mapping of metrics by name, as in
            `evaluate_embeddings`. The last column belongs to the checkpoint.
        verdict: Conclusion in words, or "".
        evaluated_on: Path or Hub id of the data of the accuracies, or "".
        pictures: Captions of pictures, by file name in the folder of the card.
    """

    columns: Mapping[str, Mapping[str, MetricValue]]
    verdict: str = ""
    evaluated_on: str = ""
    pictures: Mapping[str, str] = field(default_factory=dict)

    @property
    def metrics(self) -> Mapping[str, MetricValue]:
        """Return the metrics of the checkpoint."""
        return list(self.columns.values())[-1]

    @property
    def rows(self) -> list[list[str]]:
        """Return the rows of the table: title and one value per column, "-" if not measured."""
        names = dict.fromkeys([*self.metrics, *(name for m in self.columns.values() for name in m)])
        return [
            [
                metric_title(name),
                *(_text(name, column.get(name)) for column in self.columns.values()),
            ]
            for name in names
        ]

    @property
    def data_name(self) -> str:
        """Return the name of the evaluation data without local folders, or ""."""
        return display_name(self.evaluated_on) if self.evaluated_on else ""

    @property
    def eval_results(self) -> list[EvalResult]:
        """Return the accuracies of the checkpoint for the metadata of the card (model-index).

        Label-free metrics have no task and dataset on the Hub and are left out.
        """
        if not self.evaluated_on:
            return []
        kind = "parquet" if self.evaluated_on.endswith(".parquet") else "imagefolder"
        return [
            EvalResult(
                task_type="image-classification",
                dataset_type=hub_id(self.evaluated_on) or kind,
                dataset_name=self.data_name,
                metric_type="accuracy",
                metric_name=metric_title(name),
                metric_value=round(_number(value), 4),
            )
            for name, value in self.metrics.items()
            if _is_accuracy(name) and math.isfinite(_number(value))
        ]


def _is_accuracy(name: str) -> bool:
    return name in ("linear_probe", "accuracy") or name.startswith("knn_")


def _number(value: MetricValue) -> float:
    return float(value[0] if isinstance(value, tuple) else value)


def _text(name: str, value: MetricValue | None) -> str:
    if value is None:
        return "-"
    if not isinstance(value, tuple):
        return format_metric(name, value)
    number, low, high = (format_metric(name, part) for part in value)
    return f"{number} ({low} to {high})"


__all__ = ["MetricValue", "Results"]
