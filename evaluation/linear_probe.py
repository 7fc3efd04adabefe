"""Linear probe: accuracy of a linear classifier on frozen vectors."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

# Values of C of scikit-learn, the inverse of the L2 penalty on the sum of losses. The strongest
# penalty comes first, so that each fit starts close to its solution.
STRENGTHS = (0.001, 0.01, 0.1, 1.0)
DEFAULT_STRENGTH = 0.1  # used if there are too few images to hold some out
MAX_CHOICE_IMAGES = 10_000  # more images cost time and hardly change the best strength
HELD_OUT_FRACTION = 0.2
MAX_ITERATIONS = 300


def linear_probe_accuracy(
    train_vectors: np.ndarray,
    train_labels: np.ndarray,
    test_vectors: np.ndarray,
    test_labels: np.ndarray,
    *,
    seed: int = 0,
) -> float:
    """Fit a multinomial logistic regression on standardized vectors and return its test accuracy.

    The penalty is chosen on a stratified held-out part of the training images; the test images are
    used once, at the end. This is the protocol of SimCLR (arXiv 2002.05709, App. B.8.1) without
    augmentation, so accuracies are slightly below those of papers, which train on random crops.

    Args:
        train_vectors: (N, E).
        train_labels: (N,) class indices.
        test_vectors: (M, E).
        test_labels: (M,) class indices.
        seed: Random seed of the split for choosing the penalty.

    Returns:
        Fraction of the test images classified correctly, in [0, 1].

    Raises:
        ImportError: If scikit-learn is not installed.
        ValueError: If the training images have fewer than two classes.
    """
    hits = linear_probe_hits(train_vectors, train_labels, test_vectors, test_labels, seed=seed)
    return float(hits.mean())


def linear_probe_hits(
    train_vectors: np.ndarray,
    train_labels: np.ndarray,
    test_vectors: np.ndarray,
    test_labels: np.ndarray,
    *,
    seed: int = 0,
) -> np.ndarray:
    """Return which test images the probe classifies correctly, (M,) bool.

    Arguments and errors are those of `linear_probe_accuracy`.
    """
    train_labels, test_labels = np.asarray(train_labels), np.asarray(test_labels)
    probe = fit_linear_probe(train_vectors, train_labels, seed=seed)
    return probe.predict(np.asarray(test_vectors, dtype=np.float32)) == test_labels


def fit_linear_probe(
    vectors: np.ndarray, labels: np.ndarray, *, strength: float | None = None, seed: int = 0
) -> Any:
    """Fit the probe of `linear_probe_accuracy`.

    Args:
        vectors: (N, E).
        labels: (N,) class indices.
        strength: C of scikit-learn, the inverse of the penalty; None to choose it on held-out
            images.
        seed: Random seed of the split for choosing the penalty.

    Returns:
        Pipeline of scikit-learn: `StandardScaler` and `LogisticRegression`.

    Raises:
        ImportError: If scikit-learn is not installed.
        ValueError: If the labels are of fewer than two classes.
    """
    require_scikit_learn()
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(labels)) < 2:
        raise ValueError(
            "a linear probe needs training images of at least two classes, but all "
            f"{len(labels)} have the same class; add images of another class."
        )
    scaler = StandardScaler()  # sets constant features to 0 instead of dividing by 0
    scaled = scaler.fit_transform(np.asarray(vectors, dtype=np.float32))
    classifier = _classifier(strength or _choose_strength(scaled, labels, seed))
    _fit(classifier, scaled, labels)
    return make_pipeline(scaler, classifier)


def require_scikit_learn() -> None:
    """Check that scikit-learn is installed. Call this before embedding images for the probe.

    Raises:
        ImportError: If scikit-learn is not installed.
    """
    try:
        import sklearn.preprocessing  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "the linear probe needs scikit-learn; install it with pip install scikit-learn (it is "
            "part of the extra selfvit[train])."
        ) from error


def _choose_strength(vectors: np.ndarray, labels: np.ndarray, seed: int) -> float:
    generator = np.random.default_rng(seed)
    chosen = generator.permutation(len(labels))[:MAX_CHOICE_IMAGES]
    is_held_out = hold_out(labels[chosen], generator)
    fit, held_out = chosen[~is_held_out], chosen[is_held_out]
    if len(held_out) == 0 or len(np.unique(labels[fit])) < 2:
        return DEFAULT_STRENGTH
    classifier = _classifier(STRENGTHS[0], warm_start=True)
    accuracies = []
    for strength in STRENGTHS:
        classifier.set_params(C=strength)
        _fit(classifier, vectors[fit], labels[fit])
        accuracies.append((classifier.predict(vectors[held_out]) == labels[held_out]).mean())
    return STRENGTHS[int(np.argmax(accuracies))]  # on a tie the strongest penalty


def hold_out(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Select a fifth of the images of each class, at least one; none of a class with one image.

    Args:
        labels: (N,) class indices.
        generator: Random generator of the selection.

    Returns:
        (N,) bool, True for the held-out images.
    """
    is_held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count = round(HELD_OUT_FRACTION * len(members))
        is_held_out[members[: max(count, int(len(members) > 1))]] = True
    return is_held_out


def _classifier(strength: float, **options: Any) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, solver="lbfgs", max_iter=MAX_ITERATIONS, **options)


def _fit(classifier: Any, vectors: np.ndarray, labels: np.ndarray) -> None:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # With a weak penalty, the fit stops at MAX_ITERATIONS. This is early stopping, and the
        # held-out accuracy accounts for it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(vectors, labels)
