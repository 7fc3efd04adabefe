"""Account of the images of a source: found, taken, and left out with the reason."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class LeftOut:
    """Image that a source does not contain.

    Args:
        name: Name of the file or row.
        reason: Reason why it was left out.
    """

    name: str
    reason: str


@dataclass
class Inventory:
    """Images that were found when a source was opened.

    Args:
        found: Number of images found; equals `taken + len(left_out)`.
        taken: Number of images in the source.
        left_out: Images that are not in the source.
        notes: Sentences about guesses and about files that are no images of the user.
    """

    found: int
    taken: int
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


__all__ = ["Inventory", "LeftOut"]
