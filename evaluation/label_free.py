"""Metrics of embeddings that need no labels. They show a collapse earlier than an accuracy does.

Some metrics compare two embeddings of the same images: of other views, or by another encoder.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# N images · C chunk of images · E embedding · K neighbors

CHUNK = 1024  # number of images compared with all others at a time


def feature_standard_deviation(vectors: Tensor | np.ndarray) -> float:
    """Return the spread of the normalized vectors (SimSiam, arXiv 2011.10566, Sec. 4.1).

    This is the std of each dimension of the L2-normalized vectors, averaged over the dimensions and
    multiplied by sqrt(E).

    Args:
        vectors: (N, E).

    Returns:
        Unitless, in [0, 1]. Close to 1 if the directions are isotropic, 0 if all vectors are equal.

    Raises:
        ValueError: If there are no vectors.
    """
    directions = _directions(vectors)
    return float(directions.std(axis=0).mean() * np.sqrt(directions.shape[1]))


def rankme(vectors: Tensor | np.ndarray, epsilon: float = 1e-7) -> float:
    """Return the effective rank of the vectors (RankMe, arXiv 2210.02885, Eq. 1 and 2).

    This is the exponential of the entropy of the singular values divided by their sum.

    Args:
        vectors: (N, E), neither centered nor normalized. N should exceed E, as in the paper;
            otherwise N bounds the result.
        epsilon: Constant added to the normalized singular values; the paper's value for float32.

    Returns:
        Number of dimensions in use, from about 1 (collapse to a line) to min(N, E).

    Raises:
        ValueError: If there are no vectors.
    """
    singular_values = np.linalg.svd(_as_float64(vectors), compute_uv=False)  # (min(N, E),)
    total = max(singular_values.sum(), np.finfo(np.float64).tiny)  # all-zero vectors: no 0 / 0
    shares = singular_values / total + epsilon
    return float(np.exp(-(shares * np.log(shares)).sum()))


def rankme_influences(vectors: Tensor | np.ndarray) -> np.ndarray:
    """Return the influence of each image on RankMe, as in `MetricSample.influences`: (N,), mean 0.

    The influence is N times the derivative of RankMe with respect to the weight of the image. Let
    s_k be the singular values, p_k their fractions of the sum, H the entropy of p_k, and v_k the
    right singular vectors. The derivative of s_k with respect to the weight w_i of vector x_i is
    (x_i v_k)^2 / (2 s_k), and the derivative of RankMe = exp(H) is exp(H) times that of H.

    Args:
        vectors: (N, E), as in `rankme`.

    Raises:
        ValueError: If there are no vectors.
    """
    vectors = _as_float64(vectors)
    is_wide = vectors.shape[0] < vectors.shape[1]
    # the left (N) or the right (E) singular vectors, whichever are fewer
    squares, basis = np.linalg.eigh(vectors @ vectors.T if is_wide else vectors.T @ vectors)
    singular_values = np.sqrt(np.maximum(squares, 0))
    in_use = singular_values > 1e-7 * max(singular_values.max(), np.finfo(np.float64).tiny)
    singular_values, basis = singular_values[in_use], basis[:, in_use]
    projections = basis * singular_values if is_wide else vectors @ basis  # x_i v_k: (N, rank)
    shares = singular_values / singular_values.sum()
    entropy = -(shares * np.log(shares)).sum()
    moves = projections**2 / (2 * singular_values)
    slopes = -(np.log(shares) + entropy) / singular_values.sum()  # dH / ds_k
    return len(vectors) * np.exp(entropy) * (moves @ slopes)


def uniformity(vectors: Tensor | np.ndarray, temperature: float = 2.0) -> float:
    """Return how evenly the normalized vectors fill the sphere (Wang and Isola, arXiv 2005.10242).

    This is the logarithm of the mean of exp(-t |x - y|^2) over pairs of images (Eq. 6 and Fig. 4;
    the paper uses t = 2). Random vectors are the most uniform, so read this metric together with
    one that randomness lowers.

    Args:
        vectors: (N, E), with N of at least 2.
        temperature: Factor t of the squared distance, unitless.

    Returns:
        0 if all vectors are equal. Lower is more uniform; isotropic vectors give about -2 t.

    Raises:
        ValueError: If there are fewer than two vectors.
    """
    return float(np.log(_mean_affinities(vectors, temperature).mean()))


def uniformity_influences(vectors: Tensor | np.ndarray, temperature: float = 2.0) -> np.ndarray:
    """Return the influence of each image on the uniformity: (N,), mean 0.

    The influences are those of `MetricSample.influences`.

    Arguments and errors are those of `uniformity`.
    """
    affinities = _mean_affinities(vectors, temperature)
    return 2 * (affinities / affinities.mean() - 1)  # an image is in 2 (N - 1) of N (N - 1) pairs


def _mean_affinities(vectors: Tensor | np.ndarray, temperature: float) -> np.ndarray:
    """Return the mean of exp(-t |x - y|^2) of each image with all others: (N,)."""
    directions = torch.from_numpy(_directions(vectors))
    count = len(directions)
    if count < 2:
        raise ValueError(f"uniformity needs at least 2 vectors, got {count}; use more images.")
    sums = [
        # |x - y|^2 = 2 - 2 x y; subtract the pair of an image with itself, which contributes 1
        (2 * temperature * (chunk @ directions.T - 1)).exp().sum(dim=1) - 1
        for chunk in directions.split(CHUNK)  # (C, N) at a time
    ]
    return torch.cat(sums).numpy() / (count - 1)


def view_retrieval(first: Tensor | np.ndarray, second: Tensor | np.ndarray) -> np.ndarray:
    """Return the retrieval of the other view of each image: recall at 1 among all views.

    Each of the 2 N views is searched by cosine similarity among the 2 N - 1 others. The metric is
    high only if views of one image are close and different images are apart. Both a collapse and
    random vectors lower it, whereas metrics of the spread alone rate random vectors high (LiDAR,
    arXiv 2312.04000, makes this point and also uses views). The metric does not detect a loss of
    information that the augmentation itself discards.

    Args:
        first: (N, E), one view of each image.
        second: (N, E), another view of each image, in the same order.

    Returns:
        (N,), fraction of the two views of an image whose nearest neighbor is the other view: 0, 0.5
        or 1.

    Raises:
        ValueError: If the shapes differ or there are no vectors.
    """
    views = [_directions(first), _directions(second)]
    if views[0].shape != views[1].shape:
        raise ValueError(
            f"first {views[0].shape} and second {views[1].shape} must have the same shape; embed "
            "two views of the same images."
        )
    count = len(views[0])
    nearest = nearest_neighbors(np.concatenate(views), 1)[:, 0]  # (2 N,)
    others = np.concatenate([np.arange(count) + count, np.arange(count)])
    return (nearest == others).reshape(2, count).mean(axis=0)


def nearest_neighbors(vectors: Tensor | np.ndarray, k: int) -> np.ndarray:
    """Return the k other images with the highest cosine similarity to each image.

    Args:
        vectors: (N, E).
        k: Number of neighbors, at least 1 and below N.

    Returns:
        (N, K) indices of images, nearest first, int64.

    Raises:
        ValueError: If k is out of range.
    """
    directions = torch.from_numpy(_directions(vectors))
    if not 1 <= k < len(directions):
        raise ValueError(
            f"k ({k}) must be at least 1 and below the number of images ({len(directions)}); "
            "choose a smaller k or use more images."
        )
    chunks = []
    for start in range(0, len(directions), CHUNK):
        similarities = directions[start : start + CHUNK] @ directions.T  # (C, N)
        similarities.diagonal(start).fill_(-torch.inf)  # exclude the image itself
        chunks.append(similarities.topk(k).indices)
    return torch.cat(chunks).numpy()


def neighbor_overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the fraction of its neighbors that each image has in both of two embeddings.

    It shows how much training changed the embedding space, for better or worse: 1 means no change,
    about K / N means unrelated embeddings. The mean over the images is the "mutual
    k-nearest-neighbor alignment" of Huh et al., The Platonic Representation Hypothesis, arXiv
    2405.07987, App. A.

    Args:
        first: (N, K), the result of `nearest_neighbors`.
        second: (N, K), the result for the other embedding of the same images.

    Returns:
        (N,), in [0, 1].

    Raises:
        ValueError: If the shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"first {first.shape} and second {second.shape} must have the same shape; use the same "
            "images and k for both."
        )
    shared = (first[:, :, None] == second[:, None, :]).any(axis=2)  # (N, K)
    return shared.mean(axis=1)


def _directions(vectors: Tensor | np.ndarray) -> np.ndarray:
    """Return the vectors scaled to length 1; zero vectors stay 0."""
    vectors = _as_float64(vectors)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(norms, np.finfo(np.float64).tiny)


def _as_float64(vectors: Tensor | np.ndarray) -> np.ndarray:
    if isinstance(vectors, Tensor):
        vectors = vectors.detach().cpu().double().numpy()
    vectors = np.asarray(vectors, dtype=np.float64)
    if vectors.ndim != 2 or vectors.size == 0:
        raise ValueError(
            f"vectors must have shape (N, E) with N and E above 0, got {vectors.shape}."
        )
    return vectors
