"""Embed images on a Ray cluster: tasks decode on CPUs, actors hold the model.

Both parts are scaled apart by Ray Data, which streams the batches from one to the other, and runs
tasks and actors again that were lost with their process or node.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from ..data.image_source import ImageRecord, ImageSource, RecordSource
from ..data.reading import Batches, ReadBatch
from ..progress import progress_bar
from .embedder import EmbeddedBatch, Embedder, Preparation

BATCHES_PER_TASK = 1


class RayEmbedder(Embedder):
    """Embedder whose `stream` runs on a Ray cluster; batches and vectors are those of `Embedder`.

    Ray must be initialized, for example by `ray.init()`.

    Args:
        embedder: Embedder with the checkpoint and options; its device is not used.
        num_actors: Number of processes with a copy of the model; None for one per GPU of the
            cluster, or, if it has none, for half of its CPUs.
        num_gpus: GPUs of an actor; None for 1 if the cluster has GPUs.
    """

    def __init__(
        self, embedder: Embedder, *, num_actors: int | None = None, num_gpus: float | None = None
    ):
        super().__init__(
            embedder.model.cpu(),
            embedder.processor,
            normalize=embedder.normalize,
            batch_size=embedder.batch_size,
            pixel_range=embedder.pixel_format.pixel_range,
            tokens=embedder.tokens,
        )
        self._num_actors = num_actors
        self._num_gpus = num_gpus

    def stream(
        self,
        source: ImageSource,
        *,
        ranges: Sequence[range] | None = None,
        progress: bool = False,
    ) -> Generator[EmbeddedBatch, None, None]:
        """Embed a source batch by batch, as `Embedder.stream` does.

        Args:
            source: Images to embed; the nodes must be able to open its files.
            ranges: Positions to embed; all by default.
            progress: Whether to show a progress bar.

        Yields:
            Results of the batches, in the order of the source.

        Raises:
            ValueError: If vectors are not finite.
        """
        import ray

        num_images = len(source)
        ranges = [range(num_images)] if ranges is None else ranges
        batches = Batches(ranges, self.batch_size)
        if not len(batches):
            return
        reader = ray.put((self.preparation, source, batches))
        with _streaming_in_order():
            dataset = ray.data.range(len(batches), override_num_blocks=len(batches))
            read: Any = _read_batch
            decoded = dataset.map_batches(
                read, batch_size=BATCHES_PER_TASK, fn_args=[reader], num_cpus=1
            )
            results = decoded.map_batches(
                _Actor, batch_size=BATCHES_PER_TASK, **self.actor_options()
            )
            done = num_images - sum(len(positions) for positions in ranges)
            with progress_bar(
                total=num_images, initial=done, description="embedding", disable=not progress
            ) as bar:
                num_skipped = 0
                for positions, row in zip(batches, results.iter_rows(), strict=True):
                    batch = self._embedded(positions, row)
                    num_skipped += len(batch.skipped)
                    bar.set_postfix(skipped=num_skipped, refresh=False)
                    bar.update(len(positions))
                    yield batch
        self._warn_of_ranges()

    def actor_options(self) -> dict[str, Any]:
        """Return the options of `map_batches` that start the actors."""
        import ray

        resources = ray.cluster_resources()
        num_gpus = self._num_gpus
        if num_gpus is None:
            num_gpus = 1 if resources.get("GPU", 0) else 0
        count = self._num_actors
        if count is None:
            available = resources.get("GPU", 0) / num_gpus if num_gpus else resources["CPU"] / 2
            count = max(1, int(available))
        return {
            "compute": ray.data.ActorPoolStrategy(size=count),
            "fn_constructor_args": [ray.put(self.actor_model())],
            "num_gpus": num_gpus or None,
            # Less than the 1 of the tasks that decode, which Ray would otherwise run in the actors.
            "num_cpus": 0 if num_gpus else min(0.9, (resources["CPU"] - 1) / count),
        }

    def actor_model(self) -> dict[str, Any]:
        """Return the arguments of the embedder of an actor, without processor and workers."""
        return {
            "model": self.model,
            "processor": self.processor,
            "normalize": self.normalize,
            "tokens": self.tokens,
        }

    def _embedded(self, positions: range, row: dict[str, Any]) -> EmbeddedBatch:
        batch, ranges, checksums, patches = pickle.loads(row["described"])
        for name, values in zip(batch.ids, ranges, strict=True):
            self._range_check.add(name, values)
        vectors = np.asarray(row["vectors"], dtype=np.float32).reshape(-1, self.embedding_size)
        return EmbeddedBatch(
            batch.ids, batch.labels, vectors, checksums, batch.skipped, positions, patches
        )


def embed_dataset(
    dataset: Any,
    checkpoint: str,
    *,
    image_column: str = "image",
    batch_size: int = 64,
    num_actors: int | None = None,
    num_gpus: float | None = None,
    **options: Any,
) -> Any:
    """Add vectors to a Ray dataset of images, within a pipeline of one's own.

    Args:
        dataset: `ray.data.Dataset`. Its image column holds paths, contents of image files, or
            arrays (H, W), (H, W, C) or (C, H, W).
        checkpoint: Checkpoint folder, which all nodes can read, or Hub id.
        image_column: Name of the column with the images; it is dropped.
        batch_size: Number of images per batch.
        num_actors: As in `RayEmbedder`.
        num_gpus: As in `RayEmbedder`.
        options: Options of `Embedder.from_pretrained`, for example `pooling`.

    Returns:
        Dataset with the other columns, `embedding` (E float32 values; NaN if the image cannot be
        read) and `reason`, why it cannot be read, or "". Nothing is computed yet.

    Raises:
        ValueError: If an argument has no valid value, or the dataset has no such column.
    """
    columns = dataset.columns()
    if image_column not in columns:
        raise ValueError(
            f"image_column ({image_column!r}) must be a column of the dataset; it has "
            f"{', '.join(columns)}."
        )
    options = {"device": "cpu", **options}
    embedder = RayEmbedder(
        Embedder.from_pretrained(checkpoint, batch_size=batch_size, **options),
        num_actors=num_actors,
        num_gpus=num_gpus,
    )
    decoded = dataset.map_batches(
        _decode_column,
        batch_size=batch_size,
        fn_args=[embedder.preparation, image_column],
        num_cpus=1,
    )
    return decoded.map_batches(_ColumnActor, batch_size=batch_size, **embedder.actor_options())


@contextmanager
def _streaming_in_order() -> Any:
    """Let Ray Data return the batches in their order, without bars and messages of its own."""
    import ray

    context = ray.data.DataContext.get_current()
    loggers = [logging.getLogger(name) for name in ("ray.data", "ray")]
    before = context.execution_options.preserve_order, context.enable_progress_bars
    levels = [log.level for log in loggers]
    context.execution_options.preserve_order, context.enable_progress_bars = True, False
    for log in loggers:
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.execution_options.preserve_order, context.enable_progress_bars = before
        for log, level in zip(loggers, levels, strict=True):
            log.setLevel(level)


@lru_cache(maxsize=1)
def _reader(reference: Any) -> tuple[Preparation, ImageSource, Batches]:
    """Return the reader of a run; a process gets it once."""
    import ray

    return ray.get(reference)


def _read_batch(rows: dict[str, np.ndarray], reference: Any) -> dict[str, Any]:
    """Read the batch of a number, in a task."""
    torch.set_num_threads(1)
    preparation, source, batches = _reader(reference)
    batch = preparation.read(source, batches[int(rows["id"][0])])
    return {"pixels": [pickle.dumps(batch, protocol=5)]}


class _Actor:
    """Model of an actor.

    Args:
        reference: Arguments of `Embedder`, in Ray's object store.
    """

    def __init__(self, reference: Any):
        import ray

        device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(1)  # as many as Ray counts for it without a GPU
        self.embedder = Embedder(**ray.get(reference), device=device)

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        batch: ReadBatch = pickle.loads(rows["pixels"][0])
        vectors = np.empty((0, self.embedder.embedding_size), dtype=np.float32)
        ranges: list[Any] = []
        checksums: list[str | None] = []
        patches = None
        if batch.pixels is not None:
            pixel_values, ranges, checksums = batch.pixels
            vectors, patches = self.embedder.embed_tokens(pixel_values)
        described = (
            ReadBatch(batch.ids, batch.labels, None, batch.skipped),
            ranges,
            checksums,
            patches,
        )
        return {"described": [pickle.dumps(described)], "vectors": [vectors.reshape(-1)]}


def _decode_column(
    rows: dict[str, np.ndarray], preparation: Preparation, image_column: str
) -> dict[str, Any]:
    """Decode the images of a column, in a task."""
    torch.set_num_threads(1)
    images = list(rows.pop(image_column))
    records = [ImageRecord(str(number), image) for number, image in enumerate(images)]
    source = RecordSource(records, "a Ray dataset", None)
    batch = preparation.read(source, range(len(records)))
    reasons = [""] * len(records)
    for image in batch.skipped:
        reasons[int(image.id)] = image.reason
    pixels = None if batch.pixels is None else batch.pixels[0]
    decoded = pickle.dumps(pixels, protocol=5)
    parts = [decoded, *[b""] * (len(records) - 1)]  # one row per image, all pixels in the first
    return {**rows, "reason": reasons, "pixels": parts}


class _ColumnActor(_Actor):
    """Model of an actor that adds a column."""

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        content = [pickle.loads(part) for part in rows.pop("pixels") if part]
        found = [pixels for pixels in content if pixels is not None]
        size = self.embedder.embedding_size
        vectors = np.full((len(rows["reason"]), size), np.nan, dtype=np.float32)
        if found:
            is_read = np.array([not reason for reason in rows["reason"]])
            vectors[is_read] = self.embedder.embed_pixels(torch.cat(found))
        return {**rows, "embedding": vectors}


__all__ = ["RayEmbedder", "embed_dataset"]
