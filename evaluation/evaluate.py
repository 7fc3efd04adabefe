"""From vectors, or a checkpoint and images, to one table of figures."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..atomic_output import atomic_output
from ..data.image_source import NO_LABEL, ImageSource
from ..embedding.embedder import EmbeddedImages, Embedder
from .knn import weighted_knn_hits
from .label_free import feature_standard_deviation, rankme
from .linear_probe import linear_probe_hits, require_scikit_learn

logger = logging.getLogger(__name__)

# N training images · M test images · E embedding

# Of the mean distance to the center: an image embedded twice, in batches of different size, stays
# far below, and two images of one thing far above.
SAME_IMAGE = 1e-3
MAX_RANKME_IMAGES = 25_600  # far above any E, and a singular value decomposition of seconds
TITLES = {
    "linear_probe": "linear probe",
    "accuracy": "classifier",  # of one that is evaluated while it trains
    "view_retrieval": "other view found first",
    "feature_std": "feature standard deviation",
    "rankme": "RankMe",
    "uniformity": "uniformity",
    "neighbor_overlap": "neighbors kept",
    "num_train": "training images",
    "num_test": "test images",
}
SHARES = ("linear_probe", "accuracy", "view_retrieval", "neighbor_overlap")  # and k-NN's


def evaluate_checkpoint(
    checkpoint: str | PathLike[str],
    train: ImageSource,
    test: ImageSource | None = None,
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
    """Embed images with a checkpoint and measure the vectors.

    Args:
        checkpoint: Checkpoint folder, Hub id or USER/NAME@REVISION.
        train: images that classes are learnt from.
        test: images that accuracies are measured on; without them, or without labels, there are
            the label-free figures only.
        ks: as for `evaluate_embeddings`.
        network: "teacher" or "student", as for `Embedder.from_pretrained`.
        pooling: another pooling than the checkpoint's own, or None.
        batch_size: images.
        num_workers: processes that decode images; 0 is this one.
        device: for example "cpu" or "cuda"; None takes the best there is.
        dtype: Data type of the weights: "float32", "bfloat16" or "float16".
        limit: images of each of train and test at most, as `ImageSource.sample`; None takes all.
        progress: show a progress bar.

    Returns:
        as `evaluate_embeddings`.

    Raises:
        ImportError: without scikit-learn, where there are labels.
        FileNotFoundError: if there is no such checkpoint.
        ValueError: as `evaluate_embeddings` and `Embedder.from_pretrained`.
    """
    embedder = Embedder.from_pretrained(
        checkpoint,
        network=network,
        pooling=pooling,
        batch_size=batch_size,
        num_workers=num_workers,
        device=device,
        dtype=dtype,
    )
    if limit is not None:
        train = train.sample(limit)
        test = None if test is None else test.sample(limit)
    if test is not None:
        check_labels(train, test)
    embedded_train = _embed(embedder, train, progress)
    embedded_test = None if test is None else _embed(embedder, test, progress)
    return evaluate_embeddings(embedded_train, embedded_test, ks=ks)


def evaluate_embeddings(
    train: EmbeddedImages, test: EmbeddedImages | None = None, *, ks: Sequence[int] = (10, 20)
) -> dict[str, float]:
    """Measure vectors: accuracies of k-NN and a linear probe, and label-free figures.

    Labels of train and test are matched by name where both have names, else by index. Single images
    without a label do not count in accuracies; where a side has no labels at all, there are none.

    Args:
        train: N vectors that classes are learnt from; the label-free figures are of these.
        test: M vectors that accuracies are measured on.
        ks: numbers of neighbors for k-NN. Those above N are left out, with a warning.

    Returns:
        "knn_<k>" and "linear_probe" (fractions of the test images), "feature_std" (0 to 1),
        "rankme" (dimensions), "num_train" and "num_test" (images).

    Raises:
        ImportError: without scikit-learn, where there are labels.
        ValueError: if vectors of a side are missing or not finite, of different width, or test has
            a class that train lacks.
    """
    for side, embedded in (("train", train), ("test", test)):
        if embedded is not None:
            _check_vectors(side, embedded.vectors)
    metrics: dict[str, float] = {}
    if test is not None:
        hits = accuracy_hits(train, test, ks)
        metrics |= {name: float(hit.mean()) for name, hit in hits.items()}
        if hits and (num_shared := count_shared(train.vectors, test.vectors)):
            logger.warning(
                "%d of %d test images are among the training images, too, where k-NN finds them "
                "again: the accuracies are too high. Keep the two apart.",
                num_shared,
                len(test.vectors),
            )
    metrics |= label_free_measures(train.vectors)
    metrics["num_train"] = len(train.vectors)
    metrics["num_test"] = 0 if test is None else len(test.vectors)
    return metrics


def label_free_measures(vectors: Tensor | np.ndarray) -> dict[str, float]:
    """Return "feature_std" and "rankme" of vectors (N, E), as `label_free` defines them.

    RankMe takes 25,600 of them at most, spread evenly.
    """
    return {
        "feature_std": feature_standard_deviation(vectors),
        "rankme": rankme(vectors[spread(len(vectors), MAX_RANKME_IMAGES)]),
    }


def format_table(metrics: Mapping[str, float]) -> str:
    """Return an aligned plain-text table of `evaluate_embeddings`' figures, accuracies in percent.

    Where accuracies are missing, a last line says why.
    """
    rows = [(metric_title(name), format_metric(name, value)) for name, value in metrics.items()]
    left, right = (max(len(row[side]) for row in rows) for side in (0, 1))
    lines = [f"{title:<{left}}  {value:>{right}}" for title, value in rows]
    if "linear_probe" not in metrics:
        lines.append("No accuracies: they need labels for both the training and the test images.")
    return "\n".join(lines)


def save_metrics(metrics: Mapping[str, Any], path: str | PathLike[str]) -> None:
    """Write figures as JSON, whole or not at all; the folder is made where it is missing."""
    with atomic_output(path) as unfinished:
        unfinished.write_text(json.dumps(dict(metrics), indent=2) + "\n", encoding="utf-8")


def metric_title(name: str) -> str:
    """Return what a figure is called in tables, by its name in `evaluate_embeddings`."""
    return f"k-NN, k = {name[4:]}" if name.startswith("knn_") else TITLES.get(name, name)


def is_share(name: str) -> bool:
    """Whether a figure is a share of the images, shown in percent."""
    return name.startswith("knn_") or name in SHARES


def format_metric(name: str, value: float) -> str:
    """Return a figure as tables show it: accuracies in percent."""
    if is_share(name):
        return f"{100 * value:.1f} %"
    if name.startswith("num_"):
        return f"{value:,.0f}"
    return f"{value:.1f}" if name == "rankme" else f"{value:.3f}"


def accuracy_hits(
    train: EmbeddedImages, test: EmbeddedImages, ks: Sequence[int] = (10, 20)
) -> dict[str, np.ndarray]:
    """Return which of the labeled test images each classifier gets right, bool, by figure.

    Args:
        train: N vectors that classes are learnt from.
        test: M vectors that are classified.
        ks: as for `evaluate_embeddings`.

    Returns:
        "knn_<k>" and "linear_probe"; empty where a side has no labels.

    Raises:
        ImportError: without scikit-learn.
        ValueError: if test has a class that train lacks.
    """
    train_vectors, train_labels = _labeled(train)
    test_vectors, test_labels = _labeled(test)
    if len(train_labels) == 0 or len(test_labels) == 0:
        return {}
    test_labels = matched_labels(test_labels, test.label_names, train_labels, train.label_names)
    arrays = (train_vectors, train_labels, test_vectors, test_labels)
    usable = [k for k in ks if k <= len(train_labels)]
    if len(usable) < len(ks):
        logger.warning(
            "k-NN with k = %s is left out: there are %d labeled training images.",
            ", ".join(str(k) for k in ks if k not in usable),
            len(train_labels),
        )
    by_k = weighted_knn_hits(*arrays, ks=usable) if usable else {}
    hits = {f"knn_{k}": hit for k, hit in by_k.items()}
    return {**hits, "linear_probe": linear_probe_hits(*arrays)}


def count_shared(train: np.ndarray, test: np.ndarray, chunk_size: int = 256) -> int:
    """Return how many images of test are in train, too: of vectors that are equal but for rounding.

    Args:
        train: (N, E).
        test: (M, E).
        chunk_size: test images compared at a time; chunk_size x N distances are held at once.
    """
    center = train.mean(axis=0)
    others, own = (torch.from_numpy(np.asarray(v - center, np.float32)) for v in (train, test))
    limit = SAME_IMAGE * others.norm(dim=1).mean()
    count = 0
    for chunk in own.split(chunk_size):
        nearest = others[torch.cdist(chunk, others).argmin(dim=1)]
        # anew, as fast distances of many are rounded
        count += int(((chunk - nearest).norm(dim=1) < limit).sum())
    return count


def _labeled(embedded: EmbeddedImages) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors and labels of the images that have one."""
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
    """Return the test labels (M,) as indices of train's classes, by name where both have names.

    Raises:
        ValueError: if test has a class that train lacks.
    """
    present = set(np.unique(train_labels).tolist())
    classes = np.unique(test_labels).tolist()
    matched = {label: label for label in classes}
    if train_names is not None and test_names is not None:
        # one folder may lack a class that the other has: then equal names have unequal indices
        index_of = {name: index for index, name in enumerate(train_names)}
        matched = {label: index_of.get(test_names[label], NO_LABEL) for label in classes}
    missing = [label for label in classes if matched[label] not in present]
    if missing:
        names = [str(label) if test_names is None else test_names[label] for label in missing]
        raise ValueError(
            f"test has images of classes that train has none of: {', '.join(names)}; add training "
            "images of them, or leave them out of test."
        )
    return np.array([matched[label] for label in test_labels.tolist()], dtype=np.int64)


def check_labels(train: ImageSource, test: ImageSource) -> None:
    """Find out in a second what would else be said after the last image is embedded.

    Raises:
        ImportError: without scikit-learn, where there are labels.
        ValueError: if test has a class that train lacks.
    """
    train_labels, test_labels = train.labels(), test.labels()
    if train_labels is not None and test_labels is not None:
        require_scikit_learn()
        test_labels = test_labels[test_labels != NO_LABEL]
        matched_labels(test_labels, test.label_names, train_labels, train.label_names)


def _embed(embedder: Embedder, source: ImageSource, progress: bool) -> EmbeddedImages:
    embedded = embedder.embed(source, progress=progress)
    if embedded.skipped:
        first = embedded.skipped[0]
        logger.warning(
            "%d of %d images could not be read and are left out; the first is %s: %s.",
            len(embedded.skipped),
            len(source),
            first.id,
            first.reason,
        )
    return embedded


def _check_vectors(side: str, vectors: np.ndarray) -> None:
    if len(vectors) == 0:
        raise ValueError(f"{side} has no images that could be read; nothing can be measured.")
    bad = int((~np.isfinite(vectors).all(axis=1)).sum())
    if bad:
        raise ValueError(
            f"{bad} of the {len(vectors)} {side} vectors are not finite (NaN or infinite); the "
            "checkpoint is broken, or its precision too low: try dtype float32."
        )


def spread(count: int, limit: int) -> np.ndarray:
    """Return the indices of at most `limit` of `count` items, evenly spread, ascending."""
    # sources are often sorted by class: the first ones would be of a single one
    return np.linspace(0, count - 1, min(count, limit)).round().astype(np.int64)
