"""Classify the images of a collection from the labels of a few: k-NN or a linear probe."""

# N labeled rows · M rows · E embedding · L classes

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..data.files.tables import check_repeated_label, path_column, read_label_column, read_list
from ..data.labels import labels_of_values
from ..embedding.vectors.storage import is_remote
from ..errors import shorten
from ..evaluation.linear_probe import fit_linear_probe
from .collection import Collection, check_rows
from .neighbors import nearest
from .outliers import IS_COPY

Method = Literal["knn", "linear"]
NUM_NEIGHBORS = 20  # DINO, arXiv 2104.14294, App. F.1
VOTE_TEMPERATURE = 0.07  # of a neighbor's vote, as in evaluation/knn.py
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


@dataclass(frozen=True)
class Prediction:
    """Class of an image.

    Args:
        path: Name of the image: its path or id.
        prediction: Class.
        probability: Probability of the class.
        row: Row of the vectors.
    """

    path: str
    prediction: str
    probability: float
    row: int


@dataclass(frozen=True)
class LabelResult:
    """Result of `label`.

    Args:
        predictions: Class and probability of each row; labeled rows keep their label, with
            probability 1.
        uncertain: Unlabeled rows of the lowest probability, the lowest first.
        num_labeled: Number of labeled images of each class.
        estimate: Accuracy on held-out images; None if it was not estimated.
        temperature: Temperature that calibrates the probabilities; None if they are not calibrated.
        method: "knn" or "linear".
        notes: Remarks on the labels.
    """

    predictions: list[Prediction]
    uncertain: list[Prediction]
    num_labeled: dict[str, int]
    estimate: HeldOutEstimate | None
    temperature: float | None
    method: str
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return estimate, classes and uncertain rows as values that JSON can represent."""
        predicted = Counter(row.prediction for row in self.predictions)
        return {
            "method": self.method,
            "estimate": None if self.estimate is None else vars(self.estimate),
            "temperature": self.temperature,
            "classes": [
                {"label": name, "labeled": count, "predicted": predicted[name]}
                for name, count in self.num_labeled.items()
            ],
            "uncertain": [
                {"path": row.path, "prediction": row.prediction, "probability": row.probability}
                for row in self.uncertain
            ],
            "notes": self.notes,
        }


def label(
    vectors: str | os.PathLike[str] | Collection,
    labels: str | os.PathLike[str] | Mapping[str, str],
    *,
    method: Method = "knn",
    uncertain: int = 20,
    seed: int = 0,
    image_column: str | None = None,
    label_column: str | None = None,
    write: bool = True,
) -> LabelResult:
    """Classify all images from a few labels; write the columns "prediction" and "probability".

    "knn" is the weighted k-NN of DINO with at most 20 neighbors, "linear" the linear probe of
    `selfvit evaluate`. The accuracy is that of a stratified cross-validation with two to five
    folds, in which images with equal vectors are in the same fold. Probabilities are calibrated by
    a temperature (Guo et al., arXiv 1706.04599, Sec. 4.2) on the held-out folds. A class with one
    labeled image is never held out; if all classes have one, there is no estimate, and the
    probabilities are not calibrated.

    Args:
        vectors: Folder of vectors, or the collection that was opened.
        labels: List of paths with labels (.csv, .tsv, .jsonl), or labels by name of the image.
        method: "knn" or "linear".
        uncertain: Number of uncertain images to return.
        seed: Random seed of the folds, and of the choice of the probe's penalty.
        image_column: Column of paths in the list; None to find it.
        label_column: Column of labels in the list; None to find it.
        write: Whether to write the columns.

    Raises:
        FileNotFoundError: If there are no vectors or no labels.
        ImportError: If scikit-learn is not installed.
        ValueError: If the labels are of fewer than two classes, contradict each other or name no
            image of the vectors, or the columns are to be written to object storage.
    """
    if method not in ("knn", "linear"):
        raise ValueError(f"method ({method!r}) must be knn or linear.")
    _require_scikit_learn()
    collection = vectors if isinstance(vectors, Collection) else Collection(vectors)
    check_rows(collection, 2, "a classification")
    if write and is_remote(collection.folder):
        raise ValueError(
            f"the columns are written beside the vectors, but {str(collection.folder)!r} is in "
            "object storage; copy the folder to this machine."
        )
    given, notes = _match(collection, *_read_labels(labels, image_column, label_column))
    names = _classes_of(given)
    rows = np.array(sorted(given))
    truth = np.array([names.index(given[row]) for row in rows])
    inputs = collection.directions if method == "knn" else collection.vectors
    folds = assign_folds(collection.directions[rows], truth, seed)
    notes += _notes_on_folds(names, truth, folds)
    classifier = _Classifier(method, len(names), seed)
    temperature = estimate = None
    if (folds != NO_FOLD).any():
        estimate, temperature = _evaluate(classifier, inputs[rows], truth, folds)
    scores = classifier.scores(inputs[rows], truth, inputs)  # (M, L)
    probabilities = _softmax(scores / (temperature or 1.0))
    predictions = _predictions(collection, given, names, probabilities)
    others = [row for row in predictions if row.row not in given]
    if write:
        columns = {
            "prediction": [row.prediction for row in predictions],
            "probability": np.array([row.probability for row in predictions], dtype=np.float32),
        }
        collection.write_columns("prediction", columns)
    return LabelResult(
        predictions,
        sorted(others, key=lambda row: (row.probability, row.row))[:uncertain],
        dict(sorted(Counter(given.values()).items())),
        estimate,
        temperature,
        method,
        notes,
    )


def _classes_of(given: dict[int, str]) -> list[str]:
    names = sorted(set(given.values()))
    if len(names) < 2:
        raise ValueError(
            f"a classification needs labels of at least two classes, but all {len(given)} are "
            f"{names[0]!r}; label an image of another class."
        )
    return names


def _require_scikit_learn() -> None:
    try:
        import sklearn.model_selection  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'a classification needs scikit-learn; install it with pip install "selfvit[explore]".'
        ) from error


def _read_labels(
    labels: str | os.PathLike[str] | Mapping[str, str],
    image_column: str | None,
    label_column: str | None,
) -> tuple[list[tuple[str, str]], str]:
    """Return pairs of name and label, without images that have no label, and their origin."""
    if isinstance(labels, Mapping):
        return [(name, str(value)) for name, value in labels.items()], "labels"
    path = Path(labels)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}; choose a list with --labels.")
    if path.suffix.lower() not in (".csv", ".tsv", ".jsonl"):
        raise ValueError(
            f"{str(path)!r} must be a table with a column of paths and one of labels (.csv, .tsv "
            "or .jsonl); choose such a file."
        )
    table = read_list(path)
    names = path_column(table, image_column, str(path))
    column, values = read_label_column(table, label_column, str(path))
    if column is None:
        raise ValueError(
            f"{str(path)!r} has no column of labels; its columns are "
            f"{', '.join(table.column_names)}; choose it with --label-column."
        )
    found = labels_of_values(values, column)
    if found.values is None or found.names is None:
        raise ValueError(f"{str(path)!r} has no label in column {column!r}; label some images.")
    pairs = zip(names, found.values.tolist(), strict=True)
    return [(name, found.names[value]) for name, value in pairs if value >= 0], str(path)


def _match(
    collection: Collection, pairs: list[tuple[str, str]], where: str
) -> tuple[dict[int, str], list[str]]:
    """Return the label of each labeled row, and remarks.

    Raises:
        ValueError: If an image has two labels, or no image is one of the collection.
    """
    given: dict[int, str] = {}
    unknown: list[str] = []
    for name, value in pairs:
        try:
            row = collection.row_of(name)
        except ValueError:
            unknown.append(name)
            continue
        check_repeated_label(name, given.get(row, value), value, where, "label")
        given |= dict.fromkeys(collection.rows_of(name), value)
    if not given:
        example = f", for example {unknown[0]!r}" if unknown else ""
        raise ValueError(
            f"no image that {where} labels is in {str(collection.folder)!r}{example}; its names "
            f"are like {collection.ids[0]!r}."
        )
    if not unknown:
        return given, []
    return given, [
        f"{len(unknown)} labels of {where} are left out, as VECTORS has no such image, for example "
        f"{unknown[0]!r}"
    ]


class _Classifier:
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
        """Choose the penalty of the probe on these vectors, for all later fits."""
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
            probe = fit_linear_probe(train, labels, strength=self.strength, seed=self._seed)
            scores = np.full((len(test), self._num_classes), np.log(LEAST_PROBABILITY))
            found = probe.predict_log_proba(np.asarray(test, dtype=np.float32))
            scores[:, probe.classes_] = np.maximum(found, np.log(LEAST_PROBABILITY))
            return scores
        neighbors, similarities = nearest(test, train, NUM_NEIGHBORS)  # (M, k)
        # relative to the nearest neighbor, as in evaluation/knn.py
        weights = np.exp((similarities - similarities[:, :1]) / VOTE_TEMPERATURE)
        votes = np.full((len(test), self._num_classes), PRIOR_VOTES / self._num_classes)
        np.add.at(votes, (np.arange(len(test))[:, None], labels[neighbors]), weights)
        return np.log(votes / votes.sum(axis=1, keepdims=True))

    def held_out_scores(
        self, inputs: np.ndarray, labels: np.ndarray, folds: np.ndarray
    ) -> np.ndarray:
        """Return the scores of each labeled row, fitted on the rows of other folds."""
        found = np.zeros((len(labels), self._num_classes))
        for fold in np.unique(folds[folds != NO_FOLD]):
            own = folds == fold
            found[own] = self.scores(inputs[~own], labels[~own], inputs[own])
        return found  # (N, L)


def assign_folds(directions: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Divide labeled rows into folds: classes evenly, and equal vectors into the same fold.

    Args:
        directions: Vectors of length 1, (N, E).
        labels: Class indices, (N,); each class from 0 to the largest occurs.
        seed: Random seed.

    Returns:
        Fold of each row, (N,); -1 for the rows of a class with one vector, which are never held
        out.
    """
    groups = _groups_of_copies(directions)
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


def _groups_of_copies(directions: np.ndarray) -> np.ndarray:
    """Return a number for each row; rows of equal vectors have the same, (N,)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    everyone = np.arange(len(directions))
    neighbors, similarities = nearest(directions, directions, 1, exclude=everyone)
    is_copy = similarities[:, 0] >= IS_COPY
    links = (np.ones(is_copy.sum()), (everyone[is_copy], neighbors[is_copy, 0]))
    shape = (len(directions), len(directions))
    return connected_components(coo_array(links, shape=shape), directed=False)[1]


def _fit_temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature of the smallest negative log-likelihood, from a grid."""
    rows = np.arange(len(labels))
    losses = [-np.log(_softmax(scores / value)[rows, labels]).mean() for value in TEMPERATURES]
    return float(TEMPERATURES[int(np.argmin(losses))])


def _softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.maximum(powers / powers.sum(axis=1, keepdims=True), LEAST_PROBABILITY)


def _evaluate(
    classifier: _Classifier, inputs: np.ndarray, labels: np.ndarray, folds: np.ndarray
) -> tuple[HeldOutEstimate, float]:
    """Return the accuracy on held-out rows, and the temperature that calibrates the scores."""
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
        probabilities[own] = _softmax(scores[own] / temperature).max(axis=1)
    estimate = HeldOutEstimate(
        float(hits.mean()),
        float(interval.low),
        float(interval.high),
        float(probabilities.mean()),
        len(hits),
        len(np.unique(own_folds)),
    )
    return estimate, _fit_temperature(scores, truth)


def _notes_on_folds(names: list[str], labels: np.ndarray, folds: np.ndarray) -> list[str]:
    """Return a remark on classes that no fold can hold out."""
    single = [names[number] for number in np.unique(labels[folds == NO_FOLD])]
    if len(single) == len(names):
        return [
            "the accuracy is not estimated, and the probabilities are not calibrated; label at "
            "least two different images of a class"
        ]
    if not single:
        return []
    verb = "has one labeled image and is" if len(single) == 1 else "have one labeled image and are"
    return [f"the accuracy is not estimated for {shorten(single)}, which {verb} never held out"]


def _predictions(
    collection: Collection, given: dict[int, str], names: list[str], probabilities: np.ndarray
) -> list[Prediction]:
    predictions = []
    for row, (name, of_classes) in enumerate(zip(collection.ids, probabilities, strict=True)):
        if row in given:
            predictions.append(Prediction(name, given[row], 1.0, row))
            continue
        found = int(of_classes.argmax())
        predictions.append(Prediction(name, names[found], float(of_classes[found]), row))
    return predictions


__all__ = ["HeldOutEstimate", "LabelResult", "Prediction", "assign_folds", "label"]
