"""Scale of pixels: the range of values of a type, and its place on the scale of eight bits.

The reader of image files and the image processor of a checkpoint both use this rule. Every folder
of the package may import this module; it needs the standard library only.
"""

from __future__ import annotations

from typing import Any

WHITE = 255.0  # the largest value on the scale of eight bits
GRAY_WEIGHTS = (0.299, 0.587, 0.114)  # red, green, blue; ITU-R 601, as in Pillow's mode L


def range_of_type(kind: str, bits: int) -> tuple[float, float]:
    """Return the smallest and the largest value of a type of pixels; floats are 0 to 1.

    Args:
        kind: "u" for unsigned integers, "i" for signed integers, "f" for floats, as in NumPy.
        bits: Number of bits per value.

    Raises:
        ValueError: If pixels cannot have this kind.
    """
    if kind == "u":
        return 0.0, float(2**bits - 1)
    if kind == "i":
        return float(-(2 ** (bits - 1))), float(2 ** (bits - 1) - 1)
    if kind == "f":
        return 0.0, 1.0
    raise ValueError(f"pixels must be integers, floats or booleans, not of the kind {kind!r}.")


def to_eight_bit_scale(values: Any, pixel_range: tuple[float, float]) -> Any:
    """Return floats from 0 to 255, not rounded: the ends of the range become 0 and 255.

    Values outside of the range are clipped, so nothing wraps.

    Args:
        values: Array or tensor of floats, of any shape.
        pixel_range: Smallest and largest value.
    """
    low, high = pixel_range
    return ((values - low) * (WHITE / (high - low))).clip(0.0, WHITE)


def check_pixel_range(pixel_range: Any) -> tuple[float, float] | None:
    """Return a declared range as two floats, or None if there is none.

    Raises:
        ValueError: If it is not two finite numbers in ascending order.
    """
    if pixel_range is None:
        return None
    try:
        low, high = (float(value) for value in pixel_range)
    except (TypeError, ValueError):
        low, high = 0.0, 0.0
    if not -float("inf") < low < high < float("inf"):
        is_list = isinstance(pixel_range, tuple | list)
        text = " ".join(map(str, pixel_range)) if is_list else repr(pixel_range)
        raise ValueError(
            f"pixel_range ({text}) must be two numbers, the value of black and the larger value of "
            "white; for 12 bits, 0 and 4095."
        )
    return low, high


__all__ = ["GRAY_WEIGHTS", "WHITE", "check_pixel_range", "range_of_type", "to_eight_bit_scale"]
