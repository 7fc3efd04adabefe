"""Bootstrap confidence intervals of metrics, by resampling the images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# N images · F metrics of the same images · R resamples

LEVEL = 0.95
NUM_RESAMPLES = 2000
RESAMPLES_AT_ONCE = 50


@dataclass(frozen=True)
class MetricSample:
    """A metric of N images, and the influence of each image on it.

    Args:
        value: The metric of all N images.
        influences: (N,), float64, mean 0. The metric of a resample is `value` plus the mean of the
            influences of its images. This is exact for a mean over images (an accuracy) and a
            first-order approximation for other metrics (the infinitesimal jackknife; Efron, The
            Jackknife, the Bootstrap and Other Resampling Plans, SIAM 1982, Ch. 6). A real resample
            contains images twice, which alone lowers a rank; the first order leaves this bias out.
    """

    value: float
    influences: np.ndarray

    @classmethod
    def mean_of(cls, scores: np.ndarray) -> MetricSample:
        """Return the mean of one score per image (N,), for example whether it is classified right.

        Args:
            scores: (N,), numbers or booleans.
        """
        scores = np.asarray(scores, dtype=np.float64)
        return cls(float(scores.mean()), scores - scores.mean())


class Estimate(NamedTuple):
    """A value and the ends of its confidence interval."""

    value: float
    low: float
    high: float


def estimate(sample: MetricSample, *, seed: int = 0) -> Estimate:
    """Return a metric with its 95 % bootstrap interval (Efron and Tibshirani 1993, Ch. 13).

    The interval shows how much the metric varies with the choice of test images. It does not cover
    the choice of training images or the seed of the training run. If all images have the same
    score, its width is 0.

    Args:
        sample: Metric of N images.
        seed: Random seed of the resampling.
    """
    return _with_interval(sample.value, _offsets(sample.influences[:, None], seed)[:, 0])


def estimate_change(
    before: MetricSample, after: MetricSample, *, seed: int = 0
) -> tuple[Estimate, Estimate, Estimate]:
    """Return before, after, and after minus before, each with its interval.

    The resampling is paired: each resample takes the same images on both sides. Images that are
    hard or easy for both sides therefore do not widen the interval of the difference.

    Args:
        before: Metric of N images.
        after: Metric of the same images, in the same order.
        seed: Random seed of the resampling.

    Raises:
        ValueError: If the numbers of images differ.
    """
    if len(before.influences) != len(after.influences):
        raise ValueError(
            f"before ({len(before.influences)} images) and after ({len(after.influences)} images) "
            "must have the same images; measure both on the same data."
        )
    influences = [before.influences, after.influences, after.influences - before.influences]
    offsets = _offsets(np.stack(influences, axis=1), seed)  # (2, 3)
    values = (before.value, after.value, after.value - before.value)
    first, second, difference = map(_with_interval, values, offsets.T)
    return first, second, difference


def _offsets(influences: np.ndarray, seed: int) -> np.ndarray:
    """Return the ends of the intervals relative to the values (2, F), from influences (N, F)."""
    generator = np.random.default_rng(seed)
    num_images = len(influences)
    means = [
        influences[generator.integers(num_images, size=(RESAMPLES_AT_ONCE, num_images))].mean(1)
        for _ in range(NUM_RESAMPLES // RESAMPLES_AT_ONCE)
    ]
    tail = (1 - LEVEL) / 2
    return np.quantile(np.concatenate(means), [tail, 1 - tail], axis=0)  # (R, F) -> (2, F)


def _with_interval(value: float, offsets: np.ndarray) -> Estimate:
    return Estimate(value, value + float(offsets[0]), value + float(offsets[1]))


__all__ = ["LEVEL", "NUM_RESAMPLES", "Estimate", "MetricSample", "estimate", "estimate_change"]
