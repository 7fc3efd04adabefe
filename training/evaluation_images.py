"""Images that a run is evaluated on, and the metric that judges it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from ..data.dataset_source import StreamingImageSource
from ..data.image_source import NO_LABEL, ChosenSource, ImageSource
from ..data.sources import open_images
from ..data.stream_reader import first_images
from ..evaluation.evaluate import check_labels
from ..evaluation.linear_probe import hold_out
from .config.run_config import RunConfig

# First images of a stream, kept in memory without decoding: for evaluations, for a report alone.
MAX_STREAM_IMAGES, MAX_STREAM_REPORT_IMAGES = 2000, 500
SEEN_IN_TRAINING = (
    "Measured on images that were trained on; the initial weights may not have seen them."
)
LABELS_NOT_TRAINED_ON = (
    f"{SEEN_IN_TRAINING} Labels, where a metric uses them, were not trained on. Choose other "
    "images with --eval-train and --eval-test."
)
TEST_EQUALS_TRAIN = (
    "The accuracies are too high: --eval-test has the images of --eval-train, so each test image "
    "is its own nearest neighbor. Give --eval-test other images."
)


@dataclass(frozen=True)
class EvaluationImages:
    """Images that a run is evaluated on.

    Args:
        images: Images for label-free metrics. k-NN and the linear probe learn from their labels.
        test: Labeled images to test on, separate from `images`; None without labels.
        note: Caveat that is reported with the metrics, or "".
        available: Number of images that these are a sample of; None if they are all.
    """

    images: ImageSource
    test: ImageSource | None = None
    note: str = ""
    available: int | None = None

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    @property
    def sources(self) -> list[ImageSource]:
        """Image sources to embed."""
        return [self.images] if self.test is None else [self.images, self.test]

    def accuracy_names(self) -> list[str]:
        """Return the names of the accuracies that can be measured, the most informative first.

        k-NN comes before the linear probe because it uses the features without fitting anything.
        """
        if self.test is None or self.test.labels() is None:
            return []
        labels = self.images.labels()
        num_labeled = 0 if labels is None else int((labels != NO_LABEL).sum())
        names = [f"knn_{k}" for k in (20, 10) if k <= num_labeled]
        return [*names, "linear_probe"] if num_labeled else []


def open_evaluation_images(
    run: RunConfig, source: ImageSource | StreamingImageSource
) -> EvaluationImages | None:
    """Return the images that a run is evaluated on, or None if it is not evaluated.

    These are the images of `eval_train` and `eval_test`, or else training images. If the training
    images have labels that the objective does not use, a fifth of each class becomes the test set
    and the rest its training set. The trained weights have seen these images and the initial
    weights perhaps have not, so the comparison slightly favors training; the note says so. A
    classifier was trained on all labels, so it gets no accuracies. Accuracies need scikit-learn;
    without it, a run has the metrics that need no labels.

    Args:
        run: Configuration of the run.
        source: Training images. For a stream, its first images in shuffled order are used.

    Raises:
        ImportError: If `eval_test` has labels and scikit-learn is not installed.
        ValueError: If the test images have a class that the images to learn from lack.
    """
    if not (run.evaluation.eval_steps or run.compares_with_start or run.evaluates_result):
        return None
    if run.evaluation.eval_train is not None and run.evaluation.eval_test is not None:
        same = run.evaluation.eval_train == run.evaluation.eval_test
        sources = [
            open_images(
                name, image_column=run.data.image_column, label_column=run.data.label_column
            ).sample(run.evaluation.eval_limit)
            for name in dict.fromkeys((run.evaluation.eval_train, run.evaluation.eval_test))
        ]
        train, test = sources[0], sources[-1]
        check_labels(train, test)
        if run.is_classifier and isinstance(source, ImageSource):
            check_labels(source, test)  # the classifier's own accuracy is measured, too
        return EvaluationImages(train, test, note=TEST_EQUALS_TRAIN if same else "")
    if isinstance(source, StreamingImageSource):
        most = MAX_STREAM_IMAGES
        if run.evaluation.eval_steps is None and run.start.init_from is None:
            most = max(MAX_STREAM_REPORT_IMAGES, run.evaluation.report_images or 0)
        source = first_images(source, min(run.evaluation.eval_limit, most))
    source = source.sample(run.evaluation.eval_limit)
    labels = source.labels() if find_spec("sklearn") else None
    if run.is_classifier:
        return EvaluationImages(source, note=SEEN_IN_TRAINING)
    if labels is None or len(np.unique(labels[labels != NO_LABEL])) < 2:
        return EvaluationImages(source, note=LABELS_NOT_TRAINED_ON)
    is_test = hold_out(labels, np.random.default_rng(0)) & (labels != NO_LABEL)
    if not is_test.any():
        return EvaluationImages(source, note=LABELS_NOT_TRAINED_ON)
    train, test = (ChosenSource(source, np.flatnonzero(chosen)) for chosen in (~is_test, is_test))
    return EvaluationImages(train, test, note=LABELS_NOT_TRAINED_ON)


def choose_metric(run: RunConfig, images: EvaluationImages | None) -> str | None:
    """Return the name of the metric that judges a run, or None if no metric can.

    By default this is the accuracy of a classifier's own head, or else weighted k-NN, or, without
    labels, `view_retrieval`. A collapsed encoder and a noisy one both do badly in view retrieval,
    while RankMe and uniformity rise with noise. Label-free metrics do not judge a classifier,
    because it is meant to bring images of one class together. A classifier with a new head has no
    accuracy before training, so its before/after report is judged by k-NN.

    Args:
        run: Configuration of the run, with `best_metric` if the user chose one.
        images: Images of the evaluations, or None.

    Raises:
        ValueError: If `best_metric` cannot be measured on these images, or
            `require_improvement` is set and no metric can judge the run.
    """
    wanted = run.evaluation.best_metric
    if images is None:
        if wanted is not None:
            raise ValueError(
                f"--best-metric ({wanted}) needs evaluations or a report, and this run has none; "
                "give --eval-steps, or leave out --report-images 0."
            )
        return None
    names = images.accuracy_names()
    if run.is_classifier:
        names = ["accuracy", *names] if names else []
    else:
        names = [*names, "view_retrieval", "rankme"]
    if wanted is None and names:
        return names[0]
    if wanted not in names and (wanted is not None or run.evaluation.require_improvement):
        rule = (
            "--require-improvement needs a metric that can judge the run"
            if wanted is None
            else f"--best-metric ({wanted}) cannot be measured on this data"
        )
        raise ValueError(
            f"{rule}; available: {', '.join(names) or 'none for a classifier'}. Give labeled "
            "images that are not trained on with --eval-train and --eval-test."
        )
    return wanted


__all__ = ["EvaluationImages", "choose_metric", "open_evaluation_images"]
