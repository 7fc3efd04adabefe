"""Start a student from some of the blocks of a deeper encoder (DistilBERT, arXiv 1910.01108)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

BLOCK = re.compile(r"layers\.([0-9]+)\.")  # start of the names of a block's parameters


def spaced_blocks(num_blocks: int, num_wanted: int) -> list[int]:
    """Return the indices of evenly spaced blocks, with the first and, from two on, the last.

    Args:
        num_blocks: Number of blocks of the deeper encoder.
        num_wanted: Number of blocks of the student, at most `num_blocks`.
    """
    gaps = max(1, num_wanted - 1)
    return [round(index * (num_blocks - 1) / gaps) for index in range(num_wanted)]


def weights_of_blocks(weights: Mapping[str, Tensor], blocks: list[int]) -> dict[str, Tensor]:
    """Return the weights of an encoder that has only some of its blocks, in their order."""
    renamed = {block: index for index, block in enumerate(blocks)}
    kept: dict[str, Tensor] = {}
    for name, value in weights.items():
        match = BLOCK.match(name)
        if match is None:
            kept[name] = value
        elif int(match[1]) in renamed:
            kept[BLOCK.sub(f"layers.{renamed[int(match[1])]}.", name, count=1)] = value
    return kept


__all__ = ["spaced_blocks", "weights_of_blocks"]
