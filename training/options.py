"""Fields of a configuration that describe and check themselves."""

from __future__ import annotations

import math
from dataclasses import Field, field
from typing import Any


def option(default: Any, text: str) -> Any:
    """Return a dataclass field with a default, lists copied, and a text for `--help`."""
    if isinstance(default, (list, tuple)):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


ABOVE_0 = 1e-12  # as a least


def check_limits(entry: Field[Any], value: Any, least: float, most: float) -> None:
    """Check a field of numbers; two of them are a range above 0.

    Raises:
        ValueError: with the rule, the value and what the field means.
    """
    text = entry.metadata["help"]
    numbers = value if isinstance(value, list) else [value]
    if isinstance(value, list) and len(value) != (count := len(entry.default_factory())):  # type: ignore[operator,misc]
        raise ValueError(f"{entry.name} ({value}) must be {count} numbers: {text}.")
    if not all(least <= number <= most for number in numbers):
        rule = "above 0" if least == ABOVE_0 else f"at least {least:g}"
        if most < math.inf:
            rule = f"between {least:g} and {most:g}" if least == 0 else f"{rule}, at most {most:g}"
        raise ValueError(f"{entry.name} ({value}) must be {rule}: {text}.")
    if len(numbers) == 2 and not 0 < numbers[0] <= numbers[1]:
        raise ValueError(f"{entry.name} ({value}) must be above 0, the least first: {text}.")


__all__ = ["option"]
