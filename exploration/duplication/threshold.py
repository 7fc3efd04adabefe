"""Measure from which similarity and agreement on two images of a collection are duplicates.

Variants of the user's own images (re-encoded, resized, cropped, brightened) show what duplicates
look like to the encoder, and pairs of neighbors in the collection show what other images look like.
"""

# V variants · N rows · E embedding

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...atomic_output import atomic_output
from ..collection import CollectionImages, directions_of
from .alignment import agreement
from .density import FINEST, measure_density, stretched
from .pictures import Pictures, is_alike_in_shape, thumbnail
from .variants import VARIANTS

if TYPE_CHECKING:
    from ...embedding.embedder import Embedder

NUM_SAMPLED = 200  # images that variants are made of
CANDIDATE_RECALL = 0.99  # share of the variants whose vectors are similar enough
CLEAN_RECALLS = (0.98, 0.95, 0.9, 0.8)  # share of the variants above what other images reach
MAX_RECALL = 0.95  # share of the variants that are found; more would be bought with false ones
DUPLICATE_SHARE = 0.1  # assumed share of the images that have a near duplicate
LEAST_TAIL = 20  # rows that the tail of the other images is measured on
TAIL_SHARE = 0.05  # of the rows; with more, a tail that falls ever faster seems too heavy
RATE_ERRORS = 0.5  # standard errors that the rate of the tail is lowered by
LEAST_BELOW = 0.5  # share of the rows below the limit; with fewer, it is no tail that is above
MIN_ROWS = 50  # below, the tail cannot be measured
UNLIKELY = 0.01  # chance below which the density does not explain a neighbor


@dataclass(frozen=True)
class Variants:
    """Variants of a sample of images, compared with the images that they are made of.

    Args:
        kinds: Kind of each variant, (V,).
        similarities: Cosine similarity to the image, (V,).
        agreements: Agreement with the image, (V,); 0 where the aspect ratio is another one.
    """

    kinds: list[str]
    similarities: np.ndarray
    agreements: np.ndarray

    @property
    def similarity(self) -> float:
        """Cosine similarity that almost all variants reach."""
        return float(np.quantile(self.similarities, 1 - CANDIDATE_RECALL, method="lower"))


@dataclass(frozen=True)
class Threshold:
    """Threshold of duplicates, with estimates of what it finds.

    Args:
        similarity: Lowest cosine similarity.
        agreement: Lowest agreement of the pixels; None if no value has the wanted precision.
        precision: Estimated share of true duplicates among those that are found.
        recall: Estimated share of the duplicates that is found.
        agreements: Agreements of the curve, ascending.
        precisions: Estimated precision at each of them.
        recalls: Estimated recall at each of them.
        variants: Variants that it was measured on.
        others: Highest agreement of each row with another one, (N,).
    """

    similarity: float
    agreement: float | None
    precision: float
    recall: float
    agreements: np.ndarray = field(repr=False)
    precisions: np.ndarray = field(repr=False)
    recalls: np.ndarray = field(repr=False)
    variants: Variants = field(repr=False)
    others: np.ndarray = field(repr=False)


def make_variants(
    images: CollectionImages,
    rows: np.ndarray,
    directions: np.ndarray,
    pictures: Pictures,
    embedder: Embedder,
    seed: int,
) -> Variants:
    """Make one variant of each kind of a sample of images, embed them and compare them.

    Args:
        images: Images of the collection.
        rows: Rows of the collection to choose from, (N,).
        directions: Vectors of these rows of length 1, (N, E).
        pictures: Images of these rows.
        embedder: Embedder of the collection.
        seed: Random seed of the sample and of the variants.
    """
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.permutation(len(rows))[:NUM_SAMPLED])
    kinds, similarities, agreements = [], [], []
    for place in sample:
        picture = images.picture(int(rows[place]))
        made = [make(picture, rng) for make in VARIANTS.values()]
        kinds += list(VARIANTS)
        similarities.append(directions_of(embedder(made)) @ directions[place])
        own = np.repeat(pictures.thumbnails[place][None], len(made), axis=0)
        values = agreement(own, np.stack([thumbnail(variant) for variant in made]))
        sizes = np.array([variant.size for variant in made])
        own_sizes = np.repeat(pictures.sizes[place][None], len(made), axis=0)
        agreements.append(np.where(is_alike_in_shape(own_sizes, sizes), values, 0))
    return Variants(kinds, np.concatenate(similarities), np.concatenate(agreements))


def choose_threshold(variants: Variants, ranked: np.ndarray, precision: float) -> Threshold:
    """Choose the lowest agreement of the wanted precision.

    Precision is estimated as 1 - F / H: H is the share of the images that have a duplicate at this
    agreement, F the share of the images that have one though none of their neighbors is. H is at
    least what it is if one image in ten has a duplicate. F is a sum of two parts:

    - What the density of the images around each of them lets expect, see `measure_density`.
    - Pairs that the density does not explain, for example pictures of a series. Rows whose best
      agreement is below that of 98 % of the variants count as images without a duplicate. Above,
      duplicates of the collection itself would be counted as false ones, so that the number is
      extrapolated (exponential excesses over a threshold: Pickands, Annals of Statistics 3, 1975).
      If no threshold is precise enough, as other images are as close as the weakest variants, the
      limit is raised to 95, 90 and 80 %. Duplicates below the limit are subtracted, in the number
      that the pairs of high agreement let expect.

    Both parts are rather too large. If all rows in the second part, without the first one, give
    less, as on images that are hardly alike, that is F. The second part needs half of the rows
    below its limit; if others are above it, they are no tail, and F is 1.

    Args:
        variants: Variants of a sample of images.
        ranked: Agreements of each row with its neighbors, the highest first, (N, K); 0 where there
            are fewer.
        precision: Wanted precision, 0 to 1.
    """
    is_candidate = variants.similarities >= variants.similarity
    found = np.where(is_candidate, variants.agreements, 0)
    least = float(np.quantile(found, 1 - MAX_RECALL, method="lower"))
    agreements = 1 - np.exp(-np.linspace(0.5, -np.log(FINEST), 400))
    agreements = np.unique(np.append(agreements, least))
    recalls = (found[None] >= agreements[:, None]).mean(axis=1)
    others = ranked[:, 0]
    seen = (others[None] >= agreements[:, None]).mean(axis=1)
    density = measure_density(ranked, float(np.median(found)))
    by_chance = density.share(agreements)
    explained = -np.expm1(-density.expected(others)) >= UNLIKELY
    unexplained = np.where(explained, 0, others)
    place = None
    for recall in CLEAN_RECALLS:
        clean = float(np.quantile(found, 1 - recall, method="lower"))
        series = _false_share(unexplained, found, agreements, clean)
        false = np.minimum(by_chance + series, _false_share(others, found, agreements, clean))
        found_share = np.maximum(seen, DUPLICATE_SHARE * recalls + false)
        precisions = np.maximum(1 - false / np.maximum(found_share, 1e-12), 0)
        good = (precisions >= precision) & (agreements >= max(least, clean)) & (recalls > 0)
        if good.any():
            place = int(np.argmax(good))
            break
    return Threshold(
        variants.similarity,
        None if place is None else float(agreements[place]),
        0.0 if place is None else float(precisions[place]),
        0.0 if place is None else float(recalls[place]),
        agreements,
        precisions,
        recalls,
        variants,
        others,
    )


def _false_share(
    others: np.ndarray, found: np.ndarray, agreements: np.ndarray, limit_agreement: float
) -> np.ndarray:
    """Return the share of images that another one is taken for a duplicate of, by agreement."""
    values = np.sort(stretched(others))
    limit = stretched(limit_agreement)
    if (values < limit).mean() < LEAST_BELOW:
        return np.ones(len(agreements))
    below = values[(values > 0) & (values < limit)]
    places = stretched(agreements)
    counted = len(below) - np.searchsorted(below, places)
    size = min(len(below), max(LEAST_TAIL, int(TAIL_SHARE * len(values))))
    if size < LEAST_TAIL:  # hardly any image has a neighbor that is like it
        above = float(len(below)) / 2
        rate = 1.0
    else:
        start = below[-size]
        excesses = below[-size:] - start
        own = stretched(found)
        own = own[(own >= start) & (own < limit)] - start
        # duplicates among them: as many as there are for the upper half of the variants
        share = float((others >= np.median(found)).mean()) * 2
        duplicates = min(share * len(others) * len(own) / len(found), size - LEAST_TAIL)
        clean = size - duplicates
        mean = (excesses.sum() - duplicates * (own.mean() if len(own) else 0)) / clean
        rate = _rate(float(np.clip(mean, 0, limit)), limit - start)
        error = 1 / (np.sqrt(clean) * max(float(excesses.std()), 1e-6))  # by Fisher's information
        rate = max(rate - RATE_ERRORS * error, 1e-3 / (limit - start))
        # number of rows above the limit that are expected if excesses are exponential
        above = clean / np.expm1(min(rate * (limit - start), 700))
    tail = above * np.exp(-rate * np.maximum(places - limit, 0))
    return np.minimum((counted + tail) / max(1, len(values)), 1)


def _rate(mean: float, limit: float) -> float:
    """Return the rate of an exponential distribution that is cut off at a limit.

    It is the estimate of maximum likelihood, from the mean.
    """
    from scipy.optimize import brentq

    low, high = 1e-3 / limit, 500 / limit

    def difference(rate: float) -> float:
        return 1 / rate - limit / float(np.expm1(rate * limit)) - mean

    if difference(low) <= 0:  # the density does not fall towards the limit
        return low
    return float(brentq(difference, low, high)) if difference(high) < 0 else high


def draw_threshold(threshold: Threshold, path: Path) -> None:
    """Draw the curves of precision and recall above the histograms, as a PNG.

    Args:
        threshold: Threshold to draw.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), layout="constrained")
    curves, histograms = figure.subplots(2, 1, sharex=True)
    places = stretched(threshold.agreements)
    curves.plot(places, threshold.precisions, color="#0b6fb8", label="precision (estimated)")
    curves.plot(places, threshold.recalls, color="#d1603d", label="recall (variants)")
    curves.set_ylim(-0.02, 1.02)
    bins = np.linspace(0, -np.log(FINEST), 47)
    for values, color, label in (
        (threshold.others, "#8a8a8a", "images and their nearest other image"),
        (threshold.variants.agreements, "#d1603d", "images and their own variants"),
    ):
        weights = np.full(len(values), 1 / max(1, len(values)))
        histograms.hist(
            stretched(values), bins, weights=weights, color=color, alpha=0.6, label=label
        )
    ticks = [0, 0.5, 0.9, 0.97, 0.99, 0.997, 0.999, 0.9999]
    histograms.set_xticks(stretched(np.array(ticks)), [f"{tick:g}" for tick in ticks])
    histograms.set_xlabel("agreement of the pixels")
    histograms.set_ylabel("share")
    for axes in (curves, histograms):
        if threshold.agreement is not None:
            label = f"threshold {threshold.agreement:.4f}"
            place = float(stretched(threshold.agreement))
            axes.axvline(place, color="black", linestyle="--", label=label)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_output(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=100)


__all__ = [
    "MIN_ROWS",
    "Threshold",
    "Variants",
    "choose_threshold",
    "draw_threshold",
    "make_variants",
]
