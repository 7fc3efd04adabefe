"""Find the images of a collection that are least like the others."""

# N rows · k neighbors

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .collection import Collection, CollectionImages, check_rows
from .neighbors import nearest
from .search import Match
from .sheets import SheetRow, Tile, draw_sheet

NUM_NEIGHBORS = 10
IS_COPY = 1 - 1e-5  # cosine similarity from which two vectors count as equal, in float32
SHOWN_NEIGHBORS = 5  # of each outlier on a sheet


@dataclass(frozen=True)
class Outlier:
    """Image and its distance to the others.

    Args:
        path: Name of the image: its path or id.
        score: Mean cosine distance to its nearest neighbors, from 0 to 2.
        row: Row of the vectors.
        neighbors: Nearest neighbors, the most similar first.
    """

    path: str
    score: float
    row: int
    neighbors: list[Match]


@dataclass(frozen=True)
class OutlierResult:
    """Result of `outliers`.

    Args:
        rows: Images, the one of the largest score first.
        num_neighbors: Number of neighbors that the scores are the mean of.
        num_copies: Number of images whose vector is equal to that of another image.
    """

    rows: list[Outlier]
    num_neighbors: int
    num_copies: int

    def to_dict(self) -> dict[str, Any]:
        """Return paths and scores as values that JSON can represent."""
        return {"rows": [{"path": row.path, "score": row.score} for row in self.rows]}


def outliers(
    vectors: str | os.PathLike[str] | Collection,
    *,
    n: int | None = 20,
    num_neighbors: int = NUM_NEIGHBORS,
) -> OutlierResult:
    """Sort images by their mean cosine distance to their nearest neighbors, the farthest first.

    This is the score of Angiulli and Pizzuti (PKDD 2002, Sec. 2), as a mean. A copy of an image is
    a neighbor at distance 0, so as many copies of a strange image as there are neighbors hide it;
    `selfvit duplicates` finds copies.

    Args:
        vectors: Folder of vectors, or the collection that was opened.
        n: Number of images to return; None for all.
        num_neighbors: Number of neighbors; all other images if there are fewer.

    Raises:
        FileNotFoundError: If there are no vectors.
        ValueError: If a number is below 1, or there are fewer than two vectors.
    """
    if num_neighbors < 1 or (n is not None and n < 1):
        raise ValueError(f"n ({n}) and num_neighbors ({num_neighbors}) must be at least 1.")
    collection = vectors if isinstance(vectors, Collection) else Collection(vectors)
    check_rows(collection, 2, "a search for outliers")
    directions = collection.directions
    everyone = np.arange(len(directions))
    neighbors, similarities = nearest(directions, directions, num_neighbors, exclude=everyone)
    # rounded, as float32 gives equal images unequal scores
    scores = np.round(1 - similarities.mean(axis=1, dtype=np.float64), 6)  # (N,)
    scores = np.maximum(scores, 0)
    order = np.argsort(-scores, kind="stable")[:n]
    rows = [
        Outlier(
            collection.ids[row],
            float(scores[row]),
            int(row),
            [
                Match(collection.ids[other], float(similarity), int(other))
                for other, similarity in zip(neighbors[row], similarities[row], strict=True)
            ],
        )
        for row in order
    ]
    num_copies = int((similarities[:, 0] >= IS_COPY).sum())
    return OutlierResult(rows, neighbors.shape[1], num_copies)


def draw_outliers(result: OutlierResult, images: CollectionImages, path: Path) -> None:
    """Draw each outlier and its nearest neighbors as a row of a contact sheet.

    Args:
        result: Result of `outliers`.
        images: Images of the collection.
        path: PNG file to write.
    """

    def rows() -> Iterator[SheetRow]:
        for outlier in result.rows:
            tiles = [Tile(images.thumbnail(outlier.row, 512), outlier.path, is_marked=True)]
            tiles += [
                Tile(images.thumbnail(match.row, 512), f"{match.similarity:.3f}\n{match.path}")
                for match in outlier.neighbors[:SHOWN_NEIGHBORS]
            ]
            yield SheetRow(tiles, f"{outlier.score:.4f}  {outlier.path}")

    draw_sheet(rows(), path)


__all__ = ["Outlier", "OutlierResult", "draw_outliers", "outliers"]
