"""Bring a folder of vectors up to date with its images: embed what is new or has changed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...data.checksum import checksum_of
from ...data.dataset_source import AnySource, StreamingImageSource
from ...data.image_source import ChosenSource, ImageSource
from ...data.inventory import SkippedImage
from ...progress import progress_bar
from ..embedder import Embedder
from .folder import VectorFolder
from .manifest import Manifest, Part
from .storage import parquet_input, resolve
from .writer import PART_IMAGES, check_part_options, embed_ranges, open_folder

NUM_THREADS = 8  # that read files for their checksums


@dataclass(frozen=True)
class UpdateReport:
    """Result of `update_embeddings`.

    Args:
        num_kept: Number of vectors that were kept.
        num_new: Number of images that had no vector, without those that cannot be read.
        num_changed: Number of images whose content or label has changed, likewise.
        num_removed: Number of vectors whose image is gone, or can no longer be read.
        skipped: Images that cannot be read.
        seconds: Wall-clock time in seconds.
    """

    num_kept: int
    num_new: int
    num_changed: int
    num_removed: int
    skipped: list[SkippedImage]
    seconds: float


def update_embeddings(
    embedder: Embedder,
    source: AnySource,
    output: Path,
    *,
    part_images: int = PART_IMAGES,
    vector_dtype: str = "float32",
    progress: bool = True,
    metadata: dict[str, Any] | None = None,
) -> UpdateReport:
    """Embed the new and changed images of a source, and drop the vectors of those that are gone.

    Every image with a vector is read for its checksum, as neither its path nor its time tells that
    it has changed. Afterwards the rows no longer have the order of the source. An interrupted
    update continues when it is repeated.

    Args:
        embedder: Embedder with the checkpoint and options that the folder was written with.
        source: Images.
        output: Folder of vectors, or its URL.
        part_images: Maximum number of images per new part.
        vector_dtype: Type of the stored values; it must be that of the folder.
        progress: Whether to show progress bars.
        metadata: Additional entries for `metadata.json`.

    Raises:
        FileExistsError: If another process writes to the folder.
        FileNotFoundError: If there are no vectors to update.
        ValueError: If the folder was written with another checkpoint or other options, or its
            columns do not fit the source, or the source is a stream.
    """
    started = time.perf_counter()
    if isinstance(source, StreamingImageSource):
        way = "embed videos into a new folder" if source.is_video else "leave out --streaming"
        raise ValueError(
            "--update needs images that are read by position, to compare them with the vectors; "
            f"{way}."
        )
    output = resolve(output)
    check_part_options(part_images, 1, vector_dtype)
    if (stored := Manifest.load(output)) is None:
        raise FileNotFoundError(
            f"{str(output)!r} holds no vectors to update; write them first, without --update."
        )
    embedder.choose_engine(source, stored.checkpoint)
    folder = open_folder(
        embedder, source, output, resume=False, vector_dtype=vector_dtype, metadata=metadata
    )
    _check_same(stored, folder.manifest, output)
    folder.replaced = stored.run
    folder.manifest = replace(folder.manifest, run=stored.run)
    with folder.writing():
        changes = _Changes(folder, source, progress)
        folder.begin_update()
        num_kept = _drop_rows(folder, changes.kept)
        skipped: list[SkippedImage] = []
        if len(changes.positions):
            embed_ranges(
                embedder,
                chosen := ChosenSource(source, changes.positions),
                [range(len(chosen))],
                folder,
                part_images=part_images,
                progress=progress,
                keep_empty=True,
                in_order=False,
                on_batch=lambda batch: skipped.extend(batch.skipped),
            )
        folder.finish(source.inventory.left_out)
    names = {image.id for image in skipped}
    num_changed = len(changes.changed - names)
    num_new = len(changes.positions) - len(skipped) - num_changed
    num_removed = changes.num_rows - num_kept - num_changed
    seconds = time.perf_counter() - started
    return UpdateReport(num_kept, num_new, num_changed, num_removed, skipped, seconds)


def _check_same(stored: Manifest, wanted: Manifest, output: Path) -> None:
    if differences := replace(stored, data=wanted.data).differences(wanted):
        raise ValueError(
            f"{str(output)!r} cannot be updated, because these differ: {'; '.join(differences)}. "
            "Use the checkpoint and options that it was written with, or a new folder."
        )
    if stored.schema.names != wanted.schema.names:
        raise ValueError(
            f"{str(output)!r} has the columns {', '.join(stored.schema.names)}, but its images now "
            f"give {', '.join(wanted.schema.names)}; write to a new folder."
        )


class _Changes:
    """Differences between the rows of a folder and a source.

    Args:
        folder: Folder of vectors.
        source: Images.
        progress: Whether to show a progress bar.
    """

    def __init__(self, folder: VectorFolder, source: ImageSource, progress: bool):
        rows = {
            row["id"]: (row["checksum"], row["label"])
            for part in folder.manifest.parts
            for row in _rows_without_vectors(folder.path / part.file)
        }
        self.num_rows = len(rows)
        self.kept: set[str] = set()
        self.changed: set[str] = set()
        positions = []
        names = source.names()
        if len(set(names)) < len(names):
            raise ValueError(
                f"an update needs images with different names, but {source.description} has some "
                "names twice; write to a new folder."
            )
        known = [position for position, name in enumerate(names) if name in rows]
        found = dict(_current(source, known, progress))
        for position, name in enumerate(names):
            if position in found and found[position] == rows[name]:
                self.kept.add(name)
                continue
            positions.append(position)
            if position in found:
                self.changed.add(name)
        self.positions = np.array(positions, dtype=np.int64)


def _rows_without_vectors(file: Path) -> Iterator[dict[str, Any]]:
    with parquet_input(file) as place:
        columns = pq.read_schema(place).names
        names = [name for name in columns if name not in ("embedding", "patches")]
    with parquet_input(file) as place:
        rows = pq.read_table(place, columns=names).to_pylist()
    for row in rows:
        yield {"id": row[names[0]], "checksum": row["checksum"], "label": row.get("label")}


def _current(
    source: ImageSource, positions: list[int], progress: bool
) -> Iterator[tuple[int, tuple[str | None, str | None]]]:
    """Yield positions, each with the checksum and the label that the image has now."""

    def look(position: int) -> tuple[int, tuple[str | None, str | None]]:
        record = source[position]
        names = source.label_names
        label = None if names is None or record.label is None else names[record.label]
        try:
            return position, (checksum_of(record.image), label)
        except OSError:
            return position, (None, label)  # the reader will say why it cannot be read

    with (
        ThreadPoolExecutor(NUM_THREADS) as pool,
        progress_bar(total=len(positions), description="comparing", disable=not progress) as bar,
    ):
        for result in pool.map(look, positions):
            bar.update(1)
            yield result


def _drop_rows(folder: VectorFolder, kept: set[str]) -> int:
    """Rewrite the parts that hold other rows than those to keep, and return the number kept.

    Parts without rows are deleted: they only name the images that could not be read earlier.
    """
    seen: set[str] = set()
    for part in list(folder.manifest.parts):
        with parquet_input(folder.path / part.file) as place:
            column = folder.manifest.data["id_column"]
            ids = pq.read_table(place, columns=[column]).column(0).to_pylist()
        keep = []
        for name in ids:
            keep.append(name in kept and name not in seen)
            seen.add(name)
        if not keep or not all(keep):
            _rewrite(folder, part, keep)
    return len(seen & kept)


def _rewrite(folder: VectorFolder, part: Part, keep: list[bool]) -> None:
    with parquet_input(folder.path / part.file) as place:
        table = pq.read_table(place)
    folder.replace_part(part, table.filter(pa.array(keep, pa.bool_())))


__all__ = ["UpdateReport", "update_embeddings"]
