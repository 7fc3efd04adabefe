"""Checks of the ranges of configuration fields; NaN and infinity are outside of every range."""

import math
from collections.abc import Iterable, Mapping
from typing import Any


def check_least(config: Any, least: Mapping[str, float]) -> None:
    """Check that fields are finite and not below their least value.

    Args:
        config: Configuration.
        least: Least allowed value by name of the field.

    Raises:
        ValueError: If a value is below its limit, or not finite.
    """
    for name, limit in least.items():
        value = getattr(config, name)
        if not (math.isfinite(value) and value >= limit):
            rule = "0 or more" if limit == 0 else f"at least {limit}"
            raise ValueError(f"{name} ({value}) must be {rule}.")


def check_positive(config: Any, names: Iterable[str], usual: str) -> None:
    """Check that fields are finite and above 0.

    Args:
        config: Configuration.
        names: Names of the fields.
        usual: Clause on the usual values, for the message.

    Raises:
        ValueError: If a value is 0 or less, or not finite.
    """
    for name in names:
        value = getattr(config, name)
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} ({value}) must be above 0; {usual}.")


def check_fractions(config: Any, names: Iterable[str]) -> None:
    """Check that fields are between 0 and 1, both included.

    Args:
        config: Configuration.
        names: Names of the fields.

    Raises:
        ValueError: If a value is outside.
    """
    for name in names:
        value = getattr(config, name)
        if not 0 <= value <= 1:
            raise ValueError(f"{name} ({value}) must be between 0 and 1.")


def check_mlp_ratio(config: Any, name: str, width: int) -> None:
    """Check that a ratio gives the hidden layer of an MLP a width of at least 1.

    Args:
        config: Configuration.
        name: Name of the field with the ratio.
        width: Width of the tokens.

    Raises:
        ValueError: If the hidden layer would have no channel, or the ratio is not finite.
    """
    ratio = getattr(config, name)
    if not math.isfinite(ratio) or int(width * ratio) < 1:
        raise ValueError(
            f"{name} ({ratio}) must give the MLP a width of at least 1; the usual choice is 4."
        )


__all__ = ["check_fractions", "check_least", "check_mlp_ratio", "check_positive"]
