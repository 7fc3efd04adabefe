"""Mean and std of each channel of a set of images."""

# C channels · H, W pixels

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..data.dataset_source import StreamingImageSource
from ..data.decoding import UnreadableImageError, decode_pixels
from ..data.image_source import ImageSource
from ..data.inventory import SkippedImage
from ..data.pixel_format import PixelCheck, PixelFormat
from ..data.stream_reader import first_images
from ..progress import progress_bar

MAX_STATISTICS_IMAGES = 1000  # the standard error of a mean is then about 1/30 of an image's std
ROWS_AT_A_TIME = 256  # rows that are converted to float64 together
SMALLEST_STD = 1e-6  # below it, the values of a channel are all the same up to rounding
# Pixels that are enough to measure a huge image; the decoder may reduce it to a few times as many.
TARGET = (1024, 1024)


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and std of each channel, for pixels in 0 to 1.

    Args:
        mean: Mean of each channel.
        std: Std of each channel.
        num_images: Number of images that were measured.
        skipped: Images that could not be read.
        warnings: Warnings about the files, see `PixelCheck`.
    """

    mean: list[float]
    std: list[float]
    num_images: int
    skipped: list[SkippedImage]
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the measured values as JSON can represent them."""
        return {
            "image_mean": self.mean,
            "image_std": self.std,
            "num_images": self.num_images,
            "num_skipped": len(self.skipped),
        }

    def options(self) -> str:
        """Return the options of `selfvit train` that set these values."""
        mean, std = (" ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"--image-mean {mean} --image-std {std}"


def sample_images(source: ImageSource | StreamingImageSource, limit: int) -> ImageSource:
    """Return a fixed sample of images; of a stream, the first ones in shuffled order.

    Args:
        source: Images.
        limit: Maximum number of images.
    """
    if isinstance(source, StreamingImageSource):
        return first_images(source, limit)
    return source.sample(limit)


def channel_statistics(
    images: ImageSource, pixel_format: PixelFormat, progress: bool = False
) -> ChannelStatistics:
    """Measure the mean and the std of each channel over all pixels of some images.

    Each image has the same weight, whatever its size, as in training. The std is that of single
    pixels, not of the means of the images. Sums are in float64, and one image is in memory at a
    time. Results are rounded to six significant digits, so that they can be printed and pasted.

    Args:
        images: Images, for example from `sample_images`.
        pixel_format: Pixels that the model reads.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If no image can be read, or a channel has the same value everywhere.
    """
    total = np.zeros((2, pixel_format.num_channels), dtype=np.float64)
    num_images, check = 0, PixelCheck()
    skipped: list[SkippedImage] = []
    places = range(len(images))
    for place in progress_bar(places, description="measuring", disable=not progress):
        record = images[place]
        try:
            decoded = decode_pixels(record.image, pixel_format, TARGET)
        except UnreadableImageError as error:
            skipped.append(SkippedImage(record.id, str(error)))
            continue
        check.add(record.id, decoded.findings)
        total += _moments(decoded.pixels)
        num_images += 1
    if num_images == 0:
        raise _nothing_readable(skipped, images.description)
    mean, of_squares = total / num_images
    std = np.sqrt(np.maximum(of_squares - mean**2, 0))
    constant = np.flatnonzero(std < SMALLEST_STD)
    if len(constant):
        raise ValueError(
            f"channel {constant[0]} of {images.description} has the same value "
            f"({mean[constant[0]]:g}) in all pixels of {num_images} images, so it has no std "
            "to divide by; leave the channel out of the files, or give both --image-mean and "
            "--image-std."
        )
    return ChannelStatistics(_rounded(mean), _rounded(std), num_images, skipped, check.warnings())


def _moments(pixels: np.ndarray) -> np.ndarray:
    """Return the means of the values and of their squares, (2, C), for pixels in 0 to 1."""
    total = np.zeros((2, pixels.shape[2]), dtype=np.float64)
    for top in range(0, len(pixels), ROWS_AT_A_TIME):
        rows = pixels[top : top + ROWS_AT_A_TIME].astype(np.float64)
        total += rows.sum(axis=(0, 1)), np.square(rows).sum(axis=(0, 1))
    count = pixels.shape[0] * pixels.shape[1]
    return total / count / np.array([[255.0], [255.0**2]])


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def _nothing_readable(skipped: list[SkippedImage], description: str) -> ValueError:
    if not skipped:
        return ValueError(f"{description} has no images; choose data with images.")
    last = skipped[-1]
    return ValueError(
        f"none of the {len(skipped)} images of {description} can be read; the last one is "
        f"{last.id}: {last.reason}. Choose other data, or another --num-channels."
    )


__all__ = ["MAX_STATISTICS_IMAGES", "ChannelStatistics", "channel_statistics", "sample_images"]
