"""Number of images in the before/after report, so that it takes a small part of a run's time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..data.image_source import NO_LABEL, ChosenSource, ImageSource
from .evaluation_images import EvaluationImages

TIME_SHARE = 0.1  # of the training time
# Before, after, and raw pixels; the metrics of the vectors take less than the vectors.
NUM_MEASUREMENTS = 3
# Enough for intervals that say something: a fraction of 200 images is known to within 7 points.
MIN_REPORT_IMAGES = 200


def report_size(
    training_seconds: float, seconds_per_image: float, available: int, requested: int | None = None
) -> int:
    """Return the number of images that a report can measure in its share of the training time.

    Args:
        training_seconds: Training time of the run, seconds.
        seconds_per_image: Time to measure an image with one encoder, seconds.
        available: Number of images that can be measured.
        requested: Number of images that was asked for; None to follow the time.

    Returns:
        At least `MIN_REPORT_IMAGES`, however short the run was, and at most `available`.
    """
    if requested is not None:
        return min(available, requested)
    affordable = TIME_SHARE * training_seconds / (NUM_MEASUREMENTS * max(seconds_per_image, 1e-9))
    return min(available, max(MIN_REPORT_IMAGES, int(affordable)))


def sample_evaluation_images(images: EvaluationImages, size: int) -> EvaluationImages:
    """Return a fixed sample of evaluation images, with the same share of test images.

    Test images of a class that the sampled training images lack are left out.

    Args:
        images: Images of an evaluation.
        size: Number of images to keep.
    """
    total = len(images)
    if size >= total:
        return images
    sampled = replace(images, available=total)
    if images.test is None:
        return replace(sampled, images=images.images.sample(size))
    test = images.test.sample(max(1, round(size * len(images.test) / total)))
    train = images.images.sample(max(1, size - len(test)))
    known = np.isin(_class_names(test), _class_names(train))
    if not known.any():
        return replace(sampled, images=train, test=None)
    return replace(sampled, images=train, test=ChosenSource(test, np.flatnonzero(known)))


def _class_names(source: ImageSource) -> np.ndarray:
    """Return the name of the class of each image, or its index; "" without a label."""
    labels = source.labels()
    if labels is None:
        return np.full(len(source), "")
    names = source.label_names
    shown = ["" if n == NO_LABEL else str(n) if names is None else names[n] for n in labels]
    return np.array(shown)


__all__ = ["report_size", "sample_evaluation_images"]
