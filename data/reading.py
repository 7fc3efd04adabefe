"""Read and prepare images of a source in worker processes: the reader of all commands but train."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .dataset_source import StreamingImageSource
from .decoding import UnreadableImageError
from .image_source import ImageRecord, ImageSource
from .inventory import SkippedImage
from .reading_ahead import decode_in_threads, map_in_threads, read_ahead
from .reading_workers import Item, Reading, ReadingWorkers, ReadItem

BATCHES_AHEAD = 2  # of prepared frames

NO_MEMORY = "not enough memory to decode it"

# Parts of the messages about failed allocations of Pillow, torch and OpenCV.
ALLOCATION_FAILED = ("out of memory", "allocate memory", "not enough memory", "insufficient memory")


@dataclass(frozen=True)
class ReadBatch:
    """Images of one batch.

    Args:
        ids: Names of the images that can be read, at most B.
        labels: Labels of the same images; None for an image without a label.
        pixels: Result of `collate` for the same images; None if there are none.
        skipped: Images that cannot be read.
        seconds: Times of the same images in their videos; None for an image that is no frame.
    """

    ids: list[str]
    labels: list[int | None]
    pixels: Any
    skipped: list[SkippedImage]
    seconds: list[float | None]


class Batches(Sequence[range]):
    """Consecutive positions in batches; no batch continues from one range into the next.

    Args:
        ranges: Positions.
        batch_size: Maximum number of positions per batch.
    """

    def __init__(self, ranges: Sequence[range], batch_size: int):
        self._ranges = ranges
        self._batch_size = batch_size
        sizes = [-(-len(positions) // batch_size) for positions in ranges]
        self._ends = np.cumsum(sizes, dtype=np.int64)  # number of batches up to each range

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, number: Any) -> Any:
        """Return the positions of a batch."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        place = int(np.searchsorted(self._ends, number, side="right"))
        first = number - (int(self._ends[place - 1]) if place else 0)
        return self._ranges[place][first * self._batch_size : (first + 1) * self._batch_size]


def read_images(
    source: ImageSource,
    prepare: Callable[[ImageRecord], Any],
    *,
    batches: Sequence[Sequence[int]],
    num_workers: int,
    num_threads: int = 1,
    collate: Callable[[list[Any]], Any] = list,
) -> Generator[ReadBatch, None, None]:
    """Read images in the given batches.

    A worker that is killed costs no image: the one that it was reading is read once more, and only
    if that kills a worker again, it is skipped. A line of the log reports every death.

    Args:
        source: Images to read.
        prepare: Function of a record that returns its pixels, or raises UnreadableImageError. It
            must be picklable.
        batches: Positions of each batch, see `Batches`.
        num_workers: Number of processes that read; 0 uses the current process.
        num_threads: Number of threads of the current process that prepare images.
        collate: Function of the pixels of a batch that puts them together. It must be picklable.

    Yields:
        Batches.

    Raises:
        LostWorkersError: If so many workers in a row were killed that others would be, too.
        Exception: Any other error that the source or `prepare` raises.
    """
    num_workers = min(num_workers, len(batches))
    if num_workers == 0:
        fetch = partial(_fetch, source)
        for batch in batches:
            records = map(fetch, map(int, batch))
            yield _pack(collate, _prepare_all(records, prepare, num_threads))
        return
    reading = Reading(partial(_read, source, prepare), source.name_of, partial(_pack, collate))
    items = ([(int(place), int(place)) for place in batch] for batch in batches)
    yield from ReadingWorkers(reading, items, num_workers)


def read_stream(
    batches: Iterable[tuple[range, Sequence[ImageRecord]]],
    prepare: Callable[[ImageRecord], Any],
    *,
    num_workers: int,
    num_threads: int = 1,
    collate: Callable[[list[Any]], Any] = list,
) -> Generator[tuple[range, ReadBatch], None, None]:
    """Read the records of a stream, as `read_images` reads those of a source.

    This process reads the stream, the workers decode.

    Args:
        batches: Positions and records of each batch, see `StreamingImageSource.batches`.
        prepare: Function of a record, as in `read_images`.
        num_workers: Number of processes that decode; 0 uses the current process.
        num_threads: Number of threads of the current process that decode.
        collate: Function of the pixels of a batch, as in `read_images`.

    Yields:
        Positions and batches.

    Raises:
        LostWorkersError: If so many workers in a row were killed that others would be, too.
        Exception: Any other error that the stream or `prepare` raises.
    """
    if num_workers == 0:
        for positions, records in batches:
            yield positions, _pack(collate, _prepare_all(records, prepare, num_threads))
        return
    waiting: deque[range] = deque()

    def items() -> Generator[list[Item], None, None]:
        for positions, records in batches:
            waiting.append(positions)
            yield list(zip(positions, records, strict=False))

    reading = Reading(partial(_read_record, prepare), _name_of, partial(_pack, collate))
    for batch in ReadingWorkers(reading, items(), num_workers):
        yield waiting.popleft(), batch


def read_frames(
    source: StreamingImageSource,
    ranges: Sequence[range],
    batch_size: int,
    prepare: Callable[[ImageRecord], Any],
    *,
    num_threads: int,
    collate: Callable[[list[Any]], Any] = list,
) -> Generator[tuple[range, ReadBatch], None, None]:
    """Read the frames of videos, as `read_stream` reads the records of a stream.

    The decoded frames of a batch can take gigabytes, so each one is prepared before the next ones
    are decoded, and none is sent to another process.

    Args:
        source: Videos.
        ranges: Positions to read.
        batch_size: Maximum number of frames per batch.
        prepare: Function of a record, as in `read_images`, called in several threads.
        num_threads: Number of threads that prepare frames; 0 uses that of the decoder.
        collate: Function of the pixels of a batch, as in `read_images`.

    Yields:
        Positions and batches.

    Raises:
        Exception: Any error that the source or `prepare` raises.
    """
    read = partial(_read_record, prepare, set_name=_no_name)
    convert = partial(map_in_threads, function=read, num_threads=num_threads)
    batches = source.batches(ranges, batch_size, convert)
    with closing(read_ahead(batches, BATCHES_AHEAD)) as ahead:
        for positions, items in ahead:
            yield positions, _pack(collate, items)


def _prepare_all(
    records: Iterable[ImageRecord | ReadItem],
    prepare: Callable[[ImageRecord], Any],
    num_threads: int,
) -> list[ReadItem]:
    """Prepare records in this process; sources are read by this thread only."""
    return decode_in_threads(records, partial(_read_fetched, prepare), num_threads)


def _read_fetched(
    prepare: Callable[[ImageRecord], Any], record: ImageRecord | ReadItem
) -> ReadItem:
    if isinstance(record, ReadItem):
        return record
    return _read_record(prepare, record, _no_name)


def read_spread_images(
    source: ImageSource,
    prepare: Callable[[ImageRecord], Any],
    num_images: int,
    *,
    num_workers: int,
) -> tuple[list[Any], list[SkippedImage]]:
    """Read images spread evenly over a source.

    The source is divided into `num_images` equal sections, and the first readable image of each
    section is used; for a section without one, another image. The first images of the source would
    not be representative: sources are often sorted by class.

    Args:
        source: Images to read.
        prepare: Function of a record, as in `read_images`.
        num_images: Maximum number of images; all images of a smaller source are used.
        num_workers: Number of processes that read; 0 uses the current process.

    Returns:
        Pixels of the images, and the images that were skipped because they cannot be read.

    Raises:
        ValueError: If no image can be read, or `num_images` is below 1.
    """
    if num_images < 1:
        raise ValueError(f"num_images ({num_images}) must be at least 1.")
    pixels: dict[int, Any] = {}
    skipped: dict[int, SkippedImage] = {}
    left = np.arange(len(source))
    while len(pixels) < num_images and len(left):  # again for sections without a readable image
        num_sections = min(num_images - len(pixels), len(left))
        bounds = np.linspace(0, len(left), num_sections + 1).astype(int)
        sections = np.split(left, bounds[1:-1])
        _read_first_of_each(sections, source, prepare, num_workers, pixels, skipped)
        left = np.array([place for place in left if place not in pixels and place not in skipped])
    images = [skipped[place] for place in sorted(skipped)]
    if not pixels:
        raise ValueError(
            f"none of the {len(images)} images can be read ({source.description}); the last one "
            f"is {images[-1].id}: {images[-1].reason}. Choose data with readable images."
        )
    return [pixels[place] for place in sorted(pixels)], images


def _read_first_of_each(
    sections: Sequence[np.ndarray],
    source: ImageSource,
    prepare: Callable[[ImageRecord], Any],
    num_workers: int,
    pixels: dict[int, Any],
    skipped: dict[int, SkippedImage],
) -> None:
    """Add the first readable image of each section to `pixels`, and those before to `skipped`."""
    open_sections = {number: section.tolist() for number, section in enumerate(sections)}
    ahead = 1  # doubled each time, because the workers are started again
    while open_sections:
        chosen = [(number, p) for number, left in open_sections.items() for p in left[:ahead]]
        batches = read_images(
            source,
            prepare,
            batches=[[place] for _, place in chosen],
            num_workers=num_workers,
        )
        done = set()
        for (number, place), batch in zip(chosen, batches, strict=True):
            if number not in done and batch.ids:
                done.add(number)
                pixels[place] = batch.pixels[0]
            elif number not in done:
                skipped[place] = batch.skipped[0]
        open_sections = {
            number: left[ahead:]
            for number, left in open_sections.items()
            if number not in done and left[ahead:]
        }
        ahead *= 2


def unreadable_reason(error: Exception) -> str | None:
    """Return why an image cannot be read, or None for an error that is no fault of the image.

    Args:
        error: Error of a function that decodes an image.
    """
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(sign in text for sign in ALLOCATION_FAILED):
        return NO_MEMORY
    return str(error) if isinstance(error, UnreadableImageError) else None


def _read(
    source: ImageSource,
    prepare: Callable[[ImageRecord], Any],
    position: int,
    set_name: Callable[[str], None],
) -> ReadItem:
    record = _fetch(source, position)
    return record if isinstance(record, ReadItem) else _read_record(prepare, record, set_name)


def _fetch(source: ImageSource, position: int) -> ImageRecord | ReadItem:
    """Return the record at a position, or why it cannot be read."""
    try:
        return source[position]
    except Exception as error:
        if (reason := unreadable_reason(error)) is None:
            raise
        return ReadItem(source.name_of(position), None, reason=reason)


def _read_record(
    prepare: Callable[[ImageRecord], Any], record: ImageRecord, set_name: Callable[[str], None]
) -> ReadItem:
    set_name(record.name)
    try:
        return ReadItem(record.id, record.label, prepare(record), seconds=record.seconds)
    except Exception as error:
        if (reason := unreadable_reason(error)) is None:
            raise
        return ReadItem(record.name, record.label, reason=reason)


def _name_of(record: ImageRecord) -> str:
    return record.name


def _no_name(name: str) -> None:
    """Take the name of an image that no other process needs to know."""


def _pack(collate: Callable[[list[Any]], Any], items: list[ReadItem]) -> ReadBatch:
    read = [item for item in items if item.reason is None]
    return ReadBatch(
        ids=[item.id for item in read],
        labels=[item.label for item in read],
        pixels=collate([item.pixels for item in read]) if read else None,
        skipped=[SkippedImage(item.id, item.reason) for item in items if item.reason is not None],
        seconds=[item.seconds for item in read],
    )


__all__ = [
    "Batches",
    "ReadBatch",
    "read_frames",
    "read_images",
    "read_spread_images",
    "read_stream",
    "unreadable_reason",
]
