"""Select a diverse subset of a collection: k-center greedy."""

# N rows · E embedding · n selected rows

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic_output import atomic_output
from ..visualization.figures import new_figure, save_png
from .collection import Collection, CollectionImages, check_rows

NO_DISTANCE = 1e-6  # cosine distance up to which two vectors count as equal, in float32
PLOT_SIZE = (800, 500)  # pixels


@dataclass(frozen=True)
class Selected:
    """Image that was selected.

    Args:
        path: Name of the image: its path or id.
        score: Cosine distance to the nearest image selected before it; None for the first image.
        row: Row of the vectors.
    """

    path: str
    score: float | None
    row: int


@dataclass(frozen=True)
class Coverage:
    """Cosine distance of the images to the nearest selected one.

    Args:
        largest: Largest distance after each step, (n,).
        mean: Mean distance after each step, (n,).
    """

    largest: list[float]
    mean: list[float]


@dataclass(frozen=True)
class Selection:
    """Result of `select`.

    Args:
        rows: Images, in the order of their selection.
        coverage: Distances of all images to the selected ones.
        note: Remark on the number of images; "" for none.
    """

    rows: list[Selected]
    coverage: Coverage
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return paths and scores as values that JSON can represent."""
        return {"rows": [{"path": row.path, "score": row.score} for row in self.rows]}


class _Distances:
    """Cosine distance of each image to the nearest selected one, in O(N E) per selected image.

    Vectors of zeros are copies of each other, at distance 0, and at distance 1 from all others.

    Args:
        directions: Vectors of length 1 or 0, (N, E).
    """

    def __init__(self, directions: np.ndarray):
        self._directions = directions
        self._is_zero = (directions == 0).all(axis=1)
        self.values = np.full(len(directions), np.inf, dtype=np.float32)
        self.coverage = Coverage([], [])

    def add(self, row: int) -> None:
        """Select an image."""
        distances = 1 - self._directions @ self._directions[row]
        if self._is_zero[row]:
            distances[self._is_zero] = 0
        np.minimum(self.values, distances, out=self.values)
        np.maximum(self.values, 0, out=self.values)
        self.values[row] = 0
        self.coverage.largest.append(float(self.values.max()))
        self.coverage.mean.append(float(self.values.mean(dtype=np.float64)))


def farthest_first(directions: np.ndarray, n: int) -> tuple[list[int], list[float], Coverage]:
    """Select rows by k-center greedy: each is the farthest from those selected before.

    The largest distance of a row to the selected ones is at most twice the smallest possible one
    (as Euclidean distance; Gonzalez, Theoretical Computer Science 38, 1985; as a core set in
    Sener and Savarese, arXiv 1708.00489, Alg. 1). The first row is the nearest to the mean. The
    selection ends when all rows are equal to a selected one. Time is O(n N E), and memory O(N).

    Args:
        directions: Vectors of length 1 or 0, (N, E); N at least 1.
        n: Number of rows.

    Returns:
        Rows in order of their selection, their cosine distances to the rows before (infinite for
        the first), and the coverage.
    """
    distances = _Distances(directions)
    rows = [int(np.argmax(directions @ directions.mean(axis=0)))]
    scores = [float("inf")]
    distances.add(rows[0])
    while len(rows) < n:
        row = int(np.argmax(distances.values))
        if distances.values[row] <= NO_DISTANCE:
            break
        rows.append(row)
        scores.append(float(distances.values[row]))
        distances.add(row)
    return rows, scores, distances.coverage


def select(
    vectors: str | os.PathLike[str] | Collection, n: int, *, per_cluster: bool = False
) -> Selection:
    """Select a diverse subset: images that are far from each other and near to all others.

    Images that are equal to a selected one are never selected. With `per_cluster`, each cluster
    gives the same number of images, and a cluster with fewer gives all that it has; the others
    share the rest. Images without a cluster count as one more cluster.

    Args:
        vectors: Folder of vectors, or the collection that was opened.
        n: Number of images.
        per_cluster: Whether to select from each cluster of the column "cluster".

    Raises:
        FileNotFoundError: If there are no vectors.
        ValueError: If n is below 1, there are no vectors, or there are no clusters.
    """
    if n < 1:
        raise ValueError(f"n ({n}) must be at least 1.")
    collection = vectors if isinstance(vectors, Collection) else Collection(vectors)
    check_rows(collection, 1, "a selection")
    if per_cluster:
        rows, scores, coverage = _select_per_cluster(collection, n)
    else:
        rows, scores, coverage = farthest_first(collection.directions, n)
    selected = [
        Selected(collection.ids[row], None if np.isinf(score) else score, row)
        for row, score in zip(rows, scores, strict=True)
    ]
    return Selection(selected, coverage, _remark(len(rows), n, collection))


def _remark(num_selected: int, n: int, collection: Collection) -> str:
    if num_selected == n:
        return ""
    if num_selected == len(collection):
        return f"{str(collection.folder)!r} has {num_selected} images only, not {n}"
    return f"{num_selected} of {n} images selected: the others are copies of selected ones"


def _select_per_cluster(collection: Collection, n: int) -> tuple[list[int], list[float], Coverage]:
    clusters = collection.columns.get("cluster")
    if clusters is None:
        raise ValueError(
            f"{str(collection.folder)!r} has no column 'cluster'; write it with "
            f"selfvit cluster {collection.folder}, or leave out --per-cluster."
        )
    members: dict[Any, list[int]] = {}
    for row, cluster in enumerate(clusters):
        members.setdefault(cluster, []).append(row)
    names = sorted(members, key=lambda name: (name is None, name))
    picks = []
    for name in names:
        rows, _, _ = farthest_first(collection.directions[members[name]], n)
        picks.append([members[name][row] for row in rows])
    # the first image of each cluster, then the second of each, so that any start is balanced
    longest = max(len(picked) for picked in picks)
    in_turn = [picked[turn] for turn in range(longest) for picked in picks if turn < len(picked)]
    distances = _Distances(collection.directions)
    scores = []
    for row in in_turn[:n]:
        scores.append(float(distances.values[row]))  # to those before, of all clusters
        distances.add(row)
    return in_turn[:n], scores, distances.coverage


def plot_coverage(selection: Selection, path: Path) -> None:
    """Draw the largest and the mean distance to the selected images after each step.

    Args:
        selection: Result of `select`.
        path: PNG file to write.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure = new_figure(*PLOT_SIZE)
    axes = figure.add_subplot()
    steps = np.arange(1, len(selection.rows) + 1)
    axes.plot(steps, selection.coverage.largest, label="largest")
    axes.plot(steps, selection.coverage.mean, label="mean")
    axes.set_xlabel("number of selected images")
    axes.set_ylabel("cosine distance to the nearest selected image")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.tight_layout()
    save_png(figure, path)


def files_of(images: CollectionImages, rows: Sequence[int]) -> list[str]:
    """Return the absolute paths of the image files of rows.

    Args:
        images: Images of the collection.
        rows: Rows.

    Raises:
        FileNotFoundError: If the images no longer hold one of them.
        ValueError: If the images are not files.
    """
    files = []
    for row in rows:
        image = images.record(row).image
        if not isinstance(image, str):
            raise ValueError(
                "--output lists paths, but the images are in tables or archives; use "
                "--json, which has their names."
            )
        files.append(os.path.abspath(image))
    return files


def write_list(
    selection: Selection, collection: Collection, images: CollectionImages, path: Path
) -> None:
    """Write the paths of the selected images as a list that `open_images` reads.

    Args:
        selection: Result of `select`.
        collection: Vectors.
        images: Images of the collection.
        path: File to write: a .txt file of paths, or a .csv file with path, label (if there are
            labels) and score.

    Raises:
        FileNotFoundError: If the images no longer hold one of them.
        ValueError: If the images are not files, or a name does not fit into a line.
    """
    files = files_of(images, [row.row for row in selection.rows])
    is_text = path.suffix.lower() == ".txt"
    unfit = [file for file in files if file != file.strip() or len(file.splitlines()) != 1]
    if is_text and unfit:
        raise ValueError(f"{unfit[0]!r} does not fit into a line of a .txt file; write a .csv.")
    labels = collection.labels
    with (
        atomic_output(path) as unfinished,
        open(unfinished, "w", encoding="utf-8", errors="surrogateescape", newline="") as stream,
    ):
        if is_text:
            stream.writelines(f"{file}\n" for file in files)
            return
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["path", *(["label"] if labels else []), "score"])
        for file, row in zip(files, selection.rows, strict=True):
            score = "" if row.score is None else f"{row.score:.6f}"
            writer.writerow([file, *([labels[row.row]] if labels else []), score])


__all__ = [
    "Coverage",
    "Selected",
    "Selection",
    "farthest_first",
    "files_of",
    "plot_coverage",
    "select",
    "write_list",
]
