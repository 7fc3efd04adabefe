"""Inventory of a source: images found, taken and left out, with the reasons."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import printable, printable_line

MAX_REASONS = 4  # different reasons that one line names


@dataclass(frozen=True)
class LeftOut:
    """File or row that is known to be unusable before it is decoded.

    Args:
        name: Name of the file or row, as the id of an image.
        reason: Reason why it is left out.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class SkippedImage:
    """Image that was taken, but cannot be read.

    Args:
        id: Name of the image.
        reason: Reason why it cannot be read.
    """

    id: str
    reason: str


@dataclass(frozen=True)
class Inventory:
    """Images that a source found; `taken + len(left_out) == found`.

    Args:
        found: Number of image files or rows.
        taken: Number of images in the source; 0 if they are not counted, as those of a stream.
        left_out: Files or rows that are not in the source.
        notes: Remarks on how the data was read, one line each.
    """

    found: int
    taken: int
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def all_left_out(self, skipped: Sequence[SkippedImage] = ()) -> list[LeftOut]:
        """Return what is left out, together with the images that cannot be read.

        Args:
            skipped: Images of the source that cannot be read.
        """
        return [*self.left_out, *(LeftOut(image.id, image.reason) for image in skipped)]

    def summary(self, skipped: Sequence[SkippedImage] = ()) -> str | None:
        """Return one line with the numbers of images and the reasons; None if none is left out.

        Args:
            skipped: Images of the source that cannot be read.
        """
        left_out = self.all_left_out(skipped)
        if not left_out:
            return None
        reasons = group_reasons([image.reason for image in left_out])
        if self.taken == 0:
            return (
                f"images: those of the stream are not counted, {len(left_out)} left out ({reasons})"
            )
        return (
            f"images: {self.found} found, {self.found - len(left_out)} taken, {len(left_out)} left "
            f"out ({reasons})"
        )


def opening_lines(inventory: Inventory, label_rule: str | None) -> list[str]:
    """Return what to print of a source when it is opened: the label rule, then the notes.

    Args:
        inventory: Inventory of the source.
        label_rule: Rule that the labels were derived by, or None.
    """
    rule = [] if label_rule is None else [f"labels: {label_rule}"]
    return [*rule, *(f"note: {printable_line(note)}" for note in inventory.notes)]


def group_reasons(reasons: Sequence[str]) -> str:
    """Return the different reasons with their counts, the most frequent first.

    Reasons that differ in numbers only are counted together.

    Args:
        reasons: Reasons, one per image.
    """
    by_kind: dict[str, Counter[str]] = {}
    for reason in reasons:
        by_kind.setdefault(re.sub(r"\d+", "...", reason), Counter())[reason] += 1
    groups = sorted(by_kind.items(), key=lambda group: -group[1].total())
    texts = [
        f"{counts.total()} x {kind if len(counts) > 1 else next(iter(counts))}"
        for kind, counts in groups[:MAX_REASONS]
    ]
    if rest := groups[MAX_REASONS:]:
        texts.append(f"{sum(counts.total() for _, counts in rest)} for other reasons")
    return "; ".join(texts)


def write_left_out(path: Path, left_out: Iterable[LeftOut]) -> None:
    """Append names and reasons to a CSV file with the columns path and reason.

    Args:
        path: File to write, for example skipped.csv; a new file gets a header.
        left_out: Files or rows that are left out.
    """
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if file.tell() == 0:
            writer.writerow(["path", "reason"])
        writer.writerows((printable(entry.name), printable(entry.reason)) for entry in left_out)


def read_left_out(path: Path) -> list[LeftOut]:
    """Return the entries of a file that `write_left_out` wrote; none if there is no file.

    Args:
        path: File to read.
    """
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [LeftOut(row["path"], row["reason"]) for row in csv.DictReader(file)]


__all__ = [
    "Inventory",
    "LeftOut",
    "SkippedImage",
    "group_reasons",
    "opening_lines",
    "read_left_out",
    "write_left_out",
]
