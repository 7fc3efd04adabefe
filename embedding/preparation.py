"""Decode and preprocess images for a model, without the model."""

# B batch · C channels · H, W pixels

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import BaseImageProcessor

from ..data.checksum import checksum_of
from ..data.dataset_source import AnySource, StreamingImageSource
from ..data.decoding import Content, decode_pixels
from ..data.image_source import ImageRecord, ImageSource
from ..data.inventory import SkippedImage
from ..data.pixel_format import Findings, PixelCheck, PixelFormat
from ..data.reading import (
    Batches,
    ReadBatch,
    read_frames,
    read_images,
    read_spread_images,
    read_stream,
    unreadable_reason,
)
from ..data.reading_ahead import read_ahead
from .eight_bit import EightBitPreprocessing
from .preprocessing import (
    crop_pixels,
    needed_size,
    normalize_pixels,
    pixel_format_of,
    pixel_values_of,
    stack_pixels,
)

logger = logging.getLogger(__name__)

BATCHES_AHEAD = 2  # of a stream, per worker
MAX_DECODING_THREADS = 8


@dataclass(frozen=True)
class Preparation:
    """Decoding and preprocessing of an embedder, which needs no model.

    Args:
        processor: Image processor.
        pixel_format: Pixels that the model reads.
    """

    processor: BaseImageProcessor
    pixel_format: PixelFormat
    _eight_bit: EightBitPreprocessing | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_eight_bit", EightBitPreprocessing.of(self.processor))

    def __call__(self, record: ImageRecord) -> tuple[Tensor, Findings | None, str | None]:
        """Return the pixels (C, H, W) of an image, the findings in its file, and its checksum.

        Raises:
            UnreadableImageError: If the image cannot be decoded.
        """
        pixels, findings = self.crop(record.image)
        return pixels, findings, checksum_of(record.image)

    def crop(self, image: Content) -> tuple[Tensor, Findings | None]:
        """Decode and crop one image.

        Returns:
            Pixels for `stack_pixels`, (C, H, W), and the findings in the file.

        Raises:
            UnreadableImageError: If the image cannot be decoded.
        """
        decoded = decode_pixels(image, self.pixel_format, needed_size(self.processor))
        return crop_pixels(decoded, self.processor, self._eight_bit), decoded.findings

    def stack_pixels(self, images: Sequence[Tensor]) -> Tensor:
        """Return images as a batch, (B, C, H, W), for `normalize`."""
        return stack_pixels(images, self._eight_bit)

    def normalize(self, pixels: Tensor, device: torch.device | str = "cpu") -> Tensor:
        """Normalize a batch on the device that needs it.

        Args:
            pixels: Result of `stack_pixels`, (B, C, H, W).
            device: Device of the result.

        Returns:
            Normalized pixels, (B, C, H, W), float32.
        """
        device = torch.device(device)
        if device.type == "cuda":
            pixels = pixels.pin_memory()  # the copy then does not wait for the device
        return normalize_pixels(pixels.to(device, non_blocking=True), self._eight_bit)

    def read(
        self,
        source: AnySource,
        ranges: Sequence[range],
        batch_size: int,
        num_workers: int = 0,
    ) -> Generator[tuple[range, ReadBatch], None, None]:
        """Read positions of a source in batches, whose pixels are those of `stack`.

        Args:
            source: Images to read.
            ranges: Positions to read.
            batch_size: Maximum number of images per batch.
            num_workers: Number of processes that decode; 0 uses threads of the current process.
                For videos, number of threads that preprocess frames.

        Yields:
            Positions and images of the batches.
        """
        options: dict[str, Any] = {
            "num_workers": num_workers,
            "num_threads": num_decoding_threads(),
            "collate": self.stack,
        }
        if isinstance(source, StreamingImageSource) and source.is_video:
            threads: dict[str, Any] = {"num_threads": num_workers, "collate": self.stack}
            yield from read_frames(source, ranges, batch_size, self, **threads)
        elif isinstance(source, StreamingImageSource):
            records = source.batches(ranges, batch_size)
            with closing(read_ahead(records, BATCHES_AHEAD * max(1, num_workers))) as ahead:
                yield from read_stream(ahead, self, **options)
        else:
            batches = Batches(ranges, batch_size)
            with closing(read_images(source, self, batches=batches, **options)) as read:
                yield from zip(batches, read, strict=True)

    def stack(
        self, items: list[tuple[Tensor, Findings | None, str | None]]
    ) -> tuple[Tensor, list[Findings | None], list[str | None]]:
        """Return pixels (B, C, H, W) for `normalize`, findings and checksums of a batch."""
        pixels, findings, checksums = zip(*items, strict=True)
        return self.stack_pixels(pixels), list(findings), list(checksums)


class CroppedFrames(StreamingImageSource):
    """Stream of videos whose frames are cropped as soon as they are decoded.

    The decoded frames of a shuffle buffer would take gigabytes. Frames that cannot be read are left
    out.

    Args:
        source: Videos.
        preparation: Preparation that crops the frames.
    """

    is_video = True

    def __init__(self, source: StreamingImageSource, preparation: Preparation):
        super().__init__(source.description, source.label_names, source.identity, source.inventory)
        self._source = source
        self._preparation = preparation

    @property
    def num_shards(self) -> int:
        """Number of videos."""
        return self._source.num_shards

    def read_shard(
        self, shard: int, *, start: int = 0, part: int = 0, num_parts: int = 1
    ) -> Generator[ImageRecord, None, None]:
        """Yield the records of a video, whose images are pixels for `stack_pixels`."""
        options = {"start": start, "part": part, "num_parts": num_parts}
        with closing(self._source.read_shard(shard, **options)) as records:
            for record in records:
                try:
                    pixels: Any = self._preparation.crop(record.image)[0]
                except Exception as error:
                    if unreadable_reason(error) is None:
                        raise
                    continue
                yield replace(record, image=pixels)


def num_decoding_threads() -> int:
    """Return the number of threads that decode in the current process: as many as torch uses."""
    return min(MAX_DECODING_THREADS, torch.get_num_threads())


def preprocess(
    image: Content,
    processor: BaseImageProcessor,
    pixel_range: tuple[float, float] | None = None,
) -> Tensor:
    """Decode and preprocess one image.

    Args:
        image: Path, content of an image file, PIL image, or array (H, W), (H, W, C) or (C, H, W).
        processor: Image processor.
        pixel_range: Values of black and white in files of more than eight bits; None for the range
            of the processor, if it has one.

    Returns:
        Normalized pixels, (C, H, W), float32.

    Raises:
        UnreadableImageError: If the image cannot be decoded.
    """
    return _decode_and_preprocess(image, processor, pixel_format_of(processor, pixel_range))[0]


def preprocess_spread_images(
    source: ImageSource,
    processor: BaseImageProcessor,
    num_images: int,
    *,
    num_workers: int,
    pixel_range: tuple[float, float] | None = None,
) -> tuple[list[Tensor], list[SkippedImage]]:
    """Decode and preprocess images spread evenly over a source, as `read_spread_images` does.

    Args:
        source: Images to read.
        processor: Image processor.
        num_images: Maximum number of images.
        num_workers: Number of processes that read; 0 uses the current process.
        pixel_range: Values of black and white, as in `preprocess`.

    Returns:
        Normalized pixels of the images, each (C, H, W), and the images that cannot be read.

    Raises:
        ValueError: If no image can be read, or `num_images` is below 1.
    """
    pixel_format = pixel_format_of(processor, pixel_range)
    prepare = partial(_preprocess_named, processor=processor, pixel_format=pixel_format)
    images, skipped = read_spread_images(source, prepare, num_images, num_workers=num_workers)
    warn_of_findings({name: findings for name, _, findings in images})
    return [pixel_values for _, pixel_values, _ in images], skipped


def warn_of_findings(findings: Mapping[str, Findings | None]) -> None:
    """Log one warning of each kind if files hold more than what is read, see `PixelCheck`.

    Args:
        findings: Findings by the name of the image.
    """
    check = PixelCheck()
    for name, found in findings.items():
        check.add(name, found)
    for warning in check.warnings_once():
        logger.warning(warning)


def _preprocess_named(
    record: ImageRecord, processor: BaseImageProcessor, pixel_format: PixelFormat
) -> tuple[str, Tensor, Findings | None]:
    return record.id, *_decode_and_preprocess(record.image, processor, pixel_format)


def _decode_and_preprocess(
    image: Content, processor: BaseImageProcessor, pixel_format: PixelFormat
) -> tuple[Tensor, Findings | None]:
    decoded = decode_pixels(image, pixel_format, needed_size(processor))
    return pixel_values_of(decoded, processor), decoded.findings


__all__ = [
    "CroppedFrames",
    "Preparation",
    "num_decoding_threads",
    "preprocess",
    "preprocess_spread_images",
    "warn_of_findings",
]
