"""Write embeddings to a folder: a Parquet table, the skipped images, and metadata.

The folder appears completely or not at all.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import transformers

from ..atomic_output import atomic_output
from ..atomic_output import check_output as check_output_folder
from ..data.image_source import ImageSource
from ..data.inventory import SkippedImage, write_left_out
from ..data.reading_workers import LostWorkersError
from .embedder import EmbeddedBatch, Embedder

TABLE, SKIPPED, METADATA = "embeddings.parquet", "skipped.csv", "metadata.json"
CREATED_BY = "selfvit embed"
NOT_READ = "not read, because too many worker processes were killed"

VALUES_PER_ROW_GROUP = 4 * 2**20  # values per row group of the table: 16 MiB of float32


@dataclass(frozen=True)
class WriteReport:
    """Result of `write_embeddings`.

    Args:
        num_embedded: Number of images in the table.
        skipped: Images that cannot be read.
        seconds: Wall-clock time in seconds.
    """

    num_embedded: int
    skipped: list[SkippedImage]
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
    """Embed a source and write the vectors to a folder.

    The folder contains `embeddings.parquet` (columns `path` or `id`; `label`, the name of the
    class, if the source is labeled; `embedding`, E float32 values), `skipped.csv` (path, reason)
    and `metadata.json`. Memory use does not grow with the number of images that can be read.

    Args:
        embedder: Embedder that computes the vectors.
        source: Images to embed.
        output: Folder to write; it must be new or empty, unless `overwrite` is set.
        overwrite: Whether to replace the embeddings of an earlier run, once the new ones are
            complete.
        progress: Whether to show a progress bar.
        metadata: Additional entries for `metadata.json`, for example the name of the model.

    Raises:
        FileExistsError: If `output` may not be replaced (see `check_output`).
        LostWorkersError: If too many workers in a row were killed. The vectors before are written,
            and the other images are listed in `skipped.csv`.
        ValueError: If no image can be read; nothing is written then.
    """
    started = time.perf_counter()
    output = Path(output)
    check_output(output, overwrite)
    num_embedded = 0
    skipped: list[SkippedImage] = []
    lost: LostWorkersError | None = None
    with atomic_output(output) as folder:
        folder.mkdir()
        with _TableWriter(folder / TABLE, embedder.embedding_size, source) as table:
            try:
                for batch in embedder.stream(source, progress=progress):
                    table.write(batch)
                    num_embedded += len(batch.ids)
                    skipped += batch.skipped
            except LostWorkersError as error:
                if not num_embedded:
                    raise
                lost = error
                rest = range(num_embedded + len(skipped), len(source))
                skipped += [SkippedImage(source.name_of(place), NOT_READ) for place in rest]
        if not num_embedded:
            raise ValueError(
                f"none of the {len(skipped)} images can be read ({source.description}); the last "
                f"one is {skipped[-1].id}: {skipped[-1].reason}. Nothing was written."
            )
        left_out = source.inventory.all_left_out(skipped)
        write_left_out(folder / SKIPPED, left_out)
        content = {
            **(metadata or {}),
            **_embedder_metadata(embedder),
            "data": source.description,
            "num_embedded": num_embedded,
            "num_skipped": len(left_out),
        }
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / METADATA).write_text(text, encoding="utf-8")
    if lost is not None:
        raise LostWorkersError(
            f"{lost} The vectors of the first {num_embedded} images are in {output}."
        ) from lost
    return WriteReport(num_embedded, skipped, time.perf_counter() - started)


def check_output(output: Path, overwrite: bool = False) -> None:
    """Check that embeddings can be written to a folder, before any work is done.

    Args:
        output: Folder to write.
        overwrite: Whether the embeddings of an earlier run may be replaced.

    Raises:
        FileExistsError: If `output` is a file or a link, or contains something that may not be
            replaced: a file that `write_embeddings` did not write is never deleted.
    """
    check_output_folder(
        output, METADATA, overwrite, files=(TABLE, SKIPPED, METADATA), created_by=CREATED_BY
    )


def _embedder_metadata(embedder: Embedder) -> dict[str, Any]:
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
    """Writer that collects batches into row groups large enough to be read efficiently."""

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
