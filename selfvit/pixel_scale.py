"""Scale of pixels: the range of values of a type, and its place on the scale of eight bits.

The reader of image files and the image processor of a checkpoint both use this rule. Every folder
of the package may import this module; it needs the standard library only.
"""

from __future__ import annotations

from typing import Any

WHITE = 255.0  # the largest value on the scale of eight bits
# Limits of a declared range, within which 32-bit floats scale its values.
LARGEST, SMALLEST_SPAN = 1e30, 1e-30
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
        ValueError: If it is not two numbers in ascending order, or they are too large or too close
            to each other to compute with.
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
    if max(-low, high) > LARGEST or high - low < SMALLEST_SPAN:
        raise ValueError(
            f"pixel_range ({low:g} {high:g}) must lie within -{LARGEST:g} and {LARGEST:g}, and its "
            f"numbers differ by at least {SMALLEST_SPAN:g}; no other values can be computed with."
        )
    return low, high


def declared_range(pixel_range: Any, bits: int | None) -> tuple[float, float] | None:
    """Return the range that `--pixel-range` or `--bits` declares, or None without both.

    Args:
        pixel_range: Values of black and white, or None.
        bits: Number of bits of the values, or None; 12 means 0 to 4095.

    Raises:
        ValueError: If the range is not two numbers in ascending order, or bits contradict it.
    """
    checked = check_pixel_range(pixel_range)
    if bits is None:
        return checked
    if not 1 <= bits <= 32:
        raise ValueError(f"bits ({bits}) must be from 1 to 32, the bits of a value of a pixel.")
    of_bits = range_of_type("u", bits)
    if checked not in (None, of_bits):
        low, high = checked
        raise ValueError(
            f"bits ({bits}) means the range 0 to {of_bits[1]:g}, but pixel_range is {low:g} to "
            f"{high:g}; give --bits or --pixel-range."
        )
    return of_bits


__all__ = [
    "GRAY_WEIGHTS",
    "WHITE",
    "check_pixel_range",
    "declared_range",
    "range_of_type",
    "to_eight_bit_scale",
]
