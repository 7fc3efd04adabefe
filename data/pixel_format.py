"""Format of pixels that a model reads, and a check of the values that image files hold."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np

from ..errors import printable_line
from ..pixel_scale import check_pixel_range

SMALL_PART = 1 / 8  # of the range; 13 bits in a file of 16 bits use exactly this part

# Smallest and largest value in a file, and the values that became black and white.
ValueRanges = tuple[tuple[float, float], tuple[float, float]] | None

TRANSPARENCY, FOURTH_BAND, FRAMES, NAN = "transparency", "fourth band", "frames", "nan"
# Warning of each part of a file that is not read.
UNREAD = {
    TRANSPARENCY: "{name} has transparent pixels{others}. Transparency is not read: the colors "
    "stored in these pixels are visible, often black. Save such images on a background if that "
    "matters.",
    FOURTH_BAND: "{name} has a fourth band that is not transparency{others}. It is not read; only "
    "a model of four channels reads it (--num-channels 4).",
    FRAMES: "{name} has several frames or pages{others}. Only the first one is read; save each one "
    "as a file of its own if that matters.",
    NAN: "{name} has pixels without a value (NaN){others}. They are read as black; replace them in "
    "the files if that matters.",
}

# Kinds of warnings already given in a context of `each_warning_once`; None outside of one.
_warned: ContextVar[set[str] | None] = ContextVar("warned", default=None)


@dataclass(frozen=True)
class Findings:
    """Content of an image file besides the pixels that are read.

    Args:
        ranges: Values in the file and the range that was applied; None for at most eight bits.
        unread: Parts of the file that are not read, keys of `UNREAD`.
    """

    ranges: ValueRanges = None
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class PixelFormat:
    """Pixels that a model reads.

    Args:
        num_channels: Number of channels: 1 is gray, 3 is RGB. Other numbers have no colors; an
            image then needs exactly as many channels.
        pixel_range: Values of black and white in files of more than eight bits; None for the
            smallest and the largest value of the type of the file (0 and 1 for floats). Files of at
            most eight bits always have the range 0 to 255.
        fills_transparent_color: Whether the one color that a palette image, or an RGB or gray file
            without an alpha channel, declares transparent becomes white, as in transformers'
            `convert_to_rgb`. Only for RGB of eight bits.

    Raises:
        ValueError: If a value is out of range.
    """

    num_channels: int = 3
    pixel_range: tuple[float, float] | None = None
    fills_transparent_color: bool = True

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
        unread: Parts of the file that are not read, as in `Findings`.
    """

    pixels: np.ndarray
    value_range: tuple[float, float] | None = None
    full_range: tuple[float, float] | None = None
    unread: tuple[str, ...] = ()

    @property
    def ranges(self) -> ValueRanges:
        """The values in the file and the range that was applied; None for at most eight bits."""
        if self.value_range is None or self.full_range is None:
            return None
        return self.value_range, self.full_range

    @property
    def findings(self) -> Findings | None:
        """Content of the file besides the pixels; None for nothing."""
        ranges = self.ranges
        return None if ranges is None and not self.unread else Findings(ranges, self.unread)


class RangeCheck:
    """Find the images whose values do not fit the range that was applied to them.

    The values do not fit if they use less than 1/8 of the range, counted from zero, or lie outside
    of it. One warning for all images names the first one.
    """

    def __init__(self) -> None:
        self.num_checked = 0
        self.num_images = 0  # that do not fit
        self.largest = -math.inf
        self._first: tuple[str, tuple[float, float], tuple[float, float]] | None = None

    def add(self, name: str, image: DecodedPixels | ValueRanges) -> None:
        """Check one image.

        Args:
            name: Name of the image.
            image: Image, or only its ranges.
        """
        self.num_checked += 1
        ranges = image.ranges if isinstance(image, DecodedPixels) else image
        if ranges is None or fits(*ranges):
            return
        self.num_images += 1
        self.largest = max(self.largest, ranges[0][1])
        if self._first is None:
            self._first = printable_line(name), *ranges

    def warning(self) -> str | None:
        """Return the warning in one line, or None if all images fit."""
        if self._first is None:
            return None
        name, (low, high), (start, end) = self._first
        is_outside = low < start or high > end
        fault = "some of which lie outside of" if is_outside else "which is less than 1/8 of"
        others = _others(self.num_images, self.num_checked)
        bits = f"--bits N with N of at least {_bits_for(self.largest)}, or "
        return (
            f"{name} has values from {_number(low)} to {_number(high)}, {fault} the range "
            f"{_number(start)} to {_number(end)}{others}; the largest value is "
            f"{_number(self.largest)}. Declare the scale of the data: "
            f"{bits if low >= 0 and self.largest > 1 else ''}--pixel-range LOW HIGH."
        )


class PixelCheck:
    """Find the images whose files hold more than the pixels that are read.

    There is one warning of each kind for all images, which names the first one: values that do not
    fit their range (`RangeCheck`), and the parts of a file in `UNREAD`.
    """

    def __init__(self) -> None:
        self._ranges = RangeCheck()
        self._unread: dict[str, tuple[str, int]] = {}  # first image, and number of images
        common = _warned.get()
        self._warned: set[str] = set() if common is None else common

    def add(self, name: str, findings: Findings | None) -> None:
        """Check one image.

        Args:
            name: Name of the image.
            findings: Content of its file; None for nothing.
        """
        self._ranges.add(name, None if findings is None else findings.ranges)
        if findings is None:
            return
        for part in findings.unread:
            first, count = self._unread.get(part, (printable_line(name), 0))
            self._unread[part] = first, count + 1

    def warnings(self) -> list[str]:
        """Return the warnings, one line each."""
        return list(self.warnings_by_kind().values())

    def warnings_once(self) -> list[str]:
        """Return the warnings of the kinds that it did not return before."""
        new = {k: text for k, text in self.warnings_by_kind().items() if k not in self._warned}
        self._warned.update(new)
        return list(new.values())

    def warnings_by_kind(self) -> dict[str, str]:
        """Return the warnings by their kind."""
        found = {} if (ranges := self._ranges.warning()) is None else {"ranges": ranges}
        for part, (first, count) in self._unread.items():
            others = _others(count, self._ranges.num_checked)
            found[part] = UNREAD[part].format(name=first, others=others)
        return found


@contextmanager
def each_warning_once() -> Iterator[None]:
    """Give each kind of warning only once for all `PixelCheck`s created in this context.

    Commands that read the same images several times use it.
    """
    token = _warned.set(set())
    try:
        yield
    finally:
        _warned.reset(token)


def _others(count: int, total: int) -> str:
    """Return words for further images that a warning holds for; "" for none.

    Args:
        count: Number of images that it holds for.
        total: Number of images that were checked.
    """
    does = "does" if count == 2 else "do"
    return "" if count < 2 else f", as {does} {count - 1} of {total - 1} others"


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


__all__ = [
    "FOURTH_BAND",
    "FRAMES",
    "NAN",
    "TRANSPARENCY",
    "DecodedPixels",
    "Findings",
    "PixelCheck",
    "PixelFormat",
    "RangeCheck",
    "ValueRanges",
    "each_warning_once",
    "fits",
]
