"""Vectors on the disk: a folder with a Parquet table, the images skipped, and where it is from.

The folder appears whole or not at all.
"""

from __future__ import annotations

import csv
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import transformers

from ..atomic_output import atomic_output, names_to_replace
from ..data.image_source import ImageSource
from .embedder import EmbeddedBatch, Embedder

TABLE, SKIPPED, METADATA = "embeddings.parquet", "skipped.csv", "metadata.json"
CREATED_BY = "selfvit embed"

# Rows of the table are written in groups of this many values: 16 MiB of float32.
VALUES_PER_ROW_GROUP = 4 * 2**20


@dataclass(frozen=True)
class WriteReport:
    """What was written.

    Args:
        num_embedded: images in the table.
        num_skipped: images that could not be read.
        seconds: wall-clock time.
    """

    num_embedded: int
    num_skipped: int
    seconds: float


def write_embeddings(
    embedder: Embedder,
    source: ImageSource,
    output: Path,
    *,
    overwrite: bool = False,
    progress: bool = True,
    metadata: dict[str, Any] | None = None,
) -> WriteReport:
    """Embed a source into a folder.

    The folder holds `embeddings.parquet` (columns `path` or `id`; `label`, the class's name, if the
    source is labeled; `embedding`, E float32 values), `skipped.csv` (path, reason) and
    `metadata.json`. Memory stays bounded, whatever the number of images.

    Args:
        embedder: gives the vectors.
        source: of images.
        output: the folder; must not exist, or be empty, or be replaced.
        overwrite: whether an `output` of an earlier run is replaced, once the new one is whole.
        progress: whether to show a bar.
        metadata: to be added to `metadata.json`: the model's name, for instance.

    Raises:
        FileExistsError: if `output` is in the way (see `check_output`).
        ValueError: if no image can be read; then there is no output.
    """
    started = time.perf_counter()
    output = Path(output)
    check_output(output, overwrite)
    num_embedded = num_skipped = 0
    reason = ""
    with atomic_output(output) as folder:
        folder.mkdir()
        with (
            open(folder / SKIPPED, "w", newline="", encoding="utf-8") as skipped_file,
            _TableWriter(folder / TABLE, embedder.embedding_size, source) as table,
        ):
            skipped_rows = csv.writer(skipped_file)
            skipped_rows.writerow(["path", "reason"])
            for batch in embedder.stream(source, progress=progress):
                table.write(batch)
                skipped_rows.writerows((skipped.id, skipped.reason) for skipped in batch.skipped)
                num_embedded += len(batch.ids)
                num_skipped += len(batch.skipped)
                reason = batch.skipped[-1].reason if batch.skipped else reason
        if not num_embedded:
            raise ValueError(
                f"none of the {num_skipped} images can be read ({source.description}); the last: "
                f"{reason}. Nothing was written."
            )
        facts = {
            **(metadata or {}),
            **_facts(embedder),
            "data": source.description,
            "num_embedded": num_embedded,
            "num_skipped": num_skipped,
        }
        text = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
        (folder / METADATA).write_text(text, encoding="utf-8")
    return WriteReport(num_embedded, num_skipped, time.perf_counter() - started)


def check_output(output: Path, overwrite: bool = False) -> None:
    """Check that a folder can be written, before any work is done.

    Args:
        output: the folder.
        overwrite: whether it may hold an earlier run's output.

    Raises:
        FileExistsError: if it is a file, or holds anything else than what may be replaced: no file
            that `write_embeddings` did not make is ever deleted.
    """
    held = names_to_replace(output, overwrite)
    if not held:
        return
    foreign = [name for name in held if name not in (TABLE, SKIPPED, METADATA)]
    if foreign or not _is_earlier_output(output):
        raise FileExistsError(
            f"{str(output)!r} is not replaced: it "
            + (f"holds other things, {', '.join(foreign[:3])}" if foreign else "has other contents")
            + f", which {CREATED_BY!r} did not write. Give a new folder."
        )


def _is_earlier_output(folder: Path) -> bool:
    try:
        return json.loads((folder / METADATA).read_text("utf-8"))["created_by"] == CREATED_BY
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _facts(embedder: Embedder) -> dict[str, Any]:
    from .. import __version__

    return {
        "created_by": CREATED_BY,
        "pooling": embedder.model.config.pooling,
        "normalize": embedder.normalize,
        "dtype": str(embedder.model.dtype).removeprefix("torch."),
        "embedding_size": embedder.embedding_size,
        "selfvit_version": __version__,
        "transformers_version": transformers.__version__,
    }


class _TableWriter:
    """Writes batches to a Parquet file, gathered into row groups of a size good for reading."""

    def __init__(self, path: Path, embedding_size: int, source: ImageSource):
        self.label_names = source.label_names
        fields = [pa.field(source.id_column, pa.string())]
        if self.label_names is not None:
            fields.append(pa.field("label", pa.string()))
        fields.append(pa.field("embedding", pa.list_(pa.float32(), embedding_size)))
        self.schema = pa.schema(fields)
        self.embedding_size = embedding_size
        self.waiting: list[pa.RecordBatch] = []
        self.num_waiting = 0
        self.writer = pq.ParquetWriter(path, self.schema)

    def __enter__(self) -> _TableWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            if exception[0] is None:
                self._flush()
        finally:
            self.writer.close()

    def write(self, batch: EmbeddedBatch) -> None:
        columns = [pa.array(batch.ids, pa.string())]
        if self.label_names is not None:
            names = [None if label is None else self.label_names[label] for label in batch.labels]
            columns.append(pa.array(names, pa.string()))
        values = pa.array(batch.vectors.reshape(-1), pa.float32())
        columns.append(pa.FixedSizeListArray.from_arrays(values, self.embedding_size))
        self.waiting.append(pa.record_batch(columns, schema=self.schema))
        self.num_waiting += len(batch.ids)
        if self.num_waiting * self.embedding_size >= VALUES_PER_ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self.num_waiting:
            self.writer.write_table(pa.Table.from_batches(self.waiting, self.schema))
        self.waiting, self.num_waiting = [], 0


__all__ = ["WriteReport", "check_output", "write_embeddings"]
