"""Estimate how many images have an alike image by chance, from the images around each of them.

The number of other images within a small squared distance x of an image is modeled as a Poisson
variable with a mean proportional to x^r; 2 r is the intrinsic dimension of the images (Levina and
Bickel, NIPS 2004). 1 - agreement is the squared distance. The third nearest image gives the
density around an image, and the ratio of the distances of the second and the third one gives r, so
a duplicate of the image changes neither of them. An image whose third nearest image is a duplicate,
too, stands out from its eighth one, which then gives the density. Duplicates of its neighbors raise
the estimate.
"""

# N rows · K neighbors · A agreements

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RANK = 3  # of the neighbor that gives the density
FAR_RANK = 8  # of that for an image with several duplicates
MAX_GAP = 3.0  # between both, as a multiple of the mean spacing 1 / r; almost never wider by chance
DENSE_SHARE = 0.25  # of the rows, that the rate is measured on: false duplicates are among them
FINEST = 1e-4  # difference of two agreements that counts


def stretched(agreements: np.ndarray | float) -> np.ndarray:
    """Return agreements on a scale on which values near 1 are apart: -log(1 - agreement)."""
    return -np.log(np.maximum(1 - np.clip(agreements, 0, 1), FINEST))


@dataclass(frozen=True)
class Density:
    """Density of the images around each row.

    Args:
        places: Stretched agreement of a near image, (N,); 0 if there is none.
        ranks: Rank of that image among the neighbors, (N,).
        rate: Exponent of the squared distance (r); infinite if no row has three neighbors.
    """

    places: np.ndarray
    ranks: np.ndarray
    rate: float

    def expected(self, agreements: np.ndarray) -> np.ndarray:
        """Return the expected number of other images of at least one agreement.

        Args:
            agreements: Agreement of each row, (N,).

        Returns:
            Number of images, (N,).
        """
        return self._expected(stretched(agreements))

    def share(self, agreements: np.ndarray) -> np.ndarray:
        """Return the expected share of rows that another image agrees with by chance.

        Args:
            agreements: Lowest agreements, (A,).

        Returns:
            Share of the rows, (A,).
        """
        places = stretched(agreements)
        return np.array([-np.expm1(-self._expected(place)).mean() for place in places])

    def _expected(self, places: np.ndarray) -> np.ndarray:
        if not np.isfinite(self.rate):
            return np.zeros(len(self.places))
        # rank - 1 over the volume up to the neighbor of that rank is the unbiased density
        return (self.ranks - 1) * np.exp(-self.rate * np.maximum(places - self.places, 0))


def measure_density(ranked: np.ndarray, duplicate: float) -> Density:
    """Measure the density of the images around each row.

    Args:
        ranked: Agreements of each row with its neighbors, the highest first, (N, K); 0 where there
            are fewer.
        duplicate: Agreement from which a neighbor is a duplicate, which is left out.
    """
    num_skipped = (ranked >= duplicate).sum(axis=1)
    second, third, far = (_neighbor(ranked, num_skipped + k) for k in (RANK - 1, RANK, FAR_RANK))
    gaps = third - far
    usual = float(np.median(gaps[far > 0])) if (far > 0).any() else 0.0
    # the mean of a gap is the sum of 1 / (k r) over the ranks k that it spans
    rate = float(np.sum(1 / np.arange(RANK, FAR_RANK))) / usual if usual > 0 else np.inf
    is_group = gaps > MAX_GAP / rate  # the third neighbor is a duplicate, too
    places = np.where(is_group, far, third)
    ranks = np.where(is_group, FAR_RANK, RANK)
    is_usual = (third > 0) & ~is_group
    if not is_usual.any():
        return Density(places, ranks, np.inf)
    is_dense = is_usual & (third >= np.quantile(third[is_usual], 1 - DENSE_SHARE))
    spacing = (RANK - 1) * float((second - third)[is_dense].mean())
    return Density(places, ranks, 1 / spacing if spacing > 0 else np.inf)


def _neighbor(ranked: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Return the stretched agreement of one neighbor of each row, (N,); 0 if there is none."""
    num_rows, num_neighbors = ranked.shape
    values = stretched(ranked[np.arange(num_rows), np.minimum(ranks, num_neighbors) - 1])
    return np.where(ranks <= num_neighbors, values, 0.0)


__all__ = ["Density", "measure_density", "stretched"]
