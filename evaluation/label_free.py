"""Measures of an embedding that need no labels: they see collapse before an accuracy does."""

from __future__ import annotations

import numpy as np
from torch import Tensor

# N images · E embedding


def feature_standard_deviation(vectors: Tensor | np.ndarray) -> float:
    """Return the spread of the normalised vectors (SimSiam, arXiv 2011.10566, Sec. 4.1).

    Standard deviation of each dimension of the L2-normalised vectors, averaged over dimensions,
    times sqrt(E).

    Args:
        vectors: (N, E).

    Returns:
        unitless, in [0, 1]: close to 1 where directions are isotropic, 0 where all vectors are the
        same.

    Raises:
        ValueError: if there is no vector.
    """
    vectors = _as_float64(vectors)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    directions = vectors / np.maximum(norms, np.finfo(np.float64).tiny)
    return float(directions.std(axis=0).mean() * np.sqrt(vectors.shape[1]))


def rankme(vectors: Tensor | np.ndarray, epsilon: float = 1e-7) -> float:
    """Return the effective rank of the vectors (RankMe, arXiv 2210.02885, Eq. 1 and 2).

    The exponential of the entropy of the singular values divided by their sum.

    Args:
        vectors: (N, E), neither centred nor normalised. More images than dimensions give the
            paper's measure; with fewer it is bounded by N.
        epsilon: added to the normalised singular values; the paper's value for float32.

    Returns:
        dimensions in use, from about 1 (collapse to a line) to min(N, E).

    Raises:
        ValueError: if there is no vector.
    """
    singular_values = np.linalg.svd(_as_float64(vectors), compute_uv=False)  # (min(N, E),)
    total = max(singular_values.sum(), np.finfo(np.float64).tiny)  # all-zero vectors: no 0 / 0
    shares = singular_values / total + epsilon
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _as_float64(vectors: Tensor | np.ndarray) -> np.ndarray:
    if isinstance(vectors, Tensor):
        vectors = vectors.detach().cpu().double().numpy()
    vectors = np.asarray(vectors, dtype=np.float64)
    if vectors.ndim != 2 or vectors.size == 0:
        raise ValueError(f"vectors must be (N, E) with N and E above 0, not {vectors.shape}.")
    return vectors
