"""Write one part of a folder of vectors: a Parquet file that appears when it is complete."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...data.inventory import SkippedImage
from .manifest import FOOTER

if TYPE_CHECKING:
    from ..embedder import EmbeddedBatch

VALUES_PER_ROW_GROUP = 4 * 2**20  # values per row group of a part: 16 MiB of float32


class PartWriter:
    """Writer of one part, which collects batches into row groups large enough to read efficiently.

    Args:
        path: Temporary file to write.
        schema: Columns, see `Manifest.schema`.
        label_names: Names of the classes, or None.
        start: First position of the part.
    """

    def __init__(
        self, path: Path, schema: pa.Schema, label_names: list[str] | None, start: int | None
    ):
        self.path = path
        self.schema = schema
        self.label_names = label_names
        self.start, self.stop = start, start
        self.num_rows = 0
        self.skipped: list[SkippedImage] = []
        self._last_read = start, 0  # end and skipped images of the last batch that was read
        self._values_per_row = sum(_num_values(field.type) for field in schema)
        self._waiting: list[pa.RecordBatch] = []
        self._num_waiting = 0
        self._writer = pq.ParquetWriter(path, schema, write_page_checksum=True)

    @property
    def num_images(self) -> int:
        """Number of images, skipped ones too."""
        return self.num_rows + len(self.skipped)

    def write(self, batch: EmbeddedBatch) -> None:
        """Add the images of a batch.

        Raises:
            OSError: If they cannot be written.
        """
        vectors = self.schema.field("embedding").type
        columns = [pa.array(batch.ids, pa.string())]
        if "seconds" in self.schema.names:
            columns.append(pa.array(batch.seconds, pa.float64()))
        if self.label_names is not None:
            names = [None if label is None else self.label_names[label] for label in batch.labels]
            columns.append(pa.array(names, pa.string()))
        columns.append(pa.array(batch.checksums, pa.string()))
        values = batch.vectors.reshape(-1).astype(vectors.value_type.to_pandas_dtype(), copy=False)
        columns.append(pa.FixedSizeListArray.from_arrays(pa.array(values), vectors.list_size))
        if "patches" in self.schema.names:
            columns.append(_nested(batch.patches, self.schema.field("patches").type))
        self._waiting.append(pa.record_batch(columns, schema=self.schema))
        self._num_waiting += len(batch.ids)
        self.skipped += batch.skipped
        if self.start is not None:
            self.stop = batch.positions.stop
        self.num_rows += len(batch.ids)  # last: an interruption before shows in the file
        if batch.ids:
            self._last_read = self.stop, len(self.skipped)
        if self._num_waiting * self._values_per_row >= VALUES_PER_ROW_GROUP:
            self._flush()

    def forget_last_skipped(self) -> None:
        """Forget the last batches if none of their images could be read; they are tried again."""
        self.stop, num_skipped = self._last_read
        del self.skipped[num_skipped:]

    def close(self, run: str) -> dict[str, Any]:
        """Write what is left and the description of the part, and return that description.

        Args:
            run: Run that the part belongs to, see `Manifest.run`.

        Raises:
            OSError: If it cannot be written.
        """
        skipped = [[image.id, image.reason] for image in self.skipped]
        footer = {"run": run, "start": self.start, "stop": self.stop, "skipped": skipped}
        self._flush()
        # bytes of a name that are not UTF-8 are surrogates, which JSON escapes
        self._writer.add_key_value_metadata({FOOTER: json.dumps(footer).encode()})
        self._writer.close()
        return footer

    def discard(self) -> None:
        """Remove the temporary file."""
        with contextlib.suppress(OSError):  # the disk is full; nothing of the file is used
            self._writer.close()
        self.path.unlink(missing_ok=True)

    def _flush(self) -> None:
        # an interruption is raised after the rows are written, and `close` must not repeat them
        waiting, num_waiting = self._waiting, self._num_waiting
        self._waiting, self._num_waiting = [], 0
        if num_waiting:
            self._writer.write_table(pa.Table.from_batches(waiting, self.schema))


def _num_values(kind: pa.DataType) -> int:
    return kind.list_size * _num_values(kind.value_type) if hasattr(kind, "list_size") else 1


def _nested(values: np.ndarray | None, kind: pa.DataType) -> pa.Array:
    """Return an array of nested lists of fixed sizes, from (N, *sizes) values."""
    flat = np.empty(0, dtype=np.float16) if values is None else values.reshape(-1)
    sizes, inner = [], kind
    while hasattr(inner, "list_size"):
        sizes.append(inner.list_size)
        inner = inner.value_type
    nested = pa.array(flat)
    for size in reversed(sizes):
        nested = pa.FixedSizeListArray.from_arrays(nested, size)
    return nested


__all__ = ["PartWriter"]
