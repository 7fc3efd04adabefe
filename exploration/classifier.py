"""Classify vectors from those of labeled images, with calibrated probabilities."""

# N labeled rows · M rows · E embedding · L classes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..evaluation.linear_probe import fit_linear_probe
from .neighbors import nearest
from .outliers import IS_COPY

Method = Literal["knn", "linear"]
NUM_NEIGHBORS = 20  # DINO, arXiv 2104.14294, App. F.1
VOTE_TEMPERATURE = 0.07  # of a neighbor's vote, as in evaluation/knn.py
TIE = 1e-6  # difference up to which two similarities count as equal, in float32
PRIOR_VOTES = 1.0  # votes shared by all classes, so that no probability is 0
NUM_FOLDS, NO_FOLD = 5, -1
LEAST_PROBABILITY = 1e-9  # so that logarithms are finite
TEMPERATURES = tuple(np.geomspace(0.05, 20, 121).tolist())
LEVEL = 0.95


@dataclass(frozen=True)
class HeldOutEstimate:
    """Accuracy on labeled images that the classifier was not fitted on.

    Args:
        accuracy: Fraction of the labeled images classified correctly by cross-validation.
        low: Lower end of the 95 % Wilson interval of the accuracy.
        high: Upper end.
        mean_probability: Mean calibrated probability of the predictions; near the accuracy if the
            calibration holds.
        num_images: Number of labeled images that were held out.
        num_folds: Number of folds.
    """

    accuracy: float
    low: float
    high: float
    mean_probability: float
    num_images: int
    num_folds: int


class Classifier:
    """Classifier that is fitted and applied at once.

    Args:
        method: "knn" or "linear".
        num_classes: Number L of classes.
        seed: Random seed of the choice of the probe's penalty.
    """

    def __init__(self, method: Method, num_classes: int, seed: int):
        self._method = method
        self._num_classes = num_classes
        self._seed = seed
        self.strength: float | None = None

    def fix_strength(self, vectors: np.ndarray, labels: np.ndarray) -> None:
        """Choose the penalty of the probe on these vectors, for all later fits.

        Args:
            vectors: Vectors of the labeled rows, (N, E).
            labels: Their classes, (N,).
        """
        if self._method == "linear":
            probe = fit_linear_probe(vectors, labels, seed=self._seed)
            self.strength = probe[-1].C

    def scores(self, train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
        """Return logarithms of probabilities that are not calibrated.

        Args:
            train: Vectors to fit to, (N, E).
            labels: Their classes, (N,).
            test: Vectors to classify, (M, E).

        Returns:
            Scores, (M, L).
        """
        if self._method == "linear":
            scores = np.full((len(test), self._num_classes), np.log(LEAST_PROBABILITY))
            if len(classes := np.unique(labels)) == 1:  # the other classes are held out
                scores[:, classes] = 0
                return scores
            probe = fit_linear_probe(train, labels, strength=self.strength, seed=self._seed)
            found = probe.predict_log_proba(np.asarray(test, dtype=np.float32))
            scores[:, probe.classes_] = np.maximum(found, np.log(LEAST_PROBABILITY))
            return scores
        neighbors, similarities = nearest(test, train, NUM_NEIGHBORS)  # (M, k)
        # relative to the nearest neighbor, as in evaluation/knn.py
        weights = np.exp((similarities - similarities[:, :1]) / VOTE_TEMPERATURE)
        last = min(count_neighbors(labels), weights.shape[1]) - 1
        weights[similarities < similarities[:, last : last + 1] - TIE] = 0  # equal ones vote, too
        votes = np.full((len(test), self._num_classes), PRIOR_VOTES / self._num_classes)
        np.add.at(votes, (np.arange(len(test))[:, None], labels[neighbors]), weights)
        return np.log(votes / votes.sum(axis=1, keepdims=True))

    def held_out_scores(
        self, inputs: np.ndarray, labels: np.ndarray, folds: np.ndarray
    ) -> np.ndarray:
        """Return the scores of each labeled row, fitted on the rows of other folds.

        Args:
            inputs: Vectors of the labeled rows, (N, E).
            labels: Their classes, (N,).
            folds: Their folds, (N,).

        Returns:
            Scores, (N, L); 0 for the rows of no fold.
        """
        found = np.zeros((len(labels), self._num_classes))
        for fold in np.unique(folds[folds != NO_FOLD]):
            own = folds == fold
            found[own] = self.scores(inputs[~own], labels[~own], inputs[own])
        return found


def count_neighbors(labels: np.ndarray) -> int:
    """Return the number of neighbors that vote: that of the images of a class, at most 20.

    With more, images of other classes outvote the few of the right one, as the similarities of all
    of them are alike.

    Args:
        labels: Classes of the labeled rows, (N,).
    """
    counts = np.bincount(labels)
    return int(np.clip(np.median(counts[counts > 0]), 1, NUM_NEIGHBORS))


def assign_folds(
    directions: np.ndarray, labels: np.ndarray, names: Sequence[str], seed: int
) -> np.ndarray:
    """Divide labeled rows into folds: classes evenly, equal vectors and names into the same fold.

    Args:
        directions: Vectors of length 1, (N, E).
        labels: Class indices, (N,); each class from 0 to the largest occurs.
        names: Names of the rows, N; frames of a video have the same.
        seed: Random seed.

    Returns:
        Fold of each row, (N,); -1 for the rows of a class with one vector or one video, which are
        never held out.
    """
    groups = _groups_of_copies(directions, names)
    _, first = np.unique(groups, return_index=True)  # first row of each group
    classes = labels[first]
    counts = np.bincount(classes, minlength=int(labels.max()) + 1)
    fold_of_group = np.full(len(first), NO_FOLD)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(counts[classes] > 1))
    if len(order):
        order = order[np.argsort(classes[order], kind="stable")]  # class by class
        # few folds for small classes: a class that loses half of its images to a fold loses votes
        num_folds = int(np.clip(np.median(counts[counts > 1]), 2, NUM_FOLDS))
        fold_of_group[order] = np.arange(len(order)) % num_folds
    return fold_of_group[groups]


def _groups_of_copies(directions: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return a number for each row; rows of equal vectors or names have the same, (N,)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    everyone = np.arange(len(directions))
    neighbors, similarities = nearest(directions, directions, 1, exclude=everyone)
    is_copy = similarities[:, 0] >= IS_COPY
    first: dict[str, int] = {}
    of_name = [first.setdefault(name, row) for row, name in enumerate(names)]
    starts = np.concatenate([everyone[is_copy], everyone])
    ends = np.concatenate([neighbors[is_copy, 0], of_name])
    shape = (len(directions), len(directions))
    links = coo_array((np.ones(len(starts)), (starts, ends)), shape=shape)
    return connected_components(links, directed=False)[1]


def _fit_temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature of the smallest negative log-likelihood, from a grid."""
    rows = np.arange(len(labels))
    losses = [-np.log(softmax(scores / value)[rows, labels]).mean() for value in TEMPERATURES]
    return float(TEMPERATURES[int(np.argmin(losses))])


def softmax(scores: np.ndarray) -> np.ndarray:
    """Return the probabilities that scores stand for, all above 0.

    Args:
        scores: Logarithms of probabilities up to a constant, (M, L).

    Returns:
        Probabilities, (M, L).
    """
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.maximum(powers / powers.sum(axis=1, keepdims=True), LEAST_PROBABILITY)


def estimate_accuracy(
    classifier: Classifier, inputs: np.ndarray, labels: np.ndarray, folds: np.ndarray
) -> tuple[HeldOutEstimate, float]:
    """Return the accuracy on held-out rows, and the temperature that calibrates the scores.

    Args:
        classifier: Classifier, whose penalty is fixed afterwards.
        inputs: Vectors of the labeled rows, (N, E).
        labels: Their classes, (N,).
        folds: Fold of each row, (N,); at least one is not `NO_FOLD`.
    """
    from scipy.stats import binomtest

    is_held_out = folds != NO_FOLD
    truth, own_folds = labels[is_held_out], folds[is_held_out]
    # the penalty is chosen without the held-out rows, so that the accuracy is honest
    scores = classifier.held_out_scores(inputs, labels, folds)[is_held_out]
    hits = scores.argmax(axis=1) == truth
    # Wilson, Journal of the American Statistical Association 22, 1927
    interval = binomtest(int(hits.sum()), len(hits)).proportion_ci(LEVEL, "wilson")
    # the temperature must fit to the penalty of the final classifier
    classifier.fix_strength(inputs, labels)
    if classifier.strength is not None:
        scores = classifier.held_out_scores(inputs, labels, folds)[is_held_out]
    probabilities = np.empty(len(truth))
    for fold in np.unique(own_folds):
        own = own_folds == fold  # their temperature is not fitted on them either
        temperature = _fit_temperature(scores[~own], truth[~own])
        probabilities[own] = softmax(scores[own] / temperature).max(axis=1)
    estimate = HeldOutEstimate(
        float(hits.mean()),
        float(interval.low),
        float(interval.high),
        float(probabilities.mean()),
        len(hits),
        len(np.unique(own_folds)),
    )
    return estimate, _fit_temperature(scores, truth)


__all__ = [
    "NO_FOLD",
    "Classifier",
    "HeldOutEstimate",
    "Method",
    "assign_folds",
    "count_neighbors",
    "estimate_accuracy",
    "softmax",
]
