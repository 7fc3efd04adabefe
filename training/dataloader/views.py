"""Datasets that read, decode and augment images, in the workers of the DataLoader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ...data.decoding import UnreadableImageError, decode_pixels
from ...data.image_source import ImageRecord, ImageSource
from ...data.pixel_format import DecodedPixels, PixelFormat
from ...data.stream_reader import StreamReader
from ..augmentations.base import Augmentation
from .sampler import BatchPlan
from .streaming import ReaderState, StreamPartition
from .watchdog import ReadingBoard

MAX_UNREADABLE_IN_A_ROW = 100


class _ViewMaker:
    """Base of the datasets: turn a decoded image into the inputs of the model.

    Args:
        augmentation: Augmentation that makes the views.
        image_size: Height and width of the model's images, pixels.
        patch_size: Side of the model's patches, pixels.
        seed: Random seed of the run.
        with_labels: Whether samples have labels.
        board: Board that shows what the worker reads; by default, it is not watched.
        pixel_format: Pixels that the model reads; by default RGB.
    """

    def __init__(
        self,
        augmentation: Augmentation,
        image_size: tuple[int, int],
        patch_size: int,
        seed: int,
        with_labels: bool,
        board: ReadingBoard | None = None,
        pixel_format: PixelFormat = PixelFormat(),  # noqa: B008 (it cannot change)
    ):
        self.augmentation = augmentation
        self.image_size = image_size
        self.patch_size = patch_size
        self.seed = seed
        self.with_labels = with_labels
        self.board = board or ReadingBoard(0)
        self.pixel_format = pixel_format

    def decode(self, record: ImageRecord, draw: int) -> DecodedPixels:
        """Return the pixels of an image, with no more of a large one than its views need.

        Raises:
            UnreadableImageError: If the image cannot be decoded.
        """

        def source_size(size: tuple[int, int]) -> tuple[int, int]:
            return self.augmentation.source_size(size, self.image_size, self._generator(draw))

        return decode_pixels(record.image, self.pixel_format, source_size)

    def make_views(self, image: DecodedPixels, record: ImageRecord, draw: int) -> dict[str, Any]:
        """Return the views and the label of one decoded image.

        "draw" seeds them. "findings" has the name of the image and what its file holds besides the
        pixels, if anything (`PixelCheck`).
        """
        rng = self._generator(draw)
        views: dict[str, Any] = dict(
            self.augmentation(image.pixels, rng, self.image_size, self.patch_size)
        )
        if self.with_labels:
            views["labels"] = record.label
        findings = [] if image.findings is None else [(record.id, image.findings)]
        return {**views, "draw": draw, "findings": findings}

    def _generator(self, draw: int) -> np.random.Generator:
        # The 1 makes these random numbers independent of the permutations of the epochs.
        return np.random.default_rng([self.seed, draw, 1])


class ViewDataset(_ViewMaker, Dataset):
    """Views of the images of a source, indexed by (position, draw).

    An unreadable image is replaced by the next readable one, and listed under "skipped" with the
    reason.

    Args:
        source: Images by position.
        args: Positional arguments of `_ViewMaker`.
        kwargs: Keyword arguments of `_ViewMaker`.
    """

    def __init__(self, source: ImageSource, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.source = source

    def __getitem__(self, index: tuple[int, int]) -> dict[str, Any]:
        """Return views by name, "draw", "findings", and "skipped", a list of (id, reason).

        Raises:
            ValueError: If too many images in a row cannot be read.
        """
        position, draw = index
        skipped: list[tuple[str, str]] = []
        for offset in range(min(len(self.source), MAX_UNREADABLE_IN_A_ROW)):
            place = (position + offset) % len(self.source)
            try:
                with self.board.reading(place):
                    record = self.source[place]
                    image = self.decode(record, draw)
            except UnreadableImageError as error:
                skipped.append((record.id, str(error)))
                continue
            return {**self.make_views(image, record, draw), "skipped": skipped}
        raise _too_many_unreadable(skipped)


class StreamingViewDataset(_ViewMaker, IterableDataset):
    """Views of the images of a stream, without end; each worker reads its own part.

    Args:
        partition: Partition of the stream among the readers.
        readers: States of the readers of this process.
        plan: Batches of the run.
        shuffle_buffer: Number of records that a reader shuffles within.
        args: Positional arguments of `_ViewMaker`.
        kwargs: Keyword arguments of `_ViewMaker`.
    """

    def __init__(
        self,
        partition: StreamPartition,
        readers: list[ReaderState],
        plan: BatchPlan,
        shuffle_buffer: int,
        *args: Any,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.partition = partition
        self.readers = readers
        self.plan = plan
        self.shuffle_buffer = shuffle_buffer

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield views, "draw", "findings", "skipped", and "reader": its number and new state.

        Raises:
            ValueError: If too many images in a row cannot be read.
        """
        plan, partition, worker = self.plan, self.partition, get_worker_info()
        # The DataLoader takes batches from its workers in turn, and starts with worker 0. After a
        # resume, worker 0 therefore is the reader whose turn is next.
        batches_before = plan.start_step * plan.accumulation_steps
        own = (batches_before + (0 if worker is None else worker.id)) % partition.num_workers
        reader = plan.rank * partition.num_workers + own
        records = StreamReader(
            partition.source,
            seed=self.seed,
            reader=reader,
            num_readers=partition.num_readers,
            shuffle_buffer=self.shuffle_buffer,
            position=self.readers[own].position,
            reading=self.board.reading,
        )
        samples = self.readers[own].samples
        skipped: list[tuple[str, str]] = []
        for record, position in records:
            draw = samples * partition.num_readers + reader
            try:
                if self.with_labels and record.label is None:
                    raise UnreadableImageError("it has no label")
                image = self.decode(record, draw)
            except UnreadableImageError as error:
                skipped.append((record.id, str(error)))
                if len(skipped) >= MAX_UNREADABLE_IN_A_ROW:
                    raise _too_many_unreadable(skipped) from error
                continue
            samples += 1
            yield {
                **self.make_views(image, record, draw),
                "skipped": skipped,
                "reader": (own, ReaderState(samples, position)),
            }
            skipped = []


def _too_many_unreadable(skipped: list[tuple[str, str]]) -> ValueError:
    name, reason = skipped[-1]
    return ValueError(
        f"{len(skipped)} images in a row cannot be read; the last one is {name} ({reason}). "
        "Check the data."
    )


__all__ = ["StreamingViewDataset", "ViewDataset"]
