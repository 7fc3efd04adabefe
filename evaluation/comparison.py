"""Before and after: did training make an encoder better, and how sure is that?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np

from ..atomic_output import atomic_output
from .bootstrap import LEVEL, NUM_RESAMPLES, Estimate, MetricSample, estimate, estimate_change
from .evaluate import format_metric, is_fraction, metric_title
from .label_free import neighbor_overlap

# N images · K neighbors


@dataclass(frozen=True)
class Measurement:
    """An encoder's figures at one moment.

    Args:
        samples: Metrics that are compared, by name.
        neighbors: (N, K) of `nearest_neighbors`, of the images that need no labels.
        data: names images and settings; only measurements of equal data can be compared.
        metrics: all figures by name as plain numbers, those that are not compared too.
    """

    samples: Mapping[str, MetricSample]
    neighbors: np.ndarray
    data: str
    metrics: Mapping[str, float]

    def save(self, path: str | PathLike[str]) -> None:
        """Write it, whole or not at all, without loss of a bit."""
        arrays = {name: sample.influences for name, sample in self.samples.items()}
        values = {name: sample.value for name, sample in self.samples.items()}
        text = json.dumps({"data": self.data, "values": values, "metrics": dict(self.metrics)})
        with atomic_output(path) as unfinished, open(unfinished, "wb") as file:
            np.savez(file, _text=np.array(text), _neighbors=self.neighbors, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Measurement:
        """Read what `save` wrote."""
        with np.load(path) as arrays:
            content = json.loads(str(arrays["_text"]))
            return cls(
                samples={n: MetricSample(v, arrays[n]) for n, v in content["values"].items()},
                neighbors=arrays["_neighbors"],
                data=content["data"],
                metrics=content["metrics"],
            )


@dataclass(frozen=True)
class Change:
    """A figure before and after, and the difference, each with its interval.

    Args:
        name: of the figure, as in `evaluate_embeddings`.
        before: of the weights to start from.
        after: of the trained ones.
        difference: after minus before, of the same images.
        num_images: that it was measured on.
    """

    name: str
    before: Estimate
    after: Estimate
    difference: Estimate
    num_images: int

    @property
    def direction(self) -> str:
        """Where the whole interval of the difference is, "higher" or "lower"; else "unclear"."""
        if self.difference.low > 0:
            return "higher"
        return "lower" if self.difference.high < 0 else "unclear"


@dataclass(frozen=True)
class Comparison:
    """What training did to an encoder.

    Args:
        changes: a row a figure.
        overlap: share of its nearest neighbors that an image keeps.
        num_neighbors: K, how many nearest ones that is of.
        num_overlap_images: that they are among.
        metric: name of the figure that decides whether training helped; None if none can.
        metrics_before: all figures of the start as plain numbers, those without a row, too.
        note: what one should know of the figures, or "".
    """

    changes: tuple[Change, ...]
    overlap: Estimate
    num_neighbors: int
    num_overlap_images: int
    metric: str | None
    metrics_before: Mapping[str, float]
    note: str = ""

    @property
    def deciding(self) -> Change | None:
        """The row of `metric`."""
        return next((change for change in self.changes if change.name == self.metric), None)

    @property
    def improved(self) -> bool | None:
        """Whether the deciding figure is above what it was, by however little; None without one.

        Of the figure itself, not of its interval: on few images a true gain is seldom certain.
        """
        return None if self.deciding is None else self.deciding.difference.value > 0

    @property
    def before(self) -> dict[str, Estimate | float]:
        """Figures by name, for a model card; those that are compared with their interval."""
        return {**self.metrics_before, **{change.name: change.before for change in self.changes}}

    @property
    def after(self) -> dict[str, Estimate]:
        """Figures by name, for a model card: those that are compared, and neighbors kept."""
        after = {change.name: change.after for change in self.changes}
        return {**after, "neighbor_overlap": self.overlap}

    @property
    def verdict(self) -> str:
        """One sentence: whether it helped, by which figure, by how much."""
        change = self.deciding
        if change is None:
            return "No verdict: none of these figures tells whether this model got better."
        title, (value, low, high) = metric_title(change.name), change.difference
        by = _difference(change.name, abs(value))
        between = f"{_signed(change.name, low)} to {_signed(change.name, high)}"
        if change.direction == "unclear":
            went = "did not move" if value == 0 else f"{'rose' if value > 0 else 'fell'} by {by}"
            return f"No clear change: {title} {went}, and the interval ({between}) includes 0."
        interval = f"({100 * LEVEL:.0f} % interval {between})"
        if change.direction == "higher":
            return f"It helped: {title} rose by {by} {interval}."
        return f"It made the features worse: {title} fell by {by} {interval}."

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; shares are in [0, 1]."""
        return {
            "metric": self.metric,
            "improved": self.improved,
            "verdict": self.verdict,
            "note": self.note,
            "metrics": {
                change.name: {
                    "before": change.before._asdict(),
                    "after": change.after._asdict(),
                    "difference": change.difference._asdict(),
                    "direction": change.direction,
                    "num_images": change.num_images,
                }
                for change in self.changes
            },
            "neighbor_overlap": {
                **self.overlap._asdict(),
                "num_neighbors": self.num_neighbors,
                "num_images": self.num_overlap_images,
            },
            "intervals": {"level": LEVEL, "num_resamples": NUM_RESAMPLES, "of": "test images"},
        }


def compare(
    before: Measurement, after: Measurement, metric: str | None, note: str = ""
) -> Comparison:
    """Compare two measurements of the same images.

    Args:
        before: of the weights to start from.
        after: of the trained ones.
        metric: name of the figure that decides, higher being better, or None.
        note: what one should know of the figures, or "".

    Raises:
        ValueError: if they are not of the same data, or there is no such figure.
    """
    if before.data != after.data:
        raise ValueError("before and after were measured on different images or settings.")
    if metric is not None and metric not in before.samples:
        known = ", ".join(before.samples)
        raise ValueError(f"metric ({metric!r}) was not measured; there are {known}.")
    changes = [
        Change(name, *estimate_change(sample, after.samples[name]), len(sample.influences))
        for name, sample in before.samples.items()
    ]
    kept = neighbor_overlap(before.neighbors, after.neighbors)
    return Comparison(
        changes=tuple(changes),
        overlap=estimate(MetricSample.mean_of(kept)),
        num_neighbors=before.neighbors.shape[1],
        num_overlap_images=len(kept),
        metric=metric,
        metrics_before=before.metrics,
        note=note,
    )


def format_comparison(comparison: Comparison) -> str:
    """Return an aligned plain-text table: figures with intervals, neighbors kept, the verdict."""
    rows = [("", "before", "after", "change", "")]
    for change in comparison.changes:
        low, high = (_signed(change.name, end) for end in change.difference[1:])
        rows.append(
            (
                metric_title(change.name),
                _with_interval(change.name, change.before),
                _with_interval(change.name, change.after),
                f"{_signed(change.name, change.difference.value)} ({low} to {high})",
                change.direction,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    kept = _with_interval("neighbor_overlap", comparison.overlap)
    lines.append(
        f"{metric_title('neighbor_overlap')}: {kept} of the {comparison.num_neighbors} nearest, "
        f"among {comparison.num_overlap_images:,} images"
    )
    lines.append(
        f"In brackets: {100 * LEVEL:.0f} % intervals, by resampling the images measured on."
    )
    return "\n".join([*lines, *filter(None, [comparison.note]), comparison.verdict])


def _with_interval(name: str, estimated: Estimate) -> str:
    value, low, high = (format_metric(name, number) for number in estimated)
    return f"{value} ({low} to {high})"


def _difference(name: str, value: float) -> str:
    return f"{100 * value:.1f} points" if is_fraction(name) else format_metric(name, value)


def _signed(name: str, value: float) -> str:
    if is_fraction(name):
        return f"{100 * value:+.1f}"
    text = format_metric(name, value)
    return text if text.startswith("-") else f"+{text}"


__all__ = ["Change", "Comparison", "Measurement", "compare", "format_comparison"]
