"""Estimate how many images have an alike image by chance, from the images around each of them.

The number of other images within a small squared distance x of an image is modeled as a Poisson
variable with a mean proportional to x^r; 2 r is the intrinsic dimension of the images (Levina and
Bickel, NIPS 2004). 1 - agreement is the squared distance. The third nearest image gives the
density around an image, and the ratio of the distances of the second and the third one gives r, so
a duplicate of the image changes neither of them. Duplicates of its neighbors raise the estimate.
"""

# N rows · K neighbors · A agreements

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RANK = 3  # of the neighbor that gives the density
DENSE_SHARE = 0.25  # of the rows, that the rate is measured on: false duplicates are among them
FINEST = 1e-4  # difference of two agreements that counts


def stretched(agreements: np.ndarray | float) -> np.ndarray:
    """Return agreements on a scale on which values near 1 are apart: -log(1 - agreement)."""
    return -np.log(np.maximum(1 - np.clip(agreements, 0, 1), FINEST))


@dataclass(frozen=True)
class Density:
    """Density of the images around each row.

    Args:
        places: Stretched agreement of the third nearest image, (N,); 0 if there is none.
        rate: Exponent of the squared distance (r); infinite if no row has three neighbors.
    """

    places: np.ndarray
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
        # RANK - 1 over the volume up to the neighbor of that rank is the unbiased density
        return (RANK - 1) * np.exp(-self.rate * np.maximum(places - self.places, 0))


def measure_density(ranked: np.ndarray, duplicate: float) -> Density:
    """Measure the density of the images around each row.

    Args:
        ranked: Agreements of each row with its neighbors, the highest first, (N, K); 0 where there
            are fewer.
        duplicate: Agreement from which a neighbor is a duplicate, which is left out.
    """
    num_rows, num_neighbors = ranked.shape
    third = (ranked >= duplicate).sum(axis=1) + RANK - 1
    is_known = third < num_neighbors
    rows = np.arange(num_rows)
    third = np.minimum(third, num_neighbors - 1)
    places = np.where(is_known, stretched(ranked[rows, third]), 0.0)
    positive = places > 0
    if not positive.any():
        return Density(places, np.inf)
    is_dense = positive & (places >= np.quantile(places[positive], 1 - DENSE_SHARE))
    seconds = stretched(ranked[rows, np.maximum(third - 1, 0)])
    spacing = (RANK - 1) * float((seconds - places)[is_dense].mean())
    return Density(places, 1 / spacing if spacing > 0 else np.inf)


__all__ = ["Density", "measure_density", "stretched"]
