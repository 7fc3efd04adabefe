"""Find exact copies and near duplicates in a collection, or between two collections."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..data.sources import Data
from .collection import Collection
from .duplication.groups import (
    Groups,
    first_of_each,
    group_between,
    group_within,
    members_with_copies,
    with_copies,
)
from .duplication.pairs import Pairs, pairs_between, pairs_within
from .duplication.pictures import Pictures, read_pictures
from .duplication.threshold import MIN_ROWS, Threshold, choose_threshold, make_variants


@dataclass(frozen=True)
class DuplicateGroup:
    """Images that show the same picture.

    Args:
        keep: Name of the image to keep.
        members: Names of its duplicates.
    """

    keep: str
    members: list[str]


@dataclass(frozen=True)
class DuplicatesResult:
    """Result of `duplicates`.

    Args:
        threshold: Lowest agreement of near duplicates; None if only exact copies were searched.
        groups: Groups, in the order of their keepers.
        kept_rows: Rows of the collection that are no member of a group.
        note: Remark on how they were found; "" for none.
        calibration: Measurement of the threshold; None if only exact copies were searched.
        rows: Rows of the groups.
    """

    threshold: float | None
    groups: list[DuplicateGroup]
    kept_rows: list[int] = field(repr=False)
    note: str = ""
    calibration: Threshold | None = field(default=None, repr=False)
    rows: Groups = field(default_factory=dict, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return threshold and groups as values that JSON can represent."""
        groups = [{"keep": group.keep, "members": group.members} for group in self.groups]
        measured = self.threshold is not None and self.calibration is not None
        return {
            "threshold": self.threshold,
            "similarity": self.calibration.similarity if measured else None,  # type: ignore[union-attr]
            "precision": self.calibration.precision if measured else None,  # type: ignore[union-attr]
            "recall": self.calibration.recall if measured else None,  # type: ignore[union-attr]
            "groups": groups,
        }


@dataclass(frozen=True)
class _Side:
    """Different images of a collection: rows, vectors and pictures."""

    rows: np.ndarray
    copies: dict[int, list[int]]
    directions: np.ndarray
    pictures: Pictures


def duplicates(
    vectors: str | os.PathLike[str] | Collection,
    *,
    against: str | os.PathLike[str] | Collection | None = None,
    precision: float = 0.99,
    data: Data | None = None,
    against_data: Data | None = None,
    checkpoint: str | None = None,
    device: str | None = None,
    seed: int = 0,
) -> DuplicatesResult:
    """Find images that show the same picture: exact copies and near duplicates.

    Near duplicates are neighbors whose vectors are similar and whose pixels agree after alignment.
    Both limits are measured on the images: with variants of a sample of them (re-encoded, resized,
    cropped by up to 5 %, brightness changed by up to 15 %), and with pairs of neighbors.

    Args:
        vectors: Folder of vectors, or the collection that was opened.
        against: Vectors of other images, of the same checkpoint: find the rows of `vectors` that
            duplicate one of them, for example test images in the training images. None to search
            within `vectors`.
        precision: Share of true duplicates among the near duplicates that the threshold is chosen
            for, above 0 and below 1.
        data: Images of `vectors`; None for those that their folder names.
        against_data: Images of `against`; None for those that their folder names.
        checkpoint: Checkpoint of the vectors; None for the one that their folder names.
        device: Device to compute on; None for the best available.
        seed: Random seed of the sample.

    Raises:
        FileNotFoundError: If there are no vectors, no checkpoint, or an image is gone.
        UnreadableImageError: If an image cannot be decoded.
        ValueError: If the vectors are of different checkpoints, or an argument has no valid value.
    """
    if not 0 < precision < 1:
        raise ValueError(f"precision ({precision}) must be above 0 and below 1, for example 0.99.")
    collection = vectors if isinstance(vectors, Collection) else Collection(vectors)
    other = against
    if other is not None and not isinstance(other, Collection):
        other = Collection(other)
    if other is not None:
        _check_same_checkpoint(collection, other)
    if len(collection) == 0 or (other is not None and len(other) == 0):
        return _result(collection, other, {}, None, "")
    images = collection.images(data)
    pictures = read_pictures(collection, images)
    side = _side_of(collection, pictures)
    other_side = None
    if other is not None:
        other_pictures = read_pictures(other, other.images(against_data))
        other_side = _side_of(other, other_pictures)
    if len(side.rows) < MIN_ROWS:
        groups = _group(side, other_side, None, None)
        note = (
            f"only exact copies were searched, as a threshold needs {MIN_ROWS} different images "
            f"and there are {len(side.rows)}"
        )
        return _result(collection, other, groups, None, note)
    embedder = collection.embedder(checkpoint, device=device)
    variants = make_variants(images, side.rows, side.directions, side.pictures, embedder, seed)
    pairs = _pairs(side, other_side, variants.similarity)
    threshold = choose_threshold(variants, pairs.ranked(len(side.rows)), precision)
    groups = _group(side, other_side, pairs, threshold)
    note = ""
    if threshold.agreement is None:
        note = (
            f"only exact copies were searched, as no threshold has a precision of {precision:g} "
            "on these images; choose a lower one with --precision"
        )
    return _result(collection, other, groups, threshold, note)


def _check_same_checkpoint(collection: Collection, other: Collection) -> None:
    first, second = collection.manifest, other.manifest
    if first is None or second is None:
        is_same = collection.metadata.get("model") == other.metadata.get("model")
    else:
        keys = set(first.checkpoint) & set(second.checkpoint)
        ignored = {"vector_dtype", "patch_grid", "engine", "quantization"}
        is_same = all(
            first.checkpoint.get(key) == second.checkpoint.get(key) for key in keys - ignored
        )
    if not is_same:
        raise ValueError(
            f"the vectors in {str(collection.folder)!r} and {str(other.folder)!r} must be of the "
            "same checkpoint, but are of different ones; embed both with one checkpoint."
        )


def _side_of(collection: Collection, pictures: Pictures) -> _Side:
    rows, copies = first_of_each(pictures.hashes)
    different = Pictures(
        [pictures.hashes[row] for row in rows], pictures.sizes[rows], pictures.thumbnails[rows]
    )
    return _Side(rows, copies, collection.directions[rows], different)


def _pairs(side: _Side, other: _Side | None, similarity: float) -> Pairs:
    if other is None:
        return pairs_within(side.directions, side.pictures, similarity)
    known = set(other.pictures.hashes)
    pairs = pairs_between(
        side.directions, side.pictures, other.directions, other.pictures, similarity
    )
    # exact copies do not show what other images look like
    is_near = np.array([side.pictures.hashes[row] not in known for row in pairs.first], dtype=bool)
    return Pairs(
        pairs.first[is_near],
        pairs.second[is_near],
        pairs.similarities[is_near],
        pairs.agreements[is_near],
    )


def _group(
    side: _Side,
    other: _Side | None,
    pairs: Pairs | None,
    threshold: Threshold | None,
) -> Groups:
    """Return groups of rows of the collection, by row of the keeper."""
    agreement = None if threshold is None else threshold.agreement
    if other is None:
        near: Groups = {}
        if pairs is not None and threshold is not None and agreement is not None:
            near = group_within(
                side.directions, side.pictures, pairs, threshold.similarity, agreement
            )
        return with_copies(near, side.rows, side.copies)
    near = group_between(side.pictures.hashes, other.pictures.hashes, pairs, agreement)
    return {
        int(other.rows[keeper]): members_with_copies(members, side.rows, side.copies)
        for keeper, members in near.items()
    }


def _result(
    collection: Collection,
    other: Collection | None,
    groups: Groups,
    threshold: Threshold | None,
    note: str,
) -> DuplicatesResult:
    keepers = (collection if other is None else other).ids
    named = [
        DuplicateGroup(keepers[keeper], [collection.ids[member.row] for member in members])
        for keeper, members in groups.items()
    ]
    removed = {member.row for members in groups.values() for member in members}
    kept = [row for row in range(len(collection)) if row not in removed]
    value = None if threshold is None else threshold.agreement
    return DuplicatesResult(value, named, kept, note, threshold, groups)


__all__ = ["DuplicateGroup", "DuplicatesResult", "duplicates"]
