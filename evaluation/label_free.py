"""Measures of an embedding that need no labels: they see collapse before an accuracy does.

Also of two embeddings of the same images: of other views of them, and by another encoder.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# N images · C chunk of images · E embedding · K neighbors

CHUNK = 1024  # images that are compared with all others at a time


def feature_standard_deviation(vectors: Tensor | np.ndarray) -> float:
    """Return the spread of the normalized vectors (SimSiam, arXiv 2011.10566, Sec. 4.1).

    Standard deviation of each dimension of the L2-normalized vectors, averaged over dimensions,
    times sqrt(E).

    Args:
        vectors: (N, E).

    Returns:
        unitless, in [0, 1]: close to 1 where directions are isotropic, 0 where all vectors are the
        same.

    Raises:
        ValueError: if there is no vector.
    """
    directions = _directions(vectors)
    return float(directions.std(axis=0).mean() * np.sqrt(directions.shape[1]))


def rankme(vectors: Tensor | np.ndarray, epsilon: float = 1e-7) -> float:
    """Return the effective rank of the vectors (RankMe, arXiv 2210.02885, Eq. 1 and 2).

    The exponential of the entropy of the singular values divided by their sum.

    Args:
        vectors: (N, E), neither centered nor normalized. More images than dimensions give the
            paper's measure; with fewer it is bounded by N.
        epsilon: added to the normalized singular values; the paper's value for float32.

    Returns:
        dimensions in use, from about 1 (collapse to a line) to min(N, E).

    Raises:
        ValueError: if there is no vector.
    """
    singular_values = np.linalg.svd(_as_float64(vectors), compute_uv=False)  # (min(N, E),)
    total = max(singular_values.sum(), np.finfo(np.float64).tiny)  # all-zero vectors: no 0 / 0
    shares = singular_values / total + epsilon
    return float(np.exp(-(shares * np.log(shares)).sum()))


def rankme_influences(vectors: Tensor | np.ndarray) -> np.ndarray:
    """Return what each image adds to RankMe, as `MetricSample.influences`: (N,), mean 0.

    The derivative of RankMe by the image's weight, times N. With singular values s_k, their shares
    p_k, H the entropy of these and v_k the right singular vectors, a weight w_i on vector x_i moves
    s_k by (x_i v_k)^2 / (2 s_k), and RankMe = exp(H) by exp(H) times that of H.

    Args:
        vectors: (N, E), as for `rankme`.

    Raises:
        ValueError: if there is no vector.
    """
    vectors = _as_float64(vectors)
    squares, directions = np.linalg.eigh(vectors.T @ vectors)  # (E,), (E, E)
    singular_values = np.sqrt(np.maximum(squares, 0))
    in_use = singular_values > 1e-7 * max(singular_values.max(), np.finfo(np.float64).tiny)
    singular_values = singular_values[in_use]
    shares = singular_values / singular_values.sum()
    entropy = -(shares * np.log(shares)).sum()
    moves = (vectors @ directions[:, in_use]) ** 2 / (2 * singular_values)  # (N, rank)
    slopes = -(np.log(shares) + entropy) / singular_values.sum()  # of the entropy by s_k
    return len(vectors) * np.exp(entropy) * (moves @ slopes)


def uniformity(vectors: Tensor | np.ndarray, temperature: float = 2.0) -> float:
    """Return how evenly the normalized vectors fill the sphere (Wang and Isola, arXiv 2005.10242).

    The logarithm of the mean of exp(-t |x - y|^2) over pairs of images (Eq. 6 and Fig. 4; t = 2 is
    the paper's). Noise is as uniform as it gets: read it beside a figure that noise lowers.

    Args:
        vectors: (N, E), two or more.
        temperature: t, unitless.

    Returns:
        0 where all vectors are the same; lower is more uniform, about -t * 2 for isotropic ones.

    Raises:
        ValueError: if there are fewer than two vectors.
    """
    return float(np.log(_mean_affinities(vectors, temperature).mean()))


def uniformity_influences(vectors: Tensor | np.ndarray, temperature: float = 2.0) -> np.ndarray:
    """Return what each image adds to the uniformity, as `MetricSample.influences`: (N,), mean 0.

    Arguments and errors are those of `uniformity`.
    """
    affinities = _mean_affinities(vectors, temperature)
    return 2 * (affinities / affinities.mean() - 1)  # an image is in two of the N (N - 1) pairs


def _mean_affinities(vectors: Tensor | np.ndarray, temperature: float) -> np.ndarray:
    """Return the mean of exp(-t |x - y|^2) of each image with the others (N,)."""
    directions = torch.from_numpy(_directions(vectors))
    count = len(directions)
    if count < 2:
        raise ValueError(f"uniformity is of pairs of vectors; {count} is given.")
    sums = [
        # with itself an image has 1; |x - y|^2 = 2 - 2 x y
        (2 * temperature * (chunk @ directions.T - 1)).exp().sum(dim=1) - 1
        for chunk in directions.split(CHUNK)  # (C, N) at a time
    ]
    return torch.cat(sums).numpy() / (count - 1)


def view_retrieval(first: Tensor | np.ndarray, second: Tensor | np.ndarray) -> np.ndarray:
    """Return for which images the other view is found: recall at 1 among all views of all images.

    Each of the 2 N views is looked up by cosine similarity among the 2 N - 1 others. Views of an
    image have to lie close, and images apart: neither collapse nor noise passes for good, as
    measures of the spread alone let noise (LiDAR, arXiv 2312.04000, makes that point, and also
    measures by views). It says nothing of what the views have lost: their changes are taken to be
    without meaning.

    Args:
        first: (N, E), one view of each image.
        second: (N, E), another view of each, in the same order.

    Returns:
        (N,): the share of the two views of an image that find each other, 0, 0.5 or 1.

    Raises:
        ValueError: if shapes differ or there is no vector.
    """
    views = [_directions(first), _directions(second)]
    if views[0].shape != views[1].shape:
        raise ValueError(
            f"first {views[0].shape} and second {views[1].shape} must be of equal shape."
        )
    count = len(views[0])
    nearest = nearest_neighbors(np.concatenate(views), 1)[:, 0]  # (2 N,)
    others = np.concatenate([np.arange(count) + count, np.arange(count)])
    return (nearest == others).reshape(2, count).mean(axis=0)


def nearest_neighbors(vectors: Tensor | np.ndarray, k: int) -> np.ndarray:
    """Return the k other images of highest cosine similarity to each, nearest first: (N, K), int64.

    Args:
        vectors: (N, E).
        k: at least 1 and below N.

    Raises:
        ValueError: if k is out of range.
    """
    directions = torch.from_numpy(_directions(vectors))
    if not 1 <= k < len(directions):
        raise ValueError(
            f"k ({k}) must be at least 1 and below the number of images ({len(directions)})."
        )
    chunks = []
    for start in range(0, len(directions), CHUNK):
        similarities = directions[start : start + CHUNK] @ directions.T  # (C, N)
        similarities.diagonal(start).fill_(-torch.inf)  # an image is no neighbor of its own
        chunks.append(similarities.topk(k).indices)
    return torch.cat(chunks).numpy()


def neighbor_overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return which share of its neighbors each image has in both of two embeddings.

    How far training changed the space, for better or worse: 1 where nothing changed, about K / N
    where nothing is left of it. (The mean over images is the "mutual k-nearest-neighbor alignment"
    of Huh et al., The Platonic Representation Hypothesis, arXiv 2405.07987, App. A.)

    Args:
        first: (N, K) of `nearest_neighbors`.
        second: the same of the other embedding of the same images.

    Returns:
        (N,), in [0, 1].

    Raises:
        ValueError: if shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"first {first.shape} and second {second.shape} must be of equal shape.")
    shared = (first[:, :, None] == second[:, None, :]).any(axis=2)  # (N, K)
    return shared.mean(axis=1)


def _directions(vectors: Tensor | np.ndarray) -> np.ndarray:
    """Return vectors scaled to length 1; zero vectors stay."""
    vectors = _as_float64(vectors)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(norms, np.finfo(np.float64).tiny)


def _as_float64(vectors: Tensor | np.ndarray) -> np.ndarray:
    if isinstance(vectors, Tensor):
        vectors = vectors.detach().cpu().double().numpy()
    vectors = np.asarray(vectors, dtype=np.float64)
    if vectors.ndim != 2 or vectors.size == 0:
        raise ValueError(f"vectors must be (N, E) with N and E above 0, not {vectors.shape}.")
    return vectors
