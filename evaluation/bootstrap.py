"""A figure and how sure it is: what each image adds to it, and a bootstrap over the images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# N images · F figures of the same images · R resamples

LEVEL = 0.95
NUM_RESAMPLES = 2000
RESAMPLES_AT_ONCE = 50


@dataclass(frozen=True)
class MetricSample:
    """A figure of N images.

    Args:
        value: of all of them.
        influences: (N,), float64, mean 0: the value of a resample is `value` plus the mean of its
            images' influences. Exact for a mean over images (an accuracy); to first order for
            others (the infinitesimal jackknife; Efron, The Jackknife, the Bootstrap and Other
            Resampling Plans, SIAM 1982, Ch. 6). A true resample holds images twice, which lowers a
            rank by itself: the first order leaves that bias out.
    """

    value: float
    influences: np.ndarray

    @classmethod
    def mean_of(cls, scores: np.ndarray) -> MetricSample:
        """Return the mean of a score (N,) of each image, for example whether it is right."""
        scores = np.asarray(scores, dtype=np.float64)
        return cls(float(scores.mean()), scores - scores.mean())


class Estimate(NamedTuple):
    """A value and the ends of its interval."""

    value: float
    low: float
    high: float


def estimate(figure: MetricSample, *, seed: int = 0) -> Estimate:
    """Return a figure with its 95 % bootstrap interval (Efron and Tibshirani 1993, Ch. 13).

    It says how far the figure would move with other images of the same kind; not with other images
    to learn classes from, nor with another seed of the training. Where all images have the same
    score, it has no width.

    Args:
        figure: of N images.
        seed: of the resampling.
    """
    return _with_interval(figure.value, _offsets(figure.influences[:, None], seed)[:, 0])


def estimate_change(
    before: MetricSample, after: MetricSample, *, seed: int = 0
) -> tuple[Estimate, Estimate, Estimate]:
    """Return before, after, and after minus before, each with its interval.

    Paired: a resample is of the same images on both sides, so that what makes an image hard or easy
    for both does not widen the interval of the difference.

    Args:
        before: of N images.
        after: of the same images, in the same order.
        seed: of the resampling.

    Raises:
        ValueError: if they are not equally many.
    """
    if len(before.influences) != len(after.influences):
        raise ValueError(
            f"before has {len(before.influences)} images and after {len(after.influences)}; "
            "measure both on the same ones."
        )
    influences = [before.influences, after.influences, after.influences - before.influences]
    offsets = _offsets(np.stack(influences, axis=1), seed)  # (2, 3)
    values = (before.value, after.value, after.value - before.value)
    first, second, difference = map(_with_interval, values, offsets.T)
    return first, second, difference


def _offsets(influences: np.ndarray, seed: int) -> np.ndarray:
    """Return the ends of the intervals around the values (2, F), from influences (N, F)."""
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
