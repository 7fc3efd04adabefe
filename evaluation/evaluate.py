"""Evaluate a checkpoint or embeddings: compute metrics and format them as a table."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..atomic_output import atomic_output
from ..data.image_source import NO_LABEL, ImageSource
from ..data.sources import Data, as_source
from ..embedding.embedder import EmbeddedImages, Embedder
from .knn import weighted_knn_hits
from .label_free import feature_standard_deviation, rankme
from .linear_probe import linear_probe_hits, require_scikit_learn

logger = logging.getLogger(__name__)

# N training images · M test images · E embedding

# Two vectors belong to the same image if their distance is below this fraction of the mean distance
# to the center. One image embedded in batches of different size stays far below it; two images of
# the same object are far above it.
SAME_IMAGE = 1e-3
MAX_RANKME_IMAGES = 25_600  # far more than E; the singular value decomposition takes seconds
TITLES = {
    "linear_probe": "linear probe",
    "accuracy": "classifier",  # the trained classification head
    "view_retrieval": "view retrieval",
    "feature_std": "feature std",
    "rankme": "RankMe",
    "uniformity": "uniformity",
    "neighbor_overlap": "neighbors kept",
    "num_train": "training images",
    "num_test": "test images",
    "num_skipped": "images left out",
}
FRACTIONS = ("linear_probe", "accuracy", "view_retrieval", "neighbor_overlap")  # besides k-NN


def evaluate_checkpoint(
    checkpoint: str | PathLike[str],
    train: ImageSource | Data,
    test: ImageSource | Data | None = None,
    *,
    ks: Sequence[int] = (10, 20),
    network: str = "teacher",
    pooling: str | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str | None = None,
    dtype: str = "float32",
    limit: int | None = None,
    progress: bool = False,
) -> dict[str, float]:
    """Embed images with a checkpoint and compute the metrics of the vectors.

    Args:
        checkpoint: Checkpoint folder, Hub id or USER/NAME@REVISION.
        train: Images that the classifiers are fitted on: a source, or paths as in `open_images`.
        test: Images that the accuracies are measured on. Without test images, or without labels,
            only the label-free metrics are computed.
        ks: Numbers of neighbors for k-NN, as in `evaluate_embeddings`.
        network: "teacher" or "student", as in `Embedder.from_pretrained`.
        pooling: Pooling to use instead of the checkpoint's own, or None.
        batch_size: Number of images per batch.
        num_workers: Number of worker processes that decode images; 0 decodes in this process.
        device: Device, for example "cpu" or "cuda"; None selects the best available one.
        dtype: Data type of the weights: "float32", "bfloat16" or "float16".
        limit: Maximum number of images of each source, as in `ImageSource.sample`; None uses all.
        progress: Whether to show a progress bar.

    Returns:
        Metrics by name, as in `evaluate_embeddings`; "num_skipped" also counts the files that the
        sources left out.

    Raises:
        ImportError: If there are labels and scikit-learn is not installed.
        FileNotFoundError: If there is no such checkpoint.
        ValueError: As in `evaluate_embeddings` and `Embedder.from_pretrained`.
    """
    is_same, train = test == train, as_source(train)
    test = train if is_same else None if test is None else as_source(test)
    if limit is not None:
        train = train.sample(limit)
        test = train if is_same else None if test is None else test.sample(limit)
    embedded = embed_splits(
        checkpoint,
        train,
        test,
        network=network,
        pooling=pooling,
        batch_size=batch_size,
        num_workers=num_workers,
        device=device,
        dtype=dtype,
        progress=progress,
    )
    return evaluate_splits(train, test, *embedded, ks=ks)


def embed_splits(
    checkpoint: str | PathLike[str],
    train: ImageSource,
    test: ImageSource | None = None,
    *,
    progress: bool = False,
    **options: Any,
) -> tuple[EmbeddedImages, EmbeddedImages | None]:
    """Check the labels, and embed the images that `evaluate_checkpoint` evaluates.

    Args:
        checkpoint: Checkpoint folder, Hub id or USER/NAME@REVISION.
        train: Images that the classifiers are fitted on.
        test: Images that the accuracies are measured on, or None; embedded once if it is `train`.
        progress: Whether to show a progress bar.
        options: Keyword arguments of `Embedder.from_pretrained`.

    Raises:
        ImportError: If there are labels and scikit-learn is not installed.
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If test has a class that train lacks, or as in `Embedder.from_pretrained`.
    """
    embedder = Embedder.from_pretrained(checkpoint, **options)
    if test is not None:
        check_labels(train, test)
    embedded_train = _embed(embedder, train, progress)
    if test is None:
        return embedded_train, None
    return embedded_train, embedded_train if test is train else _embed(embedder, test, progress)


def evaluate_splits(
    train: ImageSource,
    test: ImageSource | None,
    embedded_train: EmbeddedImages,
    embedded_test: EmbeddedImages | None = None,
    *,
    ks: Sequence[int] = (10, 20),
) -> dict[str, float]:
    """Compute the metrics of embedded sources, as `evaluate_checkpoint` does.

    Args:
        train: Images that the classifiers are fitted on.
        test: Images that the accuracies are measured on, or None.
        embedded_train: Vectors of `train`.
        embedded_test: Vectors of `test`, or None.
        ks: Numbers of neighbors for k-NN, as in `evaluate_embeddings`.

    Raises:
        ImportError: If there are labels and scikit-learn is not installed.
        ValueError: As in `evaluate_embeddings`.
    """
    metrics = evaluate_embeddings(embedded_train, embedded_test, ks=ks)
    for source in (train,) if test is None or test is train else (train, test):
        metrics["num_skipped"] += len(source.inventory.left_out)
    return metrics


def evaluate_embeddings(
    train: EmbeddedImages, test: EmbeddedImages | None = None, *, ks: Sequence[int] = (10, 20)
) -> dict[str, float]:
    """Compute the metrics of vectors: k-NN and linear-probe accuracy, and label-free metrics.

    Labels of train and test are matched by class name if both have names, otherwise by index.
    Images without a label do not count toward the accuracies. If train or test has no labels at
    all, there are no accuracies.

    Args:
        train: N vectors that the classifiers are fitted on. The label-free metrics are computed
            from these vectors.
        test: M vectors that the accuracies are measured on.
        ks: Numbers of neighbors for k-NN. Numbers above N are skipped with a warning.

    Returns:
        "knn_<k>" and "linear_probe" (fraction of the test images), "feature_std" (0 to 1),
        "rankme" (number of dimensions), "num_train", "num_test" and "num_skipped" (number of
        images; skipped are those that cannot be read).

    Raises:
        ImportError: If there are labels and scikit-learn is not installed.
        ValueError: If vectors are missing, not finite or of different widths, or if test has a
            class that train lacks.
    """
    for side, embedded in (("train", train), ("test", test)):
        if embedded is not None:
            _check_vectors(side, embedded)
    metrics: dict[str, float] = {}
    if test is not None:
        hits = accuracy_hits(train, test, ks)
        metrics |= {name: float(hit.mean()) for name, hit in hits.items()}
        if hits and (num_shared := count_shared(train.vectors, test.vectors)):
            logger.warning(
                "%d of %d test images are also training images, so k-NN finds them again and the "
                "accuracies are too high. Remove them from one of the two.",
                num_shared,
                len(test.vectors),
            )
    metrics |= label_free_measures(train.vectors)
    metrics["num_train"] = len(train.vectors)
    metrics["num_test"] = 0 if test is None else len(test.vectors)
    metrics["num_skipped"] = len(train.skipped)
    if test is not None and test is not train:
        metrics["num_skipped"] += len(test.skipped)
    return metrics


def label_free_measures(vectors: Tensor | np.ndarray) -> dict[str, float]:
    """Return the metrics "feature_std" and "rankme" of vectors.

    RankMe is computed from at most 25,600 evenly spaced vectors.

    Args:
        vectors: (N, E).
    """
    return {
        "feature_std": feature_standard_deviation(vectors),
        "rankme": rankme(vectors[spread(len(vectors), MAX_RANKME_IMAGES)]),
    }


def why_no_accuracies(train: EmbeddedImages, test: EmbeddedImages | None) -> str:
    """Return a sentence that names the images without labels; "" if there are accuracies.

    Args:
        train: Vectors that the classifiers are fitted on.
        test: Vectors that the accuracies are measured on, or None.
    """
    if test is None:
        return "No accuracies: they need labeled test images (--test)."
    sides = {"training": train, "test": test}
    unlabeled = [name for name, side in sides.items() if len(_labeled(side)[1]) == 0]
    names = " and ".join(unlabeled)
    return f"No accuracies: the {names} images have no labels." if unlabeled else ""


def format_table(
    metrics: Mapping[str, float],
    no_accuracies: str = "No accuracies: they need labels for both training and test images.",
) -> str:
    """Return an aligned plain-text table of metrics, with accuracies in percent.

    If there are no accuracies, the last line gives the reason.

    Args:
        metrics: Metrics by name, as returned by `evaluate_embeddings`.
        no_accuracies: Last line without accuracies, for example of `why_no_accuracies`.
    """
    rows = [(metric_title(name), format_metric(name, value)) for name, value in metrics.items()]
    left, right = (max(len(row[side]) for row in rows) for side in (0, 1))
    lines = [f"{title:<{left}}  {value:>{right}}" for title, value in rows]
    if no_accuracies and not any(map(is_accuracy, metrics)):
        lines.append(no_accuracies)
    return "\n".join(lines)


def save_metrics(metrics: Mapping[str, Any], path: str | PathLike[str]) -> None:
    """Write metrics as JSON atomically; missing parent folders are created."""
    with atomic_output(path) as unfinished:
        unfinished.write_text(json.dumps(dict(metrics), indent=2) + "\n", encoding="utf-8")


def metric_title(name: str) -> str:
    """Return the title of a metric in tables, from its name in `evaluate_embeddings`."""
    return f"k-NN, k = {name[4:]}" if name.startswith("knn_") else TITLES.get(name, name)


def is_accuracy(name: str) -> bool:
    """Return whether a metric is measured with labels."""
    return name.startswith("knn_") or name in ("linear_probe", "accuracy")


def is_fraction(name: str) -> bool:
    """Return whether a metric is a fraction of the images, which tables show in percent."""
    return name.startswith("knn_") or name in FRACTIONS


def format_metric(name: str, value: float) -> str:
    """Return a metric as text for tables: fractions of the images in percent."""
    if is_fraction(name):
        return f"{100 * value:.1f} %"
    if name.startswith("num_"):
        return f"{value:,.0f}"
    return f"{value:.1f}" if name == "rankme" else f"{value:.3f}"


def accuracy_hits(
    train: EmbeddedImages,
    test: EmbeddedImages,
    ks: Sequence[int] = (10, 20),
    with_linear_probe: bool = True,
    warn: Callable[[str], None] = logger.warning,
) -> dict[str, np.ndarray]:
    """Return which labeled test images each classifier classifies correctly.

    Args:
        train: N vectors that the classifiers are fitted on.
        test: M vectors to classify.
        ks: Numbers of neighbors for k-NN, as in `evaluate_embeddings`.
        with_linear_probe: Whether to fit the linear probe, which is slow for long vectors.
        warn: Function that gives a warning about a classifier that is skipped.

    Returns:
        Arrays of bool, one value per labeled test image, for "knn_<k>" and "linear_probe". Empty if
        train or test has no labels.

    Raises:
        ImportError: If scikit-learn is not installed.
        ValueError: If test has a class that train lacks.
    """
    train_vectors, train_labels = _labeled(train)
    test_vectors, test_labels = _labeled(test)
    if len(train_labels) == 0 or len(test_labels) == 0:
        return {}
    test_labels = matched_labels(test_labels, test.label_names, train_labels, train.label_names)
    arrays = (train_vectors, train_labels, test_vectors, test_labels)
    usable = [k for k in ks if k <= len(train_labels)]
    if len(usable) < len(ks):
        skipped = ", ".join(str(k) for k in ks if k not in usable)
        warn(
            f"k-NN with k = {skipped} is skipped: there are only {len(train_labels)} labeled "
            "training images."
        )
    by_k = weighted_knn_hits(*arrays, ks=usable) if usable else {}
    hits = {f"knn_{k}": hit for k, hit in by_k.items()}
    if with_linear_probe and (train_labels == train_labels[0]).all():
        warn("The linear probe is skipped: all training images have the same class.")
        with_linear_probe = False
    return {**hits, "linear_probe": linear_probe_hits(*arrays)} if with_linear_probe else hits


def count_shared(train: np.ndarray, test: np.ndarray, chunk_size: int = 256) -> int:
    """Return the number of test vectors that equal a training vector up to rounding.

    Args:
        train: (N, E).
        test: (M, E).
        chunk_size: Number of test vectors compared at a time; chunk_size x N distances are in
            memory at once.
    """
    center = train.mean(axis=0)
    known, new = (torch.from_numpy(np.asarray(v - center, np.float32)) for v in (train, test))
    limit = SAME_IMAGE * known.norm(dim=1).mean()
    count = 0
    for chunk in new.split(chunk_size):
        nearest = known[torch.cdist(chunk, known).argmin(dim=1)]
        # compute the distance again: the fast pairwise distances of cdist are rounded
        count += int(((chunk - nearest).norm(dim=1) < limit).sum())
    return count


def _labeled(embedded: EmbeddedImages) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors and labels of the images that have a label."""
    if embedded.labels is None:
        return embedded.vectors[:0], np.zeros(0, dtype=np.int64)
    is_labeled = embedded.labels != NO_LABEL
    return embedded.vectors[is_labeled], embedded.labels[is_labeled]


def matched_labels(
    test_labels: np.ndarray,
    test_names: Sequence[str] | None,
    train_labels: np.ndarray,
    train_names: Sequence[str] | None,
) -> np.ndarray:
    """Return the test labels as class indices of train.

    Classes are matched by name if both have names, otherwise by index.

    Args:
        test_labels: (M,) class indices of test.
        test_names: Class names of test, or None.
        train_labels: (N,) class indices of train.
        train_names: Class names of train, or None.

    Returns:
        (M,), int64.

    Raises:
        ValueError: If test has a class that train lacks.
    """
    present = set(np.unique(train_labels).tolist())
    classes = np.unique(test_labels).tolist()
    matched = {label: label for label in classes}
    if train_names is not None and test_names is not None:
        # if one folder lacks a class of the other, equal names have different indices
        index_of = {name: index for index, name in enumerate(train_names)}
        matched = {label: index_of.get(test_names[label], NO_LABEL) for label in classes}
    missing = [label for label in classes if matched[label] not in present]
    if missing:
        names = [str(label) if test_names is None else test_names[label] for label in missing]
        raise ValueError(
            f"train must have images of every class of test, but lacks {', '.join(names)}; add "
            "training images of these classes, or remove them from test."
        )
    return np.array([matched[label] for label in test_labels.tolist()], dtype=np.int64)


def check_labels(train: ImageSource, test: ImageSource) -> None:
    """Check labels and scikit-learn before any image is embedded.

    Args:
        train: Images that the classifiers are fitted on.
        test: Images that the accuracies are measured on.

    Raises:
        ImportError: If there are labels and scikit-learn is not installed.
        ValueError: If test has a class that train lacks.
    """
    train_labels, test_labels = train.labels(), test.labels()
    if train_labels is not None and test_labels is not None:
        require_scikit_learn()
        train_labels, test_labels = (
            labels[labels != NO_LABEL] for labels in (train_labels, test_labels)
        )
        if len(train_labels) and len(test_labels):  # else there are no accuracies
            matched_labels(test_labels, test.label_names, train_labels, train.label_names)


def _embed(embedder: Embedder, source: ImageSource, progress: bool) -> EmbeddedImages:
    embedded = embedder.embed(source, progress=progress)
    if embedded.skipped:
        first = embedded.skipped[0]
        labels = source.labels()
        num_labeled = 0
        if labels is not None and embedded.labels is not None:
            num_labeled = int((labels != NO_LABEL).sum() - (embedded.labels != NO_LABEL).sum())
        logger.warning(
            "%d of %d images could not be read and are skipped, %d of them labeled; the first is "
            "%s: %s.",
            len(embedded.skipped),
            len(source),
            num_labeled,
            first.id,
            first.reason,
        )
    return embedded


def _check_vectors(side: str, embedded: EmbeddedImages) -> None:
    vectors = embedded.vectors
    if len(vectors) == 0:
        skipped = embedded.skipped
        last = f" (the last one is {skipped[-1].id}: {skipped[-1].reason})" if skipped else ""
        raise ValueError(f"{side} must have at least one readable image{last}; check the data.")
    bad = int((~np.isfinite(vectors).all(axis=1)).sum())
    if bad:
        raise ValueError(
            f"{side} vectors must be finite, but {bad} of {len(vectors)} are NaN or infinite; use "
            "dtype float32 if the precision is lower, otherwise another checkpoint."
        )


def spread(count: int, limit: int) -> np.ndarray:
    """Return at most `limit` evenly spaced indices of `count` items, in ascending order."""
    # sources are often sorted by class, so the first items could all belong to one class
    return np.linspace(0, count - 1, min(count, limit)).round().astype(np.int64)
