"""Nearest neighbors by cosine similarity, exactly, in blocks that fit into the memory."""

# Q queries · N rows · E embedding · k neighbors

from __future__ import annotations

import numpy as np

VALUES_PER_BLOCK = 2**25  # similarities at a time: 128 MiB


def nearest(
    queries: np.ndarray, directions: np.ndarray, k: int, exclude: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the most similar rows of each query, the most similar first.

    Rows of equal similarity are in ascending order.

    Args:
        queries: Vectors of length 1, (Q, E).
        directions: Vectors of length 1, (N, E).
        k: Number of rows per query; at most N, or N - 1 with `exclude`.
        exclude: Row to leave out per query, (Q,), for example the query itself; None for none.

    Returns:
        Rows, (Q, k), int64, and cosine similarities, (Q, k), float32.
    """
    k = min(k, len(directions) - (exclude is not None))
    rows = np.empty((len(queries), max(k, 0)), dtype=np.int64)
    similarities = np.empty(rows.shape, dtype=np.float32)
    if k <= 0:
        return rows, similarities
    size = max(1, VALUES_PER_BLOCK // max(1, len(directions)))
    for start in range(0, len(queries), size):
        block = slice(start, start + size)
        products = queries[block] @ directions.T  # (q, N)
        if exclude is not None:
            products[np.arange(len(products)), exclude[block]] = -np.inf
        rows[block], similarities[block] = _largest(products, k)
    return rows, similarities


def _largest(products: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the places and values of the k largest values of each row of a matrix."""
    smallest_taken = -np.partition(-products, k - 1, axis=1)[:, k - 1 : k]
    rows = np.empty((len(products), k), dtype=np.int64)
    for number, (values, limit) in enumerate(zip(products, smallest_taken, strict=True)):
        candidates = np.flatnonzero(values >= limit)  # more than k if values are equal
        order = np.lexsort((candidates, -values[candidates]))
        rows[number] = candidates[order[:k]]
    return rows, np.take_along_axis(products, rows, axis=1)


__all__ = ["nearest"]
