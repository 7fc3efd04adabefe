"""Classify the images of a collection from the labels of a few: k-NN or a linear probe."""

# N labeled rows · M rows · E embedding · L classes

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..data.files.tables import check_repeated_label, path_column, read_label_column, read_list
from ..data.labels import labels_of_values
from ..embedding.vectors.columns import check_takes_columns
from ..errors import shorten
from .classifier import (
    NO_FOLD,
    Classifier,
    HeldOutEstimate,
    Method,
    assign_folds,
    estimate_accuracy,
    softmax,
)
from .collection import Collection, check_rows, names_of


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

    "knn" is the weighted k-NN of DINO, with as many neighbors as a class has labels (median, at
    most 20), "linear" the linear probe of `selfvit evaluate`. The accuracy is that of a stratified
    cross-validation with two to five folds, in which images with equal vectors, and the frames of
    a video, are in the same fold. Probabilities are calibrated by a temperature (Guo et al., arXiv
    1706.04599, Sec. 4.2) on the held-out folds. A class with one labeled image or video is never
    held out; if all classes have one, there is no estimate, and the probabilities are not
    calibrated.

    Args:
        vectors: Folder of vectors, or the collection that was opened.
        labels: List of paths with labels (.csv, .tsv, .jsonl), or labels by name of the image;
            None, NaN, -1 and empty texts are no labels.
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
    if write:
        check_takes_columns(collection.folder)
    given, notes = _match(collection, *_read_labels(labels, image_column, label_column))
    names = _classes_of(given)
    rows = np.array(sorted(given))
    truth = np.array([names.index(given[row]) for row in rows])
    inputs = collection.directions if method == "knn" else collection.vectors
    folds = assign_folds(collection.directions[rows], truth, names_of(collection, rows), seed)
    notes += _notes_on_folds(names, truth, folds)
    classifier = Classifier(method, len(names), seed)
    temperature = estimate = None
    if (folds != NO_FOLD).any():
        estimate, temperature = estimate_accuracy(classifier, inputs[rows], truth, folds)
    scores = classifier.scores(inputs[rows], truth, inputs)  # (M, L)
    probabilities = softmax(scores / (temperature or 1.0))
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
        names, where, column = list(labels), "labels", "labels"
        given: list[Any] = list(labels.values())
        values = [value.item() if isinstance(value, np.generic) else value for value in given]
    else:
        names, values, column = _read_table(Path(labels), image_column, label_column)
        where = str(labels)
    found = labels_of_values(values, column)
    if found.values is None or found.names is None:
        raise ValueError(f"{where!r} has no label in column {column!r}; label some images.")
    pairs = zip(names, found.values.tolist(), strict=True)
    return [(name, found.names[value]) for name, value in pairs if value >= 0], where


def _read_table(
    path: Path, image_column: str | None, label_column: str | None
) -> tuple[list[str], list[Any], str]:
    """Return names, values of the column of labels, and the name of this column."""
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
    return names, list(values), column


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
        f"{len(unknown)} labels of {where} are left out, as {str(collection.folder)!r} has no such "
        f"image, for example {unknown[0]!r}"
    ]


def _notes_on_folds(names: list[str], labels: np.ndarray, folds: np.ndarray) -> list[str]:
    """Return a remark on classes that no fold can hold out."""
    single = [names[number] for number in np.unique(labels[folds == NO_FOLD])]
    if len(single) == len(names):
        return [
            "the accuracy is not estimated, and the probabilities are not calibrated; label at "
            "least two different images or videos of a class"
        ]
    if not single:
        return []
    has, are = ("has", "is") if len(single) == 1 else ("have", "are")
    return [
        f"the accuracy is not estimated for {shorten(single)}, which {has} one labeled image or "
        f"video and {are} never held out"
    ]


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


__all__ = ["LabelResult", "Prediction", "label"]
