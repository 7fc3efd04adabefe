"""Build the DataLoader of a run."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader

from ...data.dataset_source import StreamingImageSource
from ...data.folder_source import FolderSource
from ...data.image_source import ImageSource
from ...data.workers import use_one_thread
from ..augmentations.base import Augmentation
from ..config.run_config import RunConfig
from ..runtime.signals import ignore_signals_in_worker
from .collate import BatchMaker
from .sampler import BatchPlan, ShuffledBatches
from .streaming import ReaderState, StreamLoader, divide, readers_to_resume
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
    ignore_signals_in_worker()
    use_one_thread(worker_id)


def loader_of(
    run: RunConfig,
    source: ImageSource | StreamingImageSource,
    plan: BatchPlan,
    stream_state: dict[str, Any] | None = None,
) -> DataLoader:
    """Return a loader of a run's views."""
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
    )


__all__ = ["build_loader", "loader_of"]
