"""Configuration fields that describe and check themselves."""

from __future__ import annotations

import math
from dataclasses import Field, field, fields
from typing import Any


def option(
    default: Any,
    text: str,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float = math.inf,
    choices: tuple[Any, ...] | None = None,
    resumable: bool = False,
    private: bool = False,
    any_length: bool = False,
) -> Any:
    """Return a dataclass field that knows its help text and its allowed values.

    Args:
        default: Default value. A list is copied for each instance.
        text: Help text, one sentence.
        minimum: Smallest allowed number; for a list, a limit for each of its numbers.
        above: Number that the value must exceed; an alternative to `minimum`.
        maximum: Largest allowed number.
        choices: Allowed values; None allows all values of the type.
        resumable: Whether the value may change when a run is resumed, because it changes no weight.
        private: Whether the value stays out of `training.yaml`.
        any_length: Whether a list may have another length than its default.
    """
    metadata = {
        "help": text.rstrip("."),
        "minimum": minimum,
        "above": above,
        "maximum": maximum,
        "choices": choices,
        "resumable": resumable,
        "private": private,
        "any_length": any_length,
    }
    if isinstance(default, (list, tuple)):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check_fields(config: Any) -> None:
    """Check every field of a dataclass made of `option` fields.

    Raises:
        ValueError: If a value is out of range or not among the choices; the message has the rule,
            the value and the help text.
    """
    for entry in fields(config):
        value, allowed = getattr(config, entry.name), entry.metadata
        if allowed["choices"] is not None and value not in allowed["choices"]:
            known = ", ".join(str(choice) for choice in allowed["choices"])
            raise ValueError(f"{entry.name} ({value!r}) must be one of: {known}.")
        is_number = allowed["minimum"] is not None or allowed["above"] is not None
        if is_number and value is not None:
            _check_numbers(entry, value)


def _check_numbers(entry: Field[Any], value: Any) -> None:
    """Check a number, or a list of as many numbers as the default has; two are a positive range.

    A list of any length has no range.
    """
    any_length = entry.metadata["any_length"]
    text, maximum = entry.metadata["help"], entry.metadata["maximum"]
    minimum, above = entry.metadata["minimum"], entry.metadata["above"]
    numbers = value if isinstance(value, list) else [value]
    if not all(isinstance(number, int | float) for number in numbers):
        raise ValueError(f"{entry.name} ({value!r}) must be a number, not a text: {text}.")
    has_length = isinstance(value, list) and not any_length
    if has_length and len(value) != (count := len(entry.default_factory())):  # type: ignore[operator,misc]
        raise ValueError(f"{entry.name} ({value}) must be {count} numbers: {text}.")
    is_allowed = all(
        (minimum is None or number >= minimum)
        and (above is None or number > above)
        and number <= maximum
        for number in numbers
    )
    if not is_allowed:
        raise ValueError(
            f"{entry.name} ({value}) must be {_rule(minimum, above, maximum)}: {text}."
        )
    if len(numbers) == 2 and not any_length and not 0 < numbers[0] <= numbers[1]:
        raise ValueError(
            f"{entry.name} ({value}) must be positive, the smaller number first: {text}."
        )


def _rule(minimum: float | None, above: float | None, maximum: float) -> str:
    if minimum is not None and maximum < math.inf:
        return f"between {minimum:g} and {maximum:g}"
    lower = f"at least {minimum:g}" if minimum is not None else f"above {above:g}"
    return lower if maximum == math.inf else f"{lower} and at most {maximum:g}"


__all__ = ["check_fields", "option"]
