"""Build the DataLoader of a run."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader

from ...data.dataset_source import StreamingImageSource
from ...data.folder_source import FolderSource
from ...data.image_source import ImageSource
from ...data.pixel_format import PixelFormat
from ...data.workers import initialize_worker
from ..augmentations.base import Augmentation
from ..config.run_config import RunConfig
from ..runtime.signals import ignore_signals_in_worker
from .collate import BatchMaker
from .sampler import BatchPlan, ShuffledBatches
from .streaming import ReaderState, StreamLoader, partition_stream, restore_readers
from .views import StreamingViewDataset, ViewDataset
from .watchdog import ReadingBoard, WatchedLoader


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
    pixel_format: PixelFormat = PixelFormat(),  # noqa: B008 (it cannot change)
) -> DataLoader:
    """Return a loader of the micro-batches of this process, from `plan.start_step` on.

    Args:
        source: Images to load.
        augmentation: Augmentation that makes the views.
        plan: Batches of the run.
        image_size: Height and width of the model's images, pixels.
        patch_size: Side of the model's patches, pixels.
        seed: Random seed of the run.
        with_labels: Whether batches have labels.
        num_workers: Number of worker processes that decode and augment images. A stream has at
            least one, and no more than its shards allow.
        shuffle_buffer: Number of records that each reader of a stream shuffles within.
        data_timeout: Seconds that reading one image may take; 0 means no limit.
        stream_state: State of a stream from the checkpoint to resume.
        pixel_format: Pixels that the model reads; by default RGB.

    Raises:
        ValueError: If the plan does not fit the data, or the stream cannot be resumed.
    """
    partition = None
    if isinstance(source, StreamingImageSource):
        partition = partition_stream(source, plan.num_processes, num_workers)
        # At least one worker: in this process, threads of pyarrow that still read would block its
        # exit. A worker exits without waiting for them.
        num_workers = partition.num_workers
    board = ReadingBoard(num_workers)
    views = (augmentation, image_size, patch_size, seed, with_labels, board, pixel_format)
    num_classes = len(source.label_names) if with_labels and source.label_names else None
    # Without its own generator, a loader draws from the global one, and a resumed run would differ.
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
    if partition is not None:
        readers = [ReaderState()] * partition.num_workers
        if plan.start_step > 0:
            readers = restore_readers(stream_state, partition, plan.rank)
        return StreamLoader(
            StreamingViewDataset(partition, readers, plan, shuffle_buffer, *views),
            batch_size=plan.micro_batch_size,
            readers=readers,
            partition=partition,
            **options,
        )
    assert isinstance(source, ImageSource)
    batches = ShuffledBatches(len(source), plan, seed)
    return WatchedLoader(ViewDataset(source, *views), batch_sampler=batches, **options)


def _name_of(source: ImageSource | StreamingImageSource, position: int) -> str:
    """Return the name of an image without reading it, as reading would hang as in the worker."""
    if isinstance(source, FolderSource):
        return f"{source.paths[position]} of {source.description}"
    part = "shard" if isinstance(source, StreamingImageSource) else "image"
    return f"{part} {position} of {source.description}"


def _prepare_worker(worker_id: int) -> None:
    ignore_signals_in_worker()
    initialize_worker(worker_id)


def build_run_loader(
    run: RunConfig,
    source: ImageSource | StreamingImageSource,
    plan: BatchPlan,
    stream_state: dict[str, Any] | None = None,
) -> DataLoader:
    """Return the loader of a run, with the settings of its configuration.

    Args:
        run: Configuration of the run.
        source: Images to load.
        plan: Batches of the run.
        stream_state: State of a stream from the checkpoint to resume.

    Raises:
        ValueError: If the plan does not fit the data, or the stream cannot be resumed.
    """
    return build_loader(
        source,
        run.augmentation,
        plan,
        image_size=run.model.image_height_width,
        patch_size=run.model.patch_size,
        seed=run.start.seed,
        with_labels=run.is_classifier,
        num_workers=run.data.num_workers,
        shuffle_buffer=run.data.shuffle_buffer,
        data_timeout=run.data.data_timeout,
        stream_state=stream_state,
        pixel_format=run.pixel_format,
    )


__all__ = ["build_loader", "build_run_loader"]
