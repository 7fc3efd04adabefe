"""From a source of images to batches of views, the same whatever the workers and processes.

Every draw of an image has a number in the run's sequence. The number decides which image it is, and
seeds its augmentation: so a run can start at any step without replaying the ones before, and one
process sees the same global batch as two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from ..data.dataset_source import StreamingImageSource
from ..data.decoding import UnreadableImageError, decode_image
from ..data.folder_source import FolderSource
from ..data.image_source import ImageRecord, ImageSource
from .augmentations import Augmentation
from .interruption import leave_signals_to_the_run
from .watching import ReadingBoard, WatchedLoader

MAX_UNREADABLE_IN_A_ROW = 100


@dataclass(frozen=True)
class BatchPlan:
    """How the draws of a run fall into optimizer steps, micro-batches and processes.

    Args:
        num_steps: optimizer steps of the whole run.
        start_step: the first one to do (above 0 after a resume).
        batch_size: images an optimizer step, over all processes and micro-batches.
        accumulation_steps: micro-batches an optimizer step.
        num_processes: processes that share a micro-batch.
        rank: of this process.
    """

    num_steps: int
    start_step: int
    batch_size: int
    accumulation_steps: int
    num_processes: int
    rank: int

    def __post_init__(self) -> None:
        parts = self.accumulation_steps * self.num_processes
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of gradient_accumulation_steps "
                f"({self.accumulation_steps}) times processes ({self.num_processes}); "
                f"use {max(1, self.batch_size // parts) * parts}."
            )

    @property
    def micro_batch_size(self) -> int:
        """Images that one process holds at a time."""
        return self.batch_size // (self.accumulation_steps * self.num_processes)

    def draws(self) -> Iterator[range]:
        """Yield the numbers of the draws of each micro-batch of this process."""
        for step in range(self.start_step, self.num_steps):
            for part in range(
                self.rank, self.accumulation_steps * self.num_processes, self.num_processes
            ):
                first = step * self.batch_size + part * self.micro_batch_size
                yield range(first, first + self.micro_batch_size)


class ShuffledBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (position, draw): each epoch a new permutation of the source, its tail dropped."""

    def __init__(self, num_images: int, plan: BatchPlan, seed: int):
        steps_per_epoch = num_images // plan.batch_size
        if steps_per_epoch == 0:
            raise ValueError(
                f"batch_size ({plan.batch_size}) is larger than the data set "
                f"({num_images} images), and incomplete batches are dropped; use at most "
                f"{num_images}."
            )
        self.num_images = num_images
        self.plan = plan
        self.seed = seed
        self.draws_per_epoch = steps_per_epoch * plan.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, permutation = -1, np.empty(0, dtype=np.int64)
        for draws in self.plan.draws():
            batch = []
            for draw in draws:
                if draw // self.draws_per_epoch != epoch:
                    epoch = draw // self.draws_per_epoch
                    permutation = np.random.default_rng([self.seed, epoch]).permutation(
                        self.num_images
                    )
                batch.append((int(permutation[draw % self.draws_per_epoch]), draw))
            yield batch

    def __len__(self) -> int:
        return (self.plan.num_steps - self.plan.start_step) * self.plan.accumulation_steps


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
    """Views of a stream, each process reading a part of its own, over and over."""

    def __init__(
        self,
        source: StreamingImageSource,
        plan: BatchPlan,
        shuffle_buffer: int,
        *args: Any,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.source = source
        self.plan = plan
        self.shuffle_buffer = shuffle_buffer

    def __iter__(self) -> Iterator[dict[str, Any]]:
        plan = self.plan
        to_skip = plan.start_step * plan.accumulation_steps * plan.micro_batch_size
        count, epoch = 0, 0
        skipped: list[tuple[str, str]] = []
        while True:
            count_before = count
            records = self.source.iterate(
                seed=self.seed,
                epoch=epoch,
                rank=plan.rank,
                world_size=plan.num_processes,
                shuffle_buffer=self.shuffle_buffer,
            )
            for record in self.board.watched(records):
                # images already trained on are decoded again: unreadable ones do not count
                try:
                    image = decode_image(record.image)
                except UnreadableImageError as error:
                    skipped.append((record.id, str(error)))
                    if len(skipped) >= MAX_UNREADABLE_IN_A_ROW:
                        raise _too_many_unreadable(skipped) from error
                    continue
                if count >= to_skip:
                    draw = count * plan.num_processes + plan.rank
                    yield {**self.views_of(image, record, draw), "skipped": skipped}
                count += 1
                skipped = []
            if count == count_before:
                raise ValueError(
                    f"part {plan.rank} of {plan.num_processes} of the stream "
                    f"{self.source.description} has no readable image; use fewer processes."
                )
            epoch += 1


def _too_many_unreadable(skipped: list[tuple[str, str]]) -> ValueError:
    name, reason = skipped[-1]
    return ValueError(
        f"{len(skipped)} images in a row cannot be read, the last is {name} ({reason}); "
        "check the data."
    )


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack the inputs of one name.

    Views (uint8): (V, C, h, w) to (V, B, C, h, w), and (C, h, w) to (B, C, h, w). Numbers of their
    patches (float32): (V, N) to (V, B, N), and (N,) to (B, N).
    """
    batch: dict[str, Any] = {
        "skipped": [entry for sample in samples for entry in sample["skipped"]]
    }
    for name in samples[0].keys() - {"skipped", "draw"}:
        values = [sample[name] for sample in samples]
        if name == "labels":
            batch[name] = torch.tensor(values)
        else:
            arrays = [torch.from_numpy(value) for value in values]
            own_axes = 3 if arrays[0].dtype == torch.uint8 else 1
            batch[name] = torch.stack(arrays, dim=arrays[0].dim() - own_axes)
    return batch


@dataclass(frozen=True)
class BatchMaker:
    """Makes a batch of samples in the worker: stacks them, and lets the augmentation mix them.

    Args:
        augmentation: mixes labelled batches, or leaves them.
        seed: of the run.
        num_classes: of the data; None for batches without labels, which are not mixed.
    """

    augmentation: Augmentation
    seed: int
    num_classes: int | None

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch; the number of its first draw seeds the mixing."""
        batch = collate(samples)
        if self.num_classes is None:
            return batch
        # 2: apart from the views of the same draw
        rng = np.random.default_rng([self.seed, samples[0]["draw"], 2])
        return self.augmentation.mix(batch, rng, self.num_classes)


def normalize(views: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """uint8 (*, C, h, w) -> float32, scaled to 0 to 1, then by the channels' mean and deviation."""
    shape = (-1, 1, 1)
    scale = torch.tensor(std, device=views.device).view(shape) * 255
    shift = torch.tensor(mean, device=views.device).view(shape) * 255
    return (views.float() - shift) / scale


def build_loader(
    source: ImageSource | StreamingImageSource,
    augmentation: Augmentation,
    plan: BatchPlan,
    *,
    image_size: tuple[int, int],
    patch_size: int,
    seed: int,
    with_labels: bool,
    num_workers: int,
    shuffle_buffer: int,
    data_timeout: float = 0,
) -> DataLoader:
    """Return a loader of the micro-batches of this process, from `plan.start_step` on."""
    is_stream = isinstance(source, StreamingImageSource)
    # `datasets` gives each of several workers files of its own, so a resume could not tell how far
    # each had come; and it shuffles differently in a worker than out of one.
    num_workers = 1 if is_stream else num_workers
    board = ReadingBoard(num_workers)
    views = (augmentation, image_size, patch_size, seed, with_labels, board)
    num_classes = len(source.label_names) if with_labels and source.label_names else None
    # A loader without a generator of its own draws from the global one, and a resume would differ.
    options: dict[str, Any] = {
        "num_workers": num_workers,
        "collate_fn": BatchMaker(augmentation, seed, num_classes),
        "generator": torch.Generator().manual_seed(seed),
        "worker_init_fn": _prepare_worker,
        "pin_memory": torch.cuda.is_available(),
        "board": board,
        "name_of": lambda position: _name_of(source, position),
        "data_timeout": data_timeout,
    }
    if isinstance(source, StreamingImageSource):
        stream = StreamingViewDataset(source, plan, shuffle_buffer, *views)
        return WatchedLoader(stream, batch_size=plan.micro_batch_size, **options)
    batches = ShuffledBatches(len(source), plan, seed)
    return WatchedLoader(ViewDataset(source, *views), batch_sampler=batches, **options)


def _name_of(source: ImageSource | StreamingImageSource, position: int) -> str:
    """Name an image without reading it, which would hang where the worker does."""
    if isinstance(source, FolderSource):
        return f"{source.paths[position]} of {source.description}"
    return f"image {position} of {source.description}"


def _prepare_worker(worker_id: int) -> None:
    leave_signals_to_the_run()
    use_one_thread(worker_id)


def use_one_thread(worker_id: int) -> None:
    """Start a worker of a DataLoader: the workers are the parallelism."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


__all__ = [
    "BatchMaker",
    "BatchPlan",
    "ShuffledBatches",
    "ViewDataset",
    "build_loader",
    "collate",
    "normalize",
    "use_one_thread",
]
