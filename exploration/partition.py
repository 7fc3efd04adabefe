"""Partition vectors: k-means with the number of clusters at the elbow, or HDBSCAN with noise."""

# N rows · E embedding

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from .selection import farthest_first

Method = Literal["kmeans", "hdbscan"]
NOISE = -1
MAX_TRIED = 100  # clusters, when their number is chosen
GROWTH = 1.25  # of the numbers that are tried
STARTS = 10  # runs of k-means; the best one is kept
ALL_AT_ONCE = 5_000  # rows up to which k-means uses all of them in each step: better, more stable
SAMPLE = {"kmeans": 10_000, "hdbscan": 1_000}  # rows to choose K and to measure the stability on
DIMENSIONS = 12  # that HDBSCAN clusters in
MIN_ROWS_OF_UMAP = 50  # with fewer rows, HDBSCAN clusters principal components
UMAP_NEIGHBORS = 15


def choose_num_clusters(directions: np.ndarray, seed: int = 0) -> tuple[int, int]:
    """Choose a number of clusters: the elbow of the inertia of k-means over 1 to sqrt(N) clusters.

    Both axes are scaled to 0 to 1; the elbow is the point that is farthest above the diagonal
    (Satopaa et al., Kneedle, ICDCSW 2011, Sec. 3). The elbow finds separate groups, and still
    gives a middle number where groups blend into each other, where the silhouette gives 2.

    Args:
        directions: Vectors of length 1, (N, E); at most 10,000 are used.
        seed: Random seed of sample and k-means.

    Returns:
        Number of clusters, and the largest number that was tried, at most 100.
    """
    sample = sample_rows(directions, SAMPLE["kmeans"])
    largest = max(1, min(math.isqrt(len(sample)), MAX_TRIED))
    most = len(farthest_first(sample, largest)[0])  # fewer if there are fewer different vectors
    inertias: dict[int, float] = {}

    def best_of(numbers: Sequence[int]) -> int:
        for number in numbers:
            if number not in inertias:
                inertias[number] = float(_fit_kmeans(sample, number, seed).inertia_)
        tried = sorted(inertias)
        # more clusters never fit worse; where they seem to, a start was unlucky
        values = np.minimum.accumulate([inertias[number] for number in tried])
        fall = values[0] - values[-1]
        if fall <= 0 or most == 1:
            return 1
        above = (values[0] - values) / fall - (np.array(tried) - 1) / (largest - 1)
        return tried[int(np.argmax(above))]

    grid = [1]
    while grid[-1] < most:
        grid.append(min(most, max(grid[-1] + 1, round(grid[-1] * GROWTH))))
    place = grid.index(best_of(grid))
    low, high = grid[max(0, place - 1)], grid[min(len(grid) - 1, place + 1)]
    return best_of(range(low, high + 1)), most


def sample_rows(directions: np.ndarray, limit: int) -> np.ndarray:
    """Return at most `limit` rows in their order, drawn with a fixed seed.

    Args:
        directions: Vectors of length 1, (N, E).
        limit: Number of rows.
    """
    if len(directions) <= limit:
        return directions
    return directions[np.sort(np.random.default_rng(0).permutation(len(directions))[:limit])]


def _fit_kmeans(
    directions: np.ndarray, num_clusters: int, seed: int, all_at_once: bool = False
) -> Any:
    from sklearn.cluster import KMeans, MiniBatchKMeans

    algorithm = KMeans if all_at_once else MiniBatchKMeans
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on fewer distinct rows than clusters
        return algorithm(num_clusters, random_state=seed, n_init=STARTS).fit(directions)


def partition(
    directions: np.ndarray,
    method: Method,
    num_clusters: int | None,
    min_cluster_size: int | None,
    seed: int,
) -> np.ndarray:
    """Return the cluster of each row, numbered by size.

    Args:
        directions: Vectors of length 1, (N, E); N at least 1.
        method: "kmeans" or "hdbscan".
        num_clusters: Number of clusters of k-means.
        min_cluster_size: Smallest cluster of HDBSCAN, as in `cluster`.
        seed: Random seed.

    Returns:
        Clusters, (N,), int64; -1 for noise.
    """
    if num_clusters == 1 or len(farthest_first(directions, 2)[0]) == 1:
        return np.zeros(len(directions), dtype=np.int64)
    if method == "kmeans":
        assert num_clusters is not None
        all_at_once = len(directions) <= ALL_AT_ONCE
        return _by_size(_fit_kmeans(directions, num_clusters, seed, all_at_once).labels_)
    from sklearn.cluster import HDBSCAN

    size = min_cluster_size or max(5, len(directions) // 100)
    size = max(2, min(size, len(directions)))
    reduced = _reduce(directions, seed)
    return _by_size(HDBSCAN(min_cluster_size=size, copy=True).fit_predict(reduced))


def reduction_of(num_rows: int) -> str:
    """Return the name of the reduction that comes before HDBSCAN.

    Args:
        num_rows: Number of rows that are clustered.
    """
    if num_rows < MIN_ROWS_OF_UMAP:
        return "principal components, as there are few images"
    try:
        import umap  # noqa: F401
    except ImportError:
        return "principal components, as umap-learn is not installed"
    return f"{DIMENSIONS} dimensions of UMAP"


def _reduce(directions: np.ndarray, seed: int) -> np.ndarray:
    """Return rows in at most `DIMENSIONS` dimensions."""
    if "UMAP" in reduction_of(len(directions)):
        from umap import UMAP

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on a seed, which needs one thread
            return UMAP(
                n_components=DIMENSIONS,
                n_neighbors=UMAP_NEIGHBORS,
                min_dist=0.0,
                metric="cosine",
                init="pca",
                random_state=seed,
            ).fit_transform(directions)
    from sklearn.decomposition import PCA

    num_dimensions = min(DIMENSIONS, *directions.shape)
    return PCA(num_dimensions, svd_solver="full").fit_transform(directions)


def _by_size(assignments: np.ndarray) -> np.ndarray:
    """Number clusters by size; of clusters of the same size, the one of the first row is first."""
    names, first, counts = np.unique(
        assignments[assignments != NOISE], return_index=True, return_counts=True
    )
    numbers = dict(zip(names[np.lexsort((first, -counts))].tolist(), itertools.count()))
    return np.array([numbers.get(name, NOISE) for name in assignments.tolist()], dtype=np.int64)


__all__ = [
    "NOISE",
    "SAMPLE",
    "Method",
    "choose_num_clusters",
    "partition",
    "reduction_of",
    "sample_rows",
]
