"""Format of pixels that a model reads, and a check of the values that image files hold."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..pixel_scale import check_pixel_range

SMALL_PART = 1 / 8  # of the range; 13 bits in a file of 16 bits use exactly this part

# Smallest and largest value in a file, and the values that became black and white.
ValueRanges = tuple[tuple[float, float], tuple[float, float]] | None


@dataclass(frozen=True)
class PixelFormat:
    """Pixels that a model reads.

    Args:
        num_channels: Number of channels: 1 is gray, 3 is RGB. Other numbers have no colors; an
            image then needs exactly as many channels.
        pixel_range: Values of black and white in files of more than eight bits; None for the
            smallest and the largest value of the type of the file (0 and 1 for floats). Files of at
            most eight bits always have the range 0 to 255.

    Raises:
        ValueError: If a value is out of range.
    """

    num_channels: int = 3
    pixel_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.num_channels < 1:
            raise ValueError(f"num_channels ({self.num_channels}) must be at least 1.")
        object.__setattr__(self, "pixel_range", check_pixel_range(self.pixel_range))


@dataclass(frozen=True)
class DecodedPixels:
    """Pixels of one image on the scale of eight bits.

    Args:
        pixels: (H, W, C): uint8, or float32 from 0 to 255 for files of more than eight bits.
        value_range: Smallest and largest value in the file; None for at most eight bits.
        full_range: Values that became 0 and 255; None for at most eight bits.
    """

    pixels: np.ndarray
    value_range: tuple[float, float] | None = None
    full_range: tuple[float, float] | None = None

    @property
    def ranges(self) -> ValueRanges:
        """The values in the file and the range that was applied; None for at most eight bits."""
        if self.value_range is None or self.full_range is None:
            return None
        return self.value_range, self.full_range


class RangeCheck:
    """Find the images whose values do not fit the range that was applied to them.

    The values do not fit if they use less than 1/8 of the range, counted from zero, or lie outside
    of it. One warning for all images names the first one.
    """

    def __init__(self) -> None:
        self.num_images = 0
        self.largest = -math.inf
        self._first: tuple[str, tuple[float, float], tuple[float, float]] | None = None
        self._has_warned = False

    def add(self, name: str, image: DecodedPixels | ValueRanges) -> None:
        """Check one image.

        Args:
            name: Name of the image.
            image: Image, or only its ranges.
        """
        ranges = image.ranges if isinstance(image, DecodedPixels) else image
        if ranges is None or fits(*ranges):
            return
        self.num_images += 1
        self.largest = max(self.largest, ranges[0][1])
        if self._first is None:
            self._first = name, *ranges

    def warning_once(self) -> str | None:
        """Return the warning in one line the first time that there is one, otherwise None."""
        warning = None if self._has_warned else self.warning()
        self._has_warned = self._has_warned or warning is not None
        return warning

    def warning(self) -> str | None:
        """Return the warning in one line, or None if all images fit."""
        if self._first is None:
            return None
        name, (low, high), (start, end) = self._first
        is_outside = low < start or high > end
        fault = "of which some lie outside of" if is_outside else "which is less than 1/8 of"
        others = self.num_images - 1
        more = f", as do {others} other images" if others > 1 else ", as does 1 other image"
        bits = f"--bits N with N of at least {_bits_for(self.largest)}, or "
        return (
            f"{name} has values from {_number(low)} to {_number(high)}, {fault} the range "
            f"{_number(start)} to {_number(end)}{more if others else ''}; the largest value is "
            f"{_number(self.largest)}. Declare the scale of the data: "
            f"{bits if low >= 0 and self.largest > 1 else ''}--pixel-range LOW HIGH."
        )


def _bits_for(value: float) -> int:
    """Return the number of bits of the smallest integers that hold a value."""
    return math.ceil(value).bit_length()


def fits(value_range: tuple[float, float], full_range: tuple[float, float]) -> bool:
    """Return whether values lie within a range and use at least 1/8 of it, counted from zero.

    An image that is zero everywhere shows no scale, so it fits.
    """
    (low, high), (start, end) = value_range, full_range
    if low < start or high > end:
        return False
    zero = min(max(0.0, start), end)
    used = max(high, zero) - min(low, zero)
    return used == 0 or used >= SMALL_PART * (end - start)


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:.6g}"


__all__ = ["DecodedPixels", "PixelFormat", "RangeCheck", "ValueRanges", "fits"]
