"""A fault of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Fault of a checkpoint.

    Args:
        fault: Name of the fault, in a few words.
        what: Observation that reveals the fault.
        why: Consequence for users of the checkpoint.
        fix: Suggested fix.
    """

    fault: str
    what: str
    why: str
    fix: str


__all__ = ["Finding"]
