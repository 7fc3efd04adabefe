"""Put duplicates into groups that do not chain: each member is a duplicate of the keeper."""

# N rows · M rows of the other collection

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np

from .pairs import Pairs, compare
from .pictures import Pictures


@dataclass(frozen=True)
class Member:
    """Row that duplicates the keeper of its group.

    Args:
        row: Row of the collection.
        is_exact: Whether its pixels equal those of the keeper.
        similarity: Cosine similarity to the keeper.
        agreement: Agreement of the pixels with the keeper.
    """

    row: int
    is_exact: bool
    similarity: float
    agreement: float


Groups = dict[int, list[Member]]  # members by row of the keeper


def first_of_each(hashes: list[bytes]) -> tuple[np.ndarray, dict[int, list[int]]]:
    """Find exact copies.

    Args:
        hashes: Hashes of the pixels, (N,).

    Returns:
        First row of each different image, ascending, and the other rows of each of them.
    """
    first: dict[bytes, int] = {}
    copies: dict[int, list[int]] = defaultdict(list)
    for row, digest in enumerate(hashes):
        if first.setdefault(digest, row) != row:
            copies[first[digest]].append(row)
    return np.array(sorted(first.values()), dtype=np.int64), copies


def group_within(
    directions: np.ndarray,
    pictures: Pictures,
    pairs: Pairs,
    similarity: float,
    agreement: float,
) -> Groups:
    """Group the duplicates of a collection.

    Keepers are chosen by size in pixels, then by row. A neighbor of a member belongs to the group
    only if it is a duplicate of the keeper, too.

    Args:
        directions: Vectors of length 1, (N, E).
        pictures: Images, one per row.
        pairs: Pairs of neighbors.
        similarity: Lowest cosine similarity of duplicates.
        agreement: Lowest agreement of duplicates.
    """
    neighbors: dict[int, list[int]] = defaultdict(list)
    is_duplicate = (pairs.agreements >= agreement) & (pairs.similarities >= similarity)
    for a, b in zip(pairs.first[is_duplicate], pairs.second[is_duplicate], strict=True):
        neighbors[int(a)].append(int(b))
    groups: Groups = {}
    taken: set[int] = set()
    for keeper in np.lexsort((np.arange(len(directions)), -pictures.num_pixels)).tolist():
        if keeper in taken or keeper not in neighbors:
            continue
        members: list[Member] = []
        seen, waiting = {keeper}, sorted(neighbors[keeper])
        while waiting:
            rows = np.array([row for row in waiting if row not in seen and row not in taken])
            seen.update(waiting)
            waiting = []
            if len(rows) == 0:
                break
            agreements = compare(pictures, pictures, np.full(len(rows), keeper), rows)
            similarities = directions[rows] @ directions[keeper]
            for row, value, cosine in zip(rows.tolist(), agreements, similarities, strict=True):
                if value >= agreement and cosine >= similarity - 1e-6:
                    members.append(Member(row, False, float(cosine), float(value)))
                    waiting += neighbors[row]
        if members:
            groups[keeper] = members
            taken.update([keeper, *(member.row for member in members)])
    return groups


def with_copies(groups: Groups, rows: np.ndarray, copies: dict[int, list[int]]) -> Groups:
    """Return groups of rows of the collection, exact copies included.

    Args:
        groups: Groups of different images, by their place in `rows`.
        rows: First row of each different image.
        copies: Further rows of the same pixels, by first row.
    """
    complete: Groups = {
        first: [Member(row, True, 1.0, 1.0) for row in others] for first, others in copies.items()
    }
    for place, members in groups.items():
        for member in members:
            complete.pop(int(rows[member.row]), None)
        keeper = int(rows[place])
        found = complete.get(keeper, []) + members_with_copies(members, rows, copies)
        complete[keeper] = sorted(found, key=lambda member: member.row)
    return dict(sorted(complete.items()))


def members_with_copies(
    members: list[Member], rows: np.ndarray, copies: dict[int, list[int]]
) -> list[Member]:
    """Return members by row of the collection, with the exact copies of each of them.

    Args:
        members: Members, by their place in `rows`.
        rows: First row of each different image.
        copies: Further rows of the same pixels, by first row.
    """
    complete = [
        replace(member, row=row)
        for member in members
        for row in (int(rows[member.row]), *copies.get(int(rows[member.row]), ()))
    ]
    return sorted(complete, key=lambda member: member.row)


def group_between(
    hashes: list[bytes], other_hashes: list[bytes], pairs: Pairs | None, agreement: float | None
) -> Groups:
    """Group the rows of a collection that duplicate a row of another one, by that row.

    Args:
        hashes: Hashes of the pixels, (N,).
        other_hashes: Hashes of the pixels of the other collection, (M,).
        pairs: Pairs of a row and a row of the other collection; None for exact copies only.
        agreement: Lowest agreement of duplicates; None for exact copies only.
    """
    first: dict[bytes, int] = {}
    for row, digest in enumerate(other_hashes):
        first.setdefault(digest, row)
    best: dict[int, tuple[int, Member]] = {}
    if pairs is not None and agreement is not None:
        order = np.lexsort((pairs.second, -pairs.similarities, -pairs.agreements))
        for place in order[pairs.agreements[order] >= agreement].tolist():
            row, other = int(pairs.first[place]), int(pairs.second[place])
            values = float(pairs.similarities[place]), float(pairs.agreements[place])
            best.setdefault(row, (other, Member(row, False, *values)))
    groups: Groups = defaultdict(list)
    for row, digest in enumerate(hashes):
        if digest in first:
            groups[first[digest]].append(Member(row, True, 1.0, 1.0))
        elif row in best:
            groups[best[row][0]].append(best[row][1])
    return dict(sorted(groups.items()))


__all__ = [
    "Groups",
    "Member",
    "first_of_each",
    "group_between",
    "group_within",
    "members_with_copies",
    "with_copies",
]
