"""From a source of images to batches of views: reading, augmenting, stacking, in workers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from ..data.dataset_source import StreamingImageSource
from ..data.decoding import UnreadableImageError, decode_image
from ..data.folder_source import FolderSource
from ..data.image_source import ImageRecord, ImageSource
from ..data.stream_reader import StreamReader
from .augmentations import Augmentation
from .batch_plan import BatchPlan, ShuffledBatches
from .interruption import leave_signals_to_the_run
from .streaming import ReaderState, StreamDivision, StreamLoader, divide, readers_to_resume
from .training_config import TrainingConfig
from .watching import ReadingBoard, WatchedLoader

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


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack the inputs of one name.

    Views (uint8): (V, C, h, w) to (V, B, C, h, w), and (C, h, w) to (B, C, h, w). Numbers of their
    patches (float32): (V, N) to (V, B, N), and (N,) to (B, N).
    """
    batch: dict[str, Any] = {
        "skipped": [entry for sample in samples for entry in sample["skipped"]]
    }
    if "reader" in samples[-1]:  # of a stream: where it stands behind the last sample
        batch["reader"] = samples[-1]["reader"]
    for name in samples[0].keys() - {"skipped", "draw", "reader"}:
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


def to_model_inputs(
    batch: dict[str, Any], training: TrainingConfig, device: torch.device
) -> dict[str, Any]:
    """Move a batch to the device, and normalise its views there: uint8 travels faster."""
    moved = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    return {
        name: normalize(value, training.image_mean, training.image_std)
        if value.dtype == torch.uint8
        else value
        for name, value in moved.items()
    }


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
    stream_state: dict[str, Any] | None = None,
) -> DataLoader:
    """Return a loader of the micro-batches of this process, from `plan.start_step` on.

    Args:
        source: of the images.
        augmentation: makes the views.
        plan: of the batches.
        image_size: height and width of the model's images, pixels.
        patch_size: pixels.
        seed: of the run.
        with_labels: whether batches have labels.
        num_workers: processes that decode; a stream has at least one, and as many as its shards
            allow.
        shuffle_buffer: records that each reader of a stream shuffles at a time.
        data_timeout: seconds that one image may take, 0 is for ever.
        stream_state: of the checkpoint that a stream goes on from.

    Raises:
        ValueError: if plan and data do not fit together.
    """
    division = None
    if isinstance(source, StreamingImageSource):
        division = divide(source, plan.num_processes, num_workers)
        # At least one: pyarrow's threads still read when this process would end, and it would hang;
        # a worker ends without waiting for them.
        num_workers = division.num_workers
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
    if division is not None:
        readers = [ReaderState()] * division.num_workers
        if plan.start_step > 0:
            readers = readers_to_resume(stream_state, division, plan.rank)
        return StreamLoader(
            StreamingViewDataset(division, readers, plan, shuffle_buffer, *views),
            batch_size=plan.micro_batch_size,
            readers=readers,
            division=division,
            **options,
        )
    assert isinstance(source, ImageSource)
    batches = ShuffledBatches(len(source), plan, seed)
    return WatchedLoader(ViewDataset(source, *views), batch_sampler=batches, **options)


def _name_of(source: ImageSource | StreamingImageSource, position: int) -> str:
    """Name an image without reading it, which would hang where the worker does."""
    if isinstance(source, FolderSource):
        return f"{source.paths[position]} of {source.description}"
    part = "shard" if isinstance(source, StreamingImageSource) else "image"
    return f"{part} {position} of {source.description}"


def _prepare_worker(worker_id: int) -> None:
    leave_signals_to_the_run()
    use_one_thread(worker_id)


def use_one_thread(worker_id: int) -> None:
    """Start a worker of a DataLoader: the workers are the parallelism."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


__all__ = [
    "BatchMaker",
    "ViewDataset",
    "build_loader",
    "collate",
    "normalize",
    "to_model_inputs",
    "use_one_thread",
]
