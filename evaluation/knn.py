"""Weighted k-nearest-neighbor classification of vectors (DINO, arXiv 2104.14294, App. F.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# N training images · M test images · C chunk of test images · E embedding · L labels


def weighted_knn(
    train_vectors: Tensor | np.ndarray,
    train_labels: Tensor | np.ndarray,
    test_vectors: Tensor | np.ndarray,
    *,
    k: int,
    temperature: float = 0.07,  # DINO, App. F.1, as in Wu et al.
    num_classes: int | None = None,
    chunk_size: int = 256,
) -> Tensor:
    """Classify each test vector by a vote of the k training vectors of highest cosine similarity.

    A neighbor votes with the weight exp(similarity / temperature) (Wu et al., arXiv 1805.01978,
    Sec. 3.4; DINO, arXiv 2104.14294, App. F.1). Vectors need not be normalized.

    Args:
        train_vectors: (N, E).
        train_labels: (N,) class indices, from 0.
        test_vectors: (M, E).
        k: Number of neighbors that vote, from 1 to N.
        temperature: Temperature of the votes; unitless, above 0. A lower value gives the nearest
            neighbors more weight.
        num_classes: Number L of classes; the largest training label + 1 by default.
        chunk_size: Number of test vectors compared at a time; chunk_size x N similarities are in
            memory at once.

    Returns:
        (M,) predicted class indices, int64.

    Raises:
        ValueError: If k is below 1 or above N, the temperature is not above 0, or shapes differ.
    """
    return _predictions_by_k(
        train_vectors, train_labels, test_vectors, (k,), temperature, num_classes, chunk_size
    )[k]


def weighted_knn_accuracy(
    train_vectors: Tensor | np.ndarray,
    train_labels: Tensor | np.ndarray,
    test_vectors: Tensor | np.ndarray,
    test_labels: Tensor | np.ndarray,
    *,
    ks: Sequence[int] = (10, 20),  # DINO, App. F.1: 20 is the best of 10, 20, 100 and 200
    temperature: float = 0.07,
    chunk_size: int = 256,
) -> dict[int, float]:
    """Return the accuracy of `weighted_knn` for several k; similarities are computed once.

    Args:
        train_vectors: (N, E).
        train_labels: (N,) class indices, from 0.
        test_vectors: (M, E).
        test_labels: (M,) class indices.
        ks: Numbers of neighbors, each from 1 to N.
        temperature: Temperature of the votes, as in `weighted_knn`.
        chunk_size: Number of test vectors compared at a time, as in `weighted_knn`.

    Returns:
        Fraction of test images classified correctly, in [0, 1], for each k.

    Raises:
        ValueError: As in `weighted_knn`, or if the numbers of test labels and vectors differ.
    """
    hits = weighted_knn_hits(
        train_vectors,
        train_labels,
        test_vectors,
        test_labels,
        ks=ks,
        temperature=temperature,
        chunk_size=chunk_size,
    )
    return {k: float(hit.mean()) for k, hit in hits.items()}


def weighted_knn_hits(
    train_vectors: Tensor | np.ndarray,
    train_labels: Tensor | np.ndarray,
    test_vectors: Tensor | np.ndarray,
    test_labels: Tensor | np.ndarray,
    *,
    ks: Sequence[int] = (10, 20),
    temperature: float = 0.07,
    chunk_size: int = 256,
) -> dict[int, np.ndarray]:
    """Return which test images are classified correctly, (M,) bool for each k.

    Arguments and errors are those of `weighted_knn_accuracy`.
    """
    predictions = _predictions_by_k(
        train_vectors, train_labels, test_vectors, ks, temperature, None, chunk_size
    )
    truth = torch.as_tensor(test_labels)
    if len(truth) != len(test_vectors) or len(truth) == 0:
        raise ValueError(
            f"test_vectors ({len(test_vectors)}) and test_labels ({len(truth)}) must have the same "
            "length of at least 1; pass one label for each vector."
        )
    return {
        k: (predicted == truth.to(predicted.device)).cpu().numpy()
        for k, predicted in predictions.items()
    }


def _predictions_by_k(
    train_vectors: Tensor | np.ndarray,
    train_labels: Tensor | np.ndarray,
    test_vectors: Tensor | np.ndarray,
    ks: Sequence[int],
    temperature: float,
    num_classes: int | None,
    chunk_size: int,
) -> dict[int, Tensor]:
    train, test = _unit_rows(train_vectors), _unit_rows(test_vectors)
    labels = torch.as_tensor(train_labels, device=train.device).long()
    _check_arguments(train, labels, test, ks, temperature)
    num_classes = num_classes or int(labels.max()) + 1
    chunks: dict[int, list[Tensor]] = {k: [] for k in ks}
    for chunk in test.to(train.device).split(chunk_size):
        # sorted, so that the first k columns are the k nearest for every k
        similarities, neighbors = (chunk @ train.T).topk(max(ks))  # (C, k)
        # relative to the nearest neighbor: only scales all votes, and exp cannot overflow
        weights = ((similarities - similarities[:, :1]) / temperature).exp()
        for k in ks:
            votes = weights.new_zeros(len(chunk), num_classes)  # (C, L)
            votes.scatter_add_(1, labels[neighbors[:, :k]], weights[:, :k])
            chunks[k].append(votes.argmax(dim=1))
    return {k: torch.cat(predictions) for k, predictions in chunks.items()}


def _unit_rows(vectors: Tensor | np.ndarray) -> Tensor:
    if not isinstance(vectors, Tensor):
        vectors = torch.tensor(np.asarray(vectors, dtype=np.float32))
    return F.normalize(vectors.float(), dim=1)


def _check_arguments(
    train: Tensor, labels: Tensor, test: Tensor, ks: Sequence[int], temperature: float
) -> None:
    if len(labels) != len(train):
        raise ValueError(
            f"train_vectors ({len(train)}) and train_labels ({len(labels)}) must have the same "
            "length; pass one label for each vector."
        )
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            f"train_vectors (width {train.shape[1]}) and test_vectors (width {test.shape[1]}) must "
            "have the same width; embed both with the same model and pooling."
        )
    if not ks or min(ks) < 1 or max(ks) > len(train):
        raise ValueError(
            f"k ({', '.join(map(str, ks))}) must be from 1 to the number of training images "
            f"({len(train)}); choose a smaller k or add training images."
        )
    if temperature <= 0:
        raise ValueError(f"temperature ({temperature}) must be above 0; DINO uses 0.07.")
