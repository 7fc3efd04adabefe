"""Pairs of images that may be duplicates, with their similarity and agreement."""

# N rows of the collection · M rows of the other one · P pairs · E embedding · k neighbors

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..neighbors import nearest
from .alignment import agreement
from .pictures import Pictures, is_alike_in_shape

NEIGHBORS = 16  # of each image (k)
PAIRS_AT_A_TIME = 4096


@dataclass(frozen=True)
class Pairs:
    """Pairs of images.

    Args:
        first: Row of the first image, (P,).
        second: Row of the second image, (P,), in the same or in the other collection.
        similarities: Cosine similarity of the vectors, (P,).
        agreements: Agreement of the pixels, (P,).
    """

    first: np.ndarray
    second: np.ndarray
    similarities: np.ndarray
    agreements: np.ndarray

    def ranked(self, num_rows: int) -> np.ndarray:
        """Return the agreements of each row that comes first in pairs, the highest first.

        Args:
            num_rows: Number of rows that may come first (N).

        Returns:
            Agreements, (N, k); 0 where a row has fewer pairs or its pixels disagree.
        """
        order = np.lexsort((-self.agreements, self.first))
        rows = self.first[order]
        places = np.arange(len(rows)) - np.searchsorted(rows, rows)
        is_kept = places < NEIGHBORS
        result = np.zeros((num_rows, NEIGHBORS), dtype=np.float32)
        values = np.maximum(self.agreements[order][is_kept], 0)
        result[rows[is_kept], places[is_kept]] = values
        return result


def compare(
    first: Pictures, second: Pictures, rows: np.ndarray, other_rows: np.ndarray
) -> np.ndarray:
    """Return the agreement of pairs; 0 for pairs of another aspect ratio.

    Args:
        first: Images of the first rows.
        second: Images of the second rows.
        rows: First row of each pair, (P,).
        other_rows: Second row of each pair, (P,).
    """
    result = np.zeros(len(rows), dtype=np.float32)
    is_alike = is_alike_in_shape(first.sizes[rows], second.sizes[other_rows])
    places = np.flatnonzero(is_alike)
    for start in range(0, len(places), PAIRS_AT_A_TIME):
        block = places[start : start + PAIRS_AT_A_TIME]
        result[block] = agreement(
            first.thumbnails[rows[block]], second.thumbnails[other_rows[block]]
        )
    return result


def pairs_within(directions: np.ndarray, pictures: Pictures, similarity: float) -> Pairs:
    """Return the pairs of rows of one collection, in both orders.

    Args:
        directions: Vectors of length 1, (N, E).
        pictures: Images, one per row.
        similarity: Lowest cosine similarity of a pair.
    """
    places = np.arange(len(directions))
    neighbors, similarities = nearest(directions, directions, NEIGHBORS, exclude=places)
    first, second, similarities = _above(neighbors, similarities, similarity)
    both = np.sort(np.stack([first, second], axis=1), axis=1)
    unordered, chosen = np.unique(both, axis=0, return_index=True)
    a, b, similarities = unordered[:, 0], unordered[:, 1], similarities[chosen]
    agreements = compare(pictures, pictures, a, b)
    return Pairs(
        np.concatenate([a, b]),
        np.concatenate([b, a]),
        np.concatenate([similarities] * 2),
        np.concatenate([agreements] * 2),
    )


def pairs_between(
    directions: np.ndarray,
    pictures: Pictures,
    other_directions: np.ndarray,
    other_pictures: Pictures,
    similarity: float,
) -> Pairs:
    """Return pairs of a row of a collection and a row of another one.

    Args:
        directions: Vectors of length 1, (N, E).
        pictures: Images, one per row.
        other_directions: Vectors of the other collection of length 1, (M, E).
        other_pictures: Its images, one per row.
        similarity: Lowest cosine similarity of a pair.
    """
    neighbors, similarities = nearest(directions, other_directions, NEIGHBORS)
    first, second, similarities = _above(neighbors, similarities, similarity)
    return Pairs(first, second, similarities, compare(pictures, other_pictures, first, second))


def _above(
    neighbors: np.ndarray, similarities: np.ndarray, least: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows, places = np.nonzero(similarities >= least)
    return rows, neighbors[rows, places], similarities[rows, places]


__all__ = ["Pairs", "compare", "pairs_between", "pairs_within"]
