"""From a source of images to batches of views: reading, augmenting, stacking, in workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ...data.decoding import UnreadableImageError, decode_image
from ...data.image_source import ImageRecord, ImageSource
from ...data.stream_reader import StreamReader
from ..augmentations.base import Augmentation
from .sampler import BatchPlan
from .streaming import ReaderState, StreamDivision
from .watchdog import ReadingBoard

MAX_UNREADABLE_IN_A_ROW = 100


class _ViewMaker:
    """Turns a record into the model's inputs, labels included."""

    def __init__(
        self,
        augmentation: Augmentation,
        image_size: tuple[int, int],
        patch_size: int,
        seed: int,
        with_labels: bool,
        board: ReadingBoard | None = None,
    ):
        self.augmentation = augmentation
        self.image_size = image_size
        self.patch_size = patch_size
        self.seed = seed
        self.with_labels = with_labels
        self.board = board or ReadingBoard(0)

    def views_of(self, image: Image.Image, record: ImageRecord, draw: int) -> dict[str, Any]:
        """Return the views of one decoded image, and "draw", whose number seeds them."""
        rng = np.random.default_rng([self.seed, draw, 1])  # 1: apart from the epochs' permutations
        views: dict[str, Any] = dict(
            self.augmentation(image, rng, self.image_size, self.patch_size)
        )
        if self.with_labels:
            views["labels"] = record.label
        return {**views, "draw": draw}


class ViewDataset(_ViewMaker, Dataset):
    """Views of the images of a source, indexed by (position, draw).

    An unreadable image is replaced by the next readable one and reported with its reason under
    "skipped".
    """

    def __init__(self, source: ImageSource, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.source = source

    def __getitem__(self, index: tuple[int, int]) -> dict[str, Any]:
        """Return views by name, "draw", and "skipped", a list of (id, reason)."""
        position, draw = index
        skipped: list[tuple[str, str]] = []
        for offset in range(min(len(self.source), MAX_UNREADABLE_IN_A_ROW)):
            place = (position + offset) % len(self.source)
            try:
                with self.board.reading(place):
                    record = self.source[place]
                    image = decode_image(record.image)
            except UnreadableImageError as error:
                skipped.append((record.id, str(error)))
                continue
            return {**self.views_of(image, record, draw), "skipped": skipped}
        raise _too_many_unreadable(skipped)


class StreamingViewDataset(_ViewMaker, IterableDataset):
    """Views of a stream, without end; each worker is a reader with a part of its own.

    Args:
        division: of the stream among the readers.
        readers: where those of this process stand.
        plan: of the batches.
        shuffle_buffer: records that a reader shuffles at a time.
        args: as for `ViewDataset`, without its source.
        kwargs: the same.
    """

    def __init__(
        self,
        division: StreamDivision,
        readers: list[ReaderState],
        plan: BatchPlan,
        shuffle_buffer: int,
        *args: Any,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.division = division
        self.readers = readers
        self.plan = plan
        self.shuffle_buffer = shuffle_buffer

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield views by name, "draw", "skipped", and "reader": its number, and its new state."""
        plan, division, worker = self.plan, self.division, get_worker_info()
        # the DataLoader takes batches from its workers in turn: after a resume from where it stood
        batches_before = plan.start_step * plan.accumulation_steps
        own = (batches_before + (0 if worker is None else worker.id)) % division.num_workers
        reader = plan.rank * division.num_workers + own
        records = StreamReader(
            division.source,
            seed=self.seed,
            reader=reader,
            num_readers=division.num_readers,
            shuffle_buffer=self.shuffle_buffer,
            position=self.readers[own].position,
            reading=self.board.reading,
        )
        samples = self.readers[own].samples
        skipped: list[tuple[str, str]] = []
        for record, position in records:
            try:
                image = decode_image(record.image)
            except UnreadableImageError as error:
                skipped.append((record.id, str(error)))
                if len(skipped) >= MAX_UNREADABLE_IN_A_ROW:
                    raise _too_many_unreadable(skipped) from error
                continue
            draw = samples * division.num_readers + reader
            samples += 1
            yield {
                **self.views_of(image, record, draw),
                "skipped": skipped,
                "reader": (own, ReaderState(samples, position)),
            }
            skipped = []


def _too_many_unreadable(skipped: list[tuple[str, str]]) -> ValueError:
    name, reason = skipped[-1]
    return ValueError(
        f"{len(skipped)} images in a row cannot be read, the last is {name} ({reason}); "
        "check the data."
    )


__all__ = ["ViewDataset"]
