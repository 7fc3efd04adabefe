"""Comparison of an encoder before and after training, with confidence intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .bootstrap import LEVEL, NUM_RESAMPLES, Estimate, MetricSample, estimate, estimate_change
from .evaluate import format_metric, is_accuracy, is_fraction, metric_title
from .label_free import neighbor_overlap

# N images · K neighbors


@dataclass(frozen=True)
class Measurement:
    """Metrics of an encoder at one step of training.

    Args:
        samples: Metrics to compare, by name.
        neighbors: (N, K), the result of `nearest_neighbors` for the images of the label-free
            metrics.
        data: Identifier of images and settings. Only measurements with equal `data` can be
            compared.
        metrics: All metrics by name as plain numbers, including those that are not compared.
    """

    samples: Mapping[str, MetricSample]
    neighbors: np.ndarray
    data: str
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Change:
    """A metric before and after training, and the difference, each with its interval.

    Args:
        name: Name of the metric, as in `evaluate_embeddings`.
        before: Metric of the initial weights.
        after: Metric of the trained weights.
        difference: After minus before, on the same images.
        num_images: Number of images that the metric was measured on.
    """

    name: str
    before: Estimate
    after: Estimate
    difference: Estimate
    num_images: int

    @property
    def direction(self) -> str:
        """Return "higher" or "lower" if the printed interval excludes 0, otherwise "unclear"."""
        if _as_printed(self.name, self.difference.low) > 0:
            return "higher"
        return "lower" if _as_printed(self.name, self.difference.high) < 0 else "unclear"


@dataclass(frozen=True)
class Comparison:
    """Effect of training on an encoder.

    Args:
        changes: One entry per metric.
        overlap: Fraction of its nearest neighbors that an image keeps, averaged over the images.
        num_neighbors: Number K of nearest neighbors per image.
        num_overlap_images: Number of images among which the neighbors are searched.
        metric: Name of the metric that decides whether training helped, or None.
        metrics_before: All metrics of the initial weights as plain numbers, including those without
            an entry in `changes`.
        note: Remark about the metrics, or "".
        raw_pixels: Metrics of raw pixels, of the same images; empty if they were not measured.
        raw_pixels_lead: Raw pixels minus the trained encoder in the deciding metric, or None.
        start: Name of the initial weights in the table: "before", or "untrained" for random ones.
        num_images: Number of images that were measured.
        num_available: Number of images that these are a sample of, or the same number.
        without_verdict: Sentence in place of the verdict if no metric decides.
        is_too_short: Whether the run was too short for a verdict.
    """

    changes: tuple[Change, ...]
    overlap: Estimate
    num_neighbors: int
    num_overlap_images: int
    metric: str | None
    metrics_before: Mapping[str, float]
    note: str = ""
    raw_pixels: Mapping[str, Estimate] = field(default_factory=dict)
    raw_pixels_lead: Estimate | None = None
    start: str = "before"
    num_images: int = 0
    num_available: int = 0
    without_verdict: str = "No verdict: none of these metrics shows whether this model improved."
    is_too_short: bool = False

    @property
    def deciding(self) -> Change | None:
        """Return the entry of `metric`."""
        return next((change for change in self.changes if change.name == self.metric), None)

    @property
    def improved(self) -> bool | None:
        """Return whether the deciding metric increased at all; None if no metric decides.

        The value counts, not its interval: with few images, the interval of a true gain often
        includes 0.
        """
        return None if self.deciding is None else self.deciding.difference.value > 0

    @property
    def before(self) -> dict[str, Estimate | float]:
        """Return the initial metrics for a model card; compared metrics have their interval."""
        return {**self.metrics_before, **{change.name: change.before for change in self.changes}}

    @property
    def after(self) -> dict[str, Estimate]:
        """Return the compared metrics after training and the neighbor overlap, for a model card."""
        after = {change.name: change.after for change in self.changes}
        return {**after, "neighbor_overlap": self.overlap}

    @property
    def passes_raw_pixels(self) -> bool | None:
        """Return whether the encoder is above raw pixels in the deciding metric; None if unknown.

        The value counts, not its interval.
        """
        if self.deciding is None or self.deciding.name not in self.raw_pixels:
            return None
        return self.deciding.after.value > self.raw_pixels[self.deciding.name].value

    @property
    def raw_pixels_verdict(self) -> str:
        """Return a sentence if raw pixels are as good as the encoder or better, otherwise ""."""
        if self.deciding is None or self.passes_raw_pixels is not False:
            return ""
        name, lead = self.deciding.name, self.raw_pixels_lead
        raw, after = self.raw_pixels[name].value, self.deciding.after.value
        are = "may be better"  # the difference is within the noise
        if format_metric(name, raw) == format_metric(name, after):
            are = "are as good"
        elif lead is not None and _as_printed(name, lead.low) > 0:
            are = "are better"
        return (
            f"Raw pixels {are}: {metric_title(name)} is {format_metric(name, raw)} for them "
            f"and {format_metric(name, after)} for the encoder. Train longer, on more images, or "
            "start from pretrained weights."
        )

    @property
    def extent(self) -> str:
        """Return what the intervals are over: all evaluation images, or a sample of them."""
        if self.num_images >= self.num_available:
            return "the evaluation images"
        return f"a sample of {self.num_images:,} of {self.num_available:,} evaluation images"

    @property
    def verdict(self) -> str:
        """Return one sentence: whether training helped, by which metric, and by how much."""
        change = self.deciding
        if change is None:
            return self.without_verdict
        title, (value, low, high) = metric_title(change.name), change.difference
        by = _difference(change.name, abs(value))
        between = f"{_signed(change.name, low)} to {_signed(change.name, high)}"
        if change.direction == "unclear":
            trend = "did not change"
            if value != 0:
                trend = f"{'rose' if value > 0 else 'fell'} by {by}"
            return f"No clear change: {title} {trend}, and the interval ({between}) includes 0."
        interval = f"({100 * LEVEL:.0f} % interval {between})"
        if self.is_too_short:
            trend = "rose" if value > 0 else "fell"
            return f"No verdict, because the run was too short: {title} {trend} by {by} {interval}."
        if change.direction == "higher":
            return f"Training helped: {title} rose by {by} {interval}."
        return f"Training made the features worse: {title} fell by {by} {interval}."

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; fractions are in [0, 1]."""
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
            "raw_pixels": {name: value._asdict() for name, value in self.raw_pixels.items()},
            "passes_raw_pixels": self.passes_raw_pixels,
            "intervals": {
                "level": LEVEL,
                "num_resamples": NUM_RESAMPLES,
                "of": "test images",
                "num_images": self.num_images,
                "num_available": self.num_available,
            },
        }


def compare(
    before: Measurement,
    after: Measurement,
    metric: str | None,
    note: str = "",
    raw_pixels: Mapping[str, MetricSample] | None = None,
    **described: Any,
) -> Comparison:
    """Compare two measurements of the same images.

    Args:
        before: Measurement of the initial weights.
        after: Measurement of the trained weights.
        metric: Name of the metric that decides whether training helped (higher is better), or None.
        note: Remark about the metrics, or "".
        raw_pixels: Metrics of raw pixels, of the same images.
        described: Fields of `Comparison` that describe it: start, num_images, num_available,
            without_verdict and is_too_short.

    Raises:
        ValueError: If the data of the measurements differs, or `metric` was not measured.
    """
    if before.data != after.data:
        raise ValueError(
            "before and after must be measured on the same images with the same settings; measure "
            "the initial weights again."
        )
    if metric is not None and metric not in before.samples:
        known = ", ".join(before.samples)
        raise ValueError(f"metric ({metric!r}) must be one that was measured: {known}.")
    changes = [
        Change(name, *estimate_change(sample, after.samples[name]), len(sample.influences))
        for name, sample in before.samples.items()
    ]
    raw_pixels, lead = raw_pixels or {}, None
    if metric is not None and metric in raw_pixels:
        lead = estimate_change(after.samples[metric], raw_pixels[metric])[2]
    kept = neighbor_overlap(before.neighbors, after.neighbors)
    return Comparison(
        changes=tuple(changes),
        overlap=estimate(MetricSample.mean_of(kept)),
        num_neighbors=before.neighbors.shape[1],
        num_overlap_images=len(kept),
        metric=metric,
        metrics_before=before.metrics,
        note=note,
        raw_pixels={name: estimate(sample) for name, sample in raw_pixels.items()},
        raw_pixels_lead=lead,
        **described,
    )


def format_comparison(comparison: Comparison) -> str:
    """Return a plain-text table of metrics and intervals, the neighbor overlap and the verdict."""
    rows: list[tuple[str, ...]] = [("", "raw pixels", comparison.start, "after", "change", "")]
    for change in comparison.changes:
        low, high = (_signed(change.name, end) for end in change.difference[1:])
        raw = comparison.raw_pixels.get(change.name)
        rows.append(
            (
                metric_title(change.name),
                "" if raw is None else format_metric(change.name, raw.value),
                _with_interval(change.name, change.before),
                _with_interval(change.name, change.after),
                f"{_signed(change.name, change.difference.value)} ({low} to {high})",
                change.direction,
            )
        )
    if not comparison.raw_pixels:
        rows = [(row[0], *row[2:]) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    kept = _with_interval("neighbor_overlap", comparison.overlap)
    lines.append(
        f"{metric_title('neighbor_overlap')}: {kept} of the {comparison.num_neighbors} nearest, "
        f"among {comparison.num_overlap_images:,} images"
    )
    tested = [change for change in comparison.changes if is_accuracy(change.name)]
    if tested:
        titles = ", ".join(metric_title(change.name) for change in tested)
        lines.append(f"Number of test images: {tested[0].num_images:,} ({titles}).")
    lines.append(
        f"In parentheses: {100 * LEVEL:.0f} % bootstrap intervals over {comparison.extent}."
    )
    remarks = filter(None, [comparison.note, comparison.raw_pixels_verdict])
    return "\n".join([*lines, *remarks, comparison.verdict])


def _with_interval(name: str, estimated: Estimate) -> str:
    value, low, high = (format_metric(name, number) for number in estimated)
    return f"{value} ({low} to {high})"


def _difference(name: str, value: float) -> str:
    return f"{100 * value:.1f} points" if is_fraction(name) else format_metric(name, value)


def _as_printed(name: str, value: float) -> float:
    """Return a difference at the precision of the table."""
    return float(_signed(name, value).replace(",", ""))


def _signed(name: str, value: float) -> str:
    if is_fraction(name):
        return f"{100 * value:+.1f}".replace("-0.0", "+0.0")
    text = format_metric(name, value)
    return text if text.startswith("-") else f"+{text}"


__all__ = ["Change", "Comparison", "Measurement", "compare", "format_comparison"]
