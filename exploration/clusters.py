"""Divide a collection into clusters: k-means on directions, or HDBSCAN with noise."""

# N rows · E embedding · K clusters

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..embedding.vectors.columns import check_takes_columns
from .collection import Collection, CollectionImages, check_rows, names_of
from .partition import (
    NOISE,
    SAMPLE,
    Method,
    choose_num_clusters,
    partition,
    reduction_of,
    sample_rows,
)
from .selection import farthest_first
from .sheets import SheetRow, Tile, draw_sheet

NEAREST, DIVERSE = 5, 3  # exemplars of a cluster


@dataclass(frozen=True)
class Cluster:
    """Cluster of a collection.

    Args:
        id: Number; 0 is the largest cluster.
        size: Number of its images.
        exemplars: Names of the images nearest to its center, then of images far from each other.
        label: Most frequent label of its images; None without labels.
        share: Fraction of its images with this label.
        rows: Rows of the exemplars.
    """

    id: int
    size: int
    exemplars: list[str]
    label: str | None = None
    share: float = 0.0
    rows: list[int] = field(default_factory=list, repr=False)


@dataclass(frozen=True)
class Agreement:
    """Agreement of clusters with labels; noise counts as one cluster.

    Args:
        adjusted_rand: Adjusted Rand index (Hubert and Arabie 1985); 0 for random clusters.
        mutual_information: Normalized mutual information, from 0 to 1.
        num_labels: Number of different labels.
    """

    adjusted_rand: float
    mutual_information: float
    num_labels: int


@dataclass(frozen=True)
class ClusterResult:
    """Result of `cluster`.

    Args:
        clusters: Clusters, the largest first.
        assignments: Cluster of each row, (N,), int64; -1 for noise.
        method: Description of the method, and of how the number of clusters was chosen.
        stability: Mean adjusted Rand index between the clusters of several seeds; None if it was
            not measured.
        agreement: Agreement with the labels; None without labels.
    """

    clusters: list[Cluster]
    assignments: np.ndarray
    method: str
    stability: float | None
    agreement: Agreement | None

    @property
    def column(self) -> list[int | None]:
        """Cluster of each row; None for noise."""
        return [None if number == NOISE else int(number) for number in self.assignments]

    @property
    def num_noise(self) -> int:
        """Number of rows that belong to no cluster."""
        return int((self.assignments == NOISE).sum())

    def to_dict(self) -> dict[str, Any]:
        """Return the clusters as values that JSON can represent."""
        return {
            "clusters": [
                {"id": found.id, "size": found.size, "exemplars": found.exemplars}
                for found in self.clusters
            ],
            "noise": self.num_noise,
            "method": self.method,
            "stability": self.stability,
            "agreement": None if self.agreement is None else asdict(self.agreement),
        }


def cluster(
    vectors: str | os.PathLike[str] | Collection,
    *,
    num_clusters: int | None = None,
    method: Method = "kmeans",
    min_cluster_size: int | None = None,
    num_seeds: int = 5,
    seed: int = 0,
    write: bool = True,
) -> ClusterResult:
    """Divide the images into clusters, and write the column "cluster" beside the vectors.

    "kmeans" is k-means on directions, with mini-batches (Sculley, WWW 2010) above 5,000 images.
    "hdbscan" is HDBSCAN (Campello et al., PAKDD 2013) on 12 dimensions of UMAP, or on principal
    components if umap-learn is not installed or there are fewer than 50 images; images in no dense
    region are noise, null in the column. Clusters are numbered by size. Same seed, same clusters.

    Args:
        vectors: Folder of vectors, or the collection that was opened.
        num_clusters: Number of clusters of k-means; None for the elbow, see `choose_num_clusters`.
        method: "kmeans" or "hdbscan".
        min_cluster_size: Smallest cluster of HDBSCAN in images; None for 1 % of the images, at
            least 5.
        num_seeds: Number of seeds to measure the stability with; below 2, it is not measured.
        seed: Random seed.
        write: Whether to write the column.

    Raises:
        FileNotFoundError: If there are no vectors.
        ImportError: If scikit-learn is not installed.
        ValueError: If there are no vectors, an argument does not fit, or the column is to be
            written to object storage.
    """
    collection = vectors if isinstance(vectors, Collection) else Collection(vectors)
    check_rows(collection, 1, "clustering")
    _check_arguments(collection, num_clusters, method, min_cluster_size, write)
    directions = collection.directions
    how = f"HDBSCAN on {reduction_of(len(directions))}"
    if method == "kmeans":
        how = f"k-means, {num_clusters} clusters as given"
        if num_clusters is None:
            num_clusters, most = choose_num_clusters(directions, seed)
            how = f"k-means, number of clusters at the elbow of the inertia (1 to {most} tried)"
    assignments = partition(directions, method, num_clusters, min_cluster_size, seed)
    result = ClusterResult(
        _describe(collection, assignments),
        assignments,
        how,
        _stability(directions, method, num_clusters, min_cluster_size, num_seeds, seed),
        _agreement(collection.labels, assignments),
    )
    if write:
        collection.write_columns("cluster", {"cluster": result.column})
    return result


def _check_arguments(
    collection: Collection,
    num_clusters: int | None,
    method: str,
    min_cluster_size: int | None,
    write: bool,
) -> None:
    try:
        import sklearn.cluster  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'clusters need scikit-learn; install it with pip install "selfvit[explore]".'
        ) from error
    if method not in ("kmeans", "hdbscan"):
        raise ValueError(f"method ({method!r}) must be kmeans or hdbscan.")
    if method == "hdbscan" and num_clusters is not None:
        raise ValueError(
            f"HDBSCAN finds the number of clusters itself, but num_clusters is {num_clusters}; "
            "leave it out, or use the method kmeans."
        )
    if method == "kmeans" and min_cluster_size is not None:
        raise ValueError(
            f"min_cluster_size ({min_cluster_size}) is for the method hdbscan; leave it out."
        )
    if min_cluster_size is not None and min_cluster_size < 2:
        raise ValueError(f"min_cluster_size ({min_cluster_size}) must be at least 2.")
    if num_clusters is not None:
        if num_clusters < 1:
            raise ValueError(f"num_clusters ({num_clusters}) must be at least 1.")
        num_distinct = len(farthest_first(collection.directions, num_clusters)[0])
        if num_distinct < num_clusters:
            raise ValueError(
                f"num_clusters ({num_clusters}) must be at most the number of different vectors "
                f"({num_distinct}); use {num_distinct} or fewer."
            )
    if write:
        check_takes_columns(collection.folder)


def _stability(
    directions: np.ndarray,
    method: Method,
    num_clusters: int | None,
    min_cluster_size: int | None,
    num_seeds: int,
    seed: int,
) -> float | None:
    """Return the mean adjusted Rand index between the clusters of several seeds."""
    from sklearn.metrics import adjusted_rand_score

    sample = sample_rows(directions, SAMPLE[method])
    if num_seeds < 2 or (method == "hdbscan" and "UMAP" not in reduction_of(len(sample))):
        return None  # principal components and HDBSCAN draw no random numbers
    if min_cluster_size is not None:
        min_cluster_size = max(2, round(min_cluster_size * len(sample) / len(directions)))
    found = [
        partition(sample, method, num_clusters, min_cluster_size, seed + number)
        for number in range(num_seeds)
    ]
    pairs = itertools.combinations(found, 2)
    return float(np.mean([adjusted_rand_score(first, second) for first, second in pairs]))


def _agreement(labels: Sequence[str | None] | None, assignments: np.ndarray) -> Agreement | None:
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    labeled = [row for row, label in enumerate(labels or ()) if label is not None]
    if not labels or not labeled:
        return None
    truth, found = [labels[row] for row in labeled], assignments[labeled]
    return Agreement(
        float(adjusted_rand_score(truth, found)),
        float(normalized_mutual_info_score(truth, found)),
        len(set(truth)),
    )


def _describe(collection: Collection, assignments: np.ndarray) -> list[Cluster]:
    clusters = []
    for number in range(int(assignments.max(initial=NOISE)) + 1):
        members = np.flatnonzero(assignments == number)
        labels = [collection.labels[row] for row in members] if collection.labels else []
        most_frequent = Counter(filter(None, labels)).most_common(1)
        label, count = most_frequent[0] if most_frequent else (None, 0)
        rows = _exemplars(collection.directions, members)
        names, share = names_of(collection, rows), round(count / len(members), 4)
        clusters.append(Cluster(number, len(members), names, label, share, rows))
    return clusters


def _exemplars(directions: np.ndarray, members: np.ndarray) -> list[int]:
    """Return the rows nearest to the center of a cluster, then rows far from each other."""
    own = directions[members]
    nearest = np.argsort(-(own @ own.mean(axis=0)), kind="stable")[:NEAREST].tolist()
    far = [place for place in farthest_first(own, DIVERSE + NEAREST)[0] if place not in nearest]
    return [int(members[place]) for place in [*nearest, *far[:DIVERSE]]]


def draw_clusters(result: ClusterResult, images: CollectionImages, path: Path) -> None:
    """Draw the exemplars of each cluster as a row of a contact sheet.

    Args:
        result: Result of `cluster`.
        images: Images of the collection.
        path: PNG file to write.
    """

    def rows() -> Iterator[SheetRow]:
        for found in result.clusters:
            label = "" if found.label is None else f", {found.share:.0%} {found.label}"
            tiles = [
                Tile(images.thumbnail(row, 512), images.name_of(row), is_marked=place == 0)
                for place, row in enumerate(found.rows)
            ]
            yield SheetRow(tiles, f"cluster {found.id}: {found.size} images{label}")

    draw_sheet(rows(), path)


__all__ = [
    "Agreement",
    "Cluster",
    "ClusterResult",
    "cluster",
    "draw_clusters",
]
