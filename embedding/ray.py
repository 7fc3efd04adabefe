"""Embed images on a Ray cluster: tasks decode on CPUs, actors hold the model.

Both parts are scaled apart by Ray Data, which streams the batches from one to the other, and runs
tasks and actors again that were lost with their process or node.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from ..data.dataset_source import AnySource, StreamingImageSource, split_at_shards
from ..data.image_source import ImageRecord, RecordSource
from ..data.pixel_format import Findings
from ..data.reading import Batches, ReadBatch
from ..errors import USER_ERRORS
from .embedder import EmbeddedBatch, Embedder
from .engines.interface import AUTO
from .preparation import Preparation

PIXELS = "selfvit_pixels"  # column between the tasks and the actors
ADDED_COLUMNS = ("embedding", "reason", PIXELS)


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
            **self.fixed_engine(embedder),
        )
        self._num_actors = num_actors
        self._num_gpus = num_gpus

    @staticmethod
    def fixed_engine(embedder: Embedder) -> dict[str, Any]:
        """Return the arguments that choose engine and precision for actors, on any device.

        What is left to choose becomes torch, in the precision of the model.
        """
        request = embedder.request
        return {
            "engine": "torch" if request.engine == AUTO else request.engine,
            "dtype": None if request.dtype == AUTO else request.dtype,
            "quantization": request.quantization,
        }

    def _embedded(
        self, source: AnySource, ranges: Sequence[range]
    ) -> Generator[tuple[EmbeddedBatch, list[Findings | None]], None, None]:
        """Yield the results of batches in the order of the source, computed by tasks and actors.

        The nodes must be able to open the files of the source.
        """
        with closing(self._rows(source, ranges)) as rows:  # an error ends the run on the cluster
            for row in rows:
                yield self._result(row)

    def _rows(
        self, source: AnySource, ranges: Sequence[range]
    ) -> Generator[dict[str, Any], None, None]:
        import ray

        units: Sequence[range]
        if isinstance(source, StreamingImageSource):
            units = split_at_shards(ranges)
        else:
            units = Batches(ranges, self.batch_size)
        if not len(units):
            return
        reader = ray.put((self.preparation, source, units, self.batch_size))
        with _streaming_in_order():
            dataset = ray.data.range(len(units), override_num_blocks=len(units))
            read: Any = _read_unit
            decoded = dataset.map_batches(read, batch_size=1, fn_args=[reader], num_cpus=1)
            results = decoded.map_batches(_Actor, batch_size=1, **self.actor_options())
            yield from results.iter_rows()

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
            **self.fixed_engine(self),
        }

    def _result(self, row: dict[str, Any]) -> tuple[EmbeddedBatch, list[Findings | None]]:
        described = pickle.loads(row["described"])
        if isinstance(described, Exception):
            raise described
        positions, batch, findings, checksums, patches = described
        vectors = np.asarray(row["vectors"], dtype=np.float32).reshape(-1, self.embedding_size)
        embedded = EmbeddedBatch(
            batch.ids,
            batch.labels,
            vectors,
            checksums,
            batch.skipped,
            positions,
            batch.seconds,
            patches,
        )
        return embedded, findings


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
        ValueError: If an argument has no valid value, or the dataset has no such column, or other
            columns of the names of the result.
    """
    columns = dataset.columns()
    if image_column not in columns:
        raise ValueError(
            f"image_column ({image_column!r}) must be a column of the dataset; it has "
            f"{', '.join(columns)}."
        )
    taken = [name for name in columns if name in ADDED_COLUMNS and name != image_column]
    if taken:
        raise ValueError(
            f"the result has columns of its own, {', '.join(ADDED_COLUMNS)}, but so has the "
            f"dataset: {', '.join(taken)}; rename them with rename_columns."
        )
    options = {"device": "cpu", **options}
    embedder = RayEmbedder(
        Embedder.from_pretrained(checkpoint, batch_size=batch_size, **options),
        num_actors=num_actors,
        num_gpus=num_gpus,
    )
    if embedder.request.needs_calibration:
        raise ValueError(
            "dtype int8 is calibrated on a source of images, which a Ray dataset is not; use "
            "another dtype, or selfvit embed --runner ray."
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
def _reader(reference: Any) -> Any:
    """Return what `_read_unit` needs; a process gets it once per run."""
    import ray

    return ray.get(reference)


def _read_unit(rows: dict[str, np.ndarray], reference: Any) -> Iterator[dict[str, Any]]:
    """Read the unit of a number batch by batch, in a task.

    An error for the user is returned as the last batch, as Ray would wrap it and lose its message.
    """
    torch.set_num_threads(1)
    preparation, source, units, batch_size = _reader(reference)
    try:
        for positions, batch in preparation.read(source, [units[int(rows["id"][0])]], batch_size):
            yield {"pixels": [pickle.dumps((positions, batch), protocol=5)]}
    except USER_ERRORS as error:
        yield {"pixels": [pickle.dumps(error)]}


class _Actor:
    """Model of an actor.

    Args:
        reference: Arguments of `Embedder`, in Ray's object store.
    """

    def __init__(self, reference: Any):
        import ray

        arguments = ray.get(reference)
        is_int8 = arguments["quantization"] is not None  # which the CPU computes
        device = "cuda" if torch.cuda.is_available() and not is_int8 else "cpu"
        torch.set_num_threads(1)  # as many as Ray counts for it without a GPU
        self.embedder = Embedder(**arguments, device=device)

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        read = pickle.loads(rows["pixels"][0])
        try:
            if isinstance(read, Exception):
                raise read
            return self._embed(*read)
        except USER_ERRORS as error:  # returned as in `_read_unit`
            return {"described": [pickle.dumps(error)], "vectors": [np.empty(0, dtype=np.float32)]}

    def _embed(self, positions: Any, batch: ReadBatch) -> dict[str, Any]:
        vectors = np.empty((0, self.embedder.embedding_size), dtype=np.float32)
        findings: list[Any] = []
        checksums: list[str | None] = []
        patches = None
        if batch.pixels is not None:
            pixels, findings, checksums = batch.pixels
            pixel_values = self.embedder.preparation.normalize(pixels, self.embedder.model.device)
            vectors, patches = self.embedder.embed_tokens(pixel_values)
        described = (
            positions,
            replace(batch, pixels=None),
            findings,
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
    [(_, batch)] = preparation.read(source, [range(len(records))], len(records))
    reasons = [""] * len(records)
    for image in batch.skipped:
        reasons[int(image.id)] = image.reason
    pixels = iter(() if batch.pixels is None else batch.pixels[0])
    # each row has its own pixels, as Ray may divide the rows of a batch
    parts = [
        b"" if reason else pickle.dumps(next(pixels).clone(), protocol=5) for reason in reasons
    ]
    return {**rows, "reason": reasons, PIXELS: parts}


class _ColumnActor(_Actor):
    """Model of an actor that adds a column."""

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        parts = rows.pop(PIXELS)
        images = [pickle.loads(part) for part in parts if part]
        vectors = np.full((len(parts), self.embedder.embedding_size), np.nan, dtype=np.float32)
        if images:
            preparation = self.embedder.preparation
            pixels = preparation.stack_pixels(images)
            pixel_values = preparation.normalize(pixels, self.embedder.model.device)
            vectors[[bool(part) for part in parts]] = self.embedder.embed_pixels(pixel_values)
        return {**rows, "embedding": vectors}


__all__ = ["RayEmbedder", "embed_dataset"]
