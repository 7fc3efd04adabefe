"""Embed a source into a folder of vectors, part by part."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from ...data.dataset_source import AnySource
from ...data.inventory import SkippedImage
from ...data.reading_workers import LostWorkersError
from ...data.remote.file_system import StorageError
from ...data.sources import Data, as_source
from ..embedder import EmbeddedBatch, Embedder
from .comparison import find_other_image
from .fingerprint import checkpoint_fingerprint
from .folder import CREATED_BY, VectorFolder, check_output, skipped_of
from .manifest import VECTOR_DTYPES, Manifest
from .parts import PartWriter
from .storage import resolve

PART_IMAGES = 100_000
PART_SECONDS = 300.0


@dataclass(frozen=True)
class WriteReport:
    """Result of `write_embeddings`.

    Args:
        num_embedded: Number of images in the folder.
        num_before: Number of these that earlier runs embedded.
        skipped: Images that cannot be read.
        seconds: Wall-clock time in seconds.
    """

    num_embedded: int
    num_before: int
    skipped: list[SkippedImage]
    seconds: float


def write_embeddings(
    embedder: Embedder,
    source: AnySource | Data,
    output: str | Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    part_images: int = PART_IMAGES,
    part_seconds: float = PART_SECONDS,
    vector_dtype: str = "float32",
    progress: bool = True,
    metadata: dict[str, Any] | None = None,
) -> WriteReport:
    """Embed a source and write the vectors to a folder.

    The folder contains parts, `part-00000.parquet` and so on (columns `path` or `id`; `seconds` of
    a frame of a video; `label`, the name of the class, if the source is labeled; `checksum` of the
    file; `embedding`, E values), `manifest.json`, `skipped.csv` (path, reason) and
    `metadata.json`, whose `complete` is true at the end only. A part appears when it is complete,
    so a process that is killed loses at most the part that it was writing. Memory use does not grow
    with the number of images that can be read.

    Args:
        embedder: Embedder that computes the vectors.
        source: Images to embed: a source, or paths as in `open_images`.
        output: Folder to write, or its URL in object storage; it must be new or empty, unless
            `overwrite` or `resume` is set.
        overwrite: Whether to replace the embeddings of an earlier run, once there is a new part.
        resume: Whether to keep the parts that an earlier run wrote, and to embed the other images.
        part_images: Maximum number of images per part, skipped ones too.
        part_seconds: Time after which a part is closed even if it has fewer images.
        vector_dtype: Type of the stored values, "float32" or "float16".
        progress: Whether to show a progress bar.
        metadata: Additional entries for `metadata.json`, for example the name of the model.

    Raises:
        FileExistsError: If `output` may not be replaced (see `check_output`).
        LostWorkersError: If too many workers in a row were killed. The vectors before are written.
        StorageError: If object storage cannot be read or written. The parts before are written.
        ValueError: If no image can be read (nothing is written then), if an argument has no valid
            value, or if the earlier run had another checkpoint, other options or other data.
    """
    output = resolve(output)
    check_output(output, overwrite, resume)
    check_part_options(part_images, part_seconds, vector_dtype)
    source = as_source(source)
    folder = open_folder(
        embedder,
        source,
        output,
        resume=resume,
        vector_dtype=vector_dtype,
        metadata=metadata,
        progress=progress,
    )

    def embed() -> None:
        try:
            embed_ranges(
                embedder,
                source,
                folder.manifest.missing(),
                folder,
                part_images=part_images,
                part_seconds=part_seconds,
                progress=progress,
            )
        except (LostWorkersError, StorageError) as error:
            if not folder.manifest.parts:
                raise
            raise type(error)(
                f"{error} The vectors so far are in {output}; go on with --resume."
            ) from error

    return write_folder(folder, source, embed)


def write_folder(folder: VectorFolder, source: AnySource, embed: Callable[[], None]) -> WriteReport:
    """Lock a folder, embed the images that it lacks, and complete it.

    Args:
        folder: Folder of vectors.
        source: Images to embed.
        embed: Function that adds the parts that are missing.

    Raises:
        FileExistsError: If another process writes to the folder, or has begun another run in it.
        ValueError: If the folder was updated, or its images are other ones now, or no image can be
            read; then, nothing is left in it.
    """
    started = time.perf_counter()
    with folder.writing():
        num_before = folder.manifest.num_rows
        if any(part.start is None for part in folder.manifest.parts):
            raise ValueError(
                f"{str(folder.path)!r} was updated, so --resume cannot tell what is missing; use "
                "--update."
            )
        if name := find_other_image(folder.path, folder.manifest, source):
            raise _cannot_resume(folder.path, [f"images ({name} has another content)"])
        embed()
        skipped = _finish(folder, source)
    return WriteReport(folder.manifest.num_rows, num_before, skipped, time.perf_counter() - started)


def check_part_options(part_images: int, part_seconds: float, vector_dtype: str) -> None:
    """Check the options of the parts.

    Raises:
        ValueError: If one has no valid value.
    """
    if part_images < 1:
        raise ValueError(f"part_images ({part_images}) must be at least 1.")
    if not part_seconds > 0:
        raise ValueError(f"part_seconds ({part_seconds}) must be more than 0.")
    if vector_dtype not in VECTOR_DTYPES:
        raise ValueError(
            f"vector_dtype ({vector_dtype!r}) must be one of {', '.join(VECTOR_DTYPES)}."
        )


def open_folder(
    embedder: Embedder,
    source: AnySource,
    output: Path,
    *,
    resume: bool,
    vector_dtype: str,
    metadata: dict[str, Any] | None,
    progress: bool = False,
) -> VectorFolder:
    """Return the folder of a run, with the parts that it has if it is resumed.

    An engine that is left to choose is chosen, and int8 is calibrated; a resumed run goes on with
    what the earlier one had.

    Raises:
        ValueError: If the earlier run had another checkpoint, other options or other data.
    """
    data = {
        "fingerprint": source.fingerprint,
        "description": source.description,
        "num_positions": source.num_positions,
        "id_column": source.id_column,
        "is_labeled": source.label_names is not None,
        "is_video": source.is_video,
        "numbers_rows": source.numbers_rows,
    }
    replaced = Manifest.load(output)
    stored = replaced if resume else None
    earlier = None if stored is None else stored.checkpoint
    embedder.choose_engine(source, earlier, progress=progress)
    manifest = Manifest(checkpoint_fingerprint(embedder, vector_dtype), data)
    if stored is not None:
        if differences := stored.differences(manifest):
            raise _cannot_resume(output, differences)
        manifest = stored
    content = {**(metadata or {}), **_embedder_metadata(embedder), "data": source.description}
    folder = VectorFolder(output, manifest, {**content, "vector_dtype": vector_dtype})
    folder.replaced = None if replaced is None else replaced.run
    return folder


def _cannot_resume(output: Path, differences: Sequence[str]) -> ValueError:
    return ValueError(
        f"{str(output)!r} cannot be resumed, because these differ: {'; '.join(differences)}. Use "
        "the checkpoint, options and images that it was begun with, or a new folder; --update "
        "embeds new and changed images."
    )


def embed_ranges(
    embedder: Embedder,
    source: AnySource,
    ranges: Sequence[range],
    folder: VectorFolder,
    *,
    part_images: int = PART_IMAGES,
    part_seconds: float = PART_SECONDS,
    progress: bool = False,
    keep_empty: bool = False,
    in_order: bool = True,
    on_batch: Callable[[EmbeddedBatch], None] | None = None,
) -> None:
    """Embed positions of a source, and add them to a folder part by part.

    After an error, the part that was being written is added with the images before it, unless that
    would replace an earlier result. A part without any vector stays open for the same reason.

    Args:
        embedder: Embedder that computes the vectors.
        source: Images to embed.
        ranges: Positions to embed.
        folder: Folder of vectors.
        part_images: Maximum number of images per part.
        part_seconds: Time after which a part is closed.
        progress: Whether to show a progress bar.
        keep_empty: Whether to add parts without any vector.
        in_order: Whether the parts say which positions they hold; not in an update.
        on_batch: Function that is called after each batch.

    Raises:
        LostWorkersError: If too many workers in a row were killed.
        OSError: If a part cannot be written.
        ValueError: If the folder has no parts, and no image can be read.
    """

    def may_add(part: PartWriter) -> bool:
        return bool(part.num_rows or keep_empty or folder.manifest.parts)

    part: PartWriter | None = None
    opened = time.monotonic()
    try:
        with closing(embedder.stream(source, ranges=ranges, progress=progress)) as batches:
            for batch in batches:
                if part is not None and may_add(part):
                    is_full = part.num_images + batch.num_images > part_images
                    is_old = time.monotonic() - opened > part_seconds
                    if is_full or is_old or (in_order and batch.positions.start != part.stop):
                        full, part = part, None
                        _add_or_discard(folder, full)
                if part is None:
                    opened = time.monotonic()
                    part = folder.new_part(source, batch.positions.start if in_order else None)
                part.write(batch)
                if on_batch is not None:
                    on_batch(batch)
    except BaseException as error:
        if part is not None and isinstance(error, LostWorkersError):
            part.forget_last_skipped()  # the images are not to blame
        if part is not None and (folder.replaces_earlier_result or not part.num_rows):
            part.discard()
        elif part is not None:
            _add_or_discard(folder, part)
        raise
    if part is None:
        return
    if not may_add(part):
        part.discard()
        raise _nothing_readable(source, part.skipped)
    _add_or_discard(folder, part)


def _add_or_discard(folder: VectorFolder, part: PartWriter) -> None:
    try:
        folder.add(part)
    except BaseException:
        part.discard()
        raise


def _nothing_readable(source: AnySource, skipped: Sequence[SkippedImage]) -> ValueError:
    return ValueError(
        f"none of the {len(skipped)} images can be read ({source.description}); the last one is "
        f"{skipped[-1].id}: {skipped[-1].reason}. Nothing was written."
    )


def _finish(folder: VectorFolder, source: AnySource) -> list[SkippedImage]:
    """Complete a folder that has all parts, and return the images that cannot be read."""
    skipped = [
        SkippedImage(image.name, image.reason)
        for part in folder.manifest.in_order()
        if part.num_skipped
        for image in skipped_of(folder.path / part.file)
    ]
    if not folder.manifest.num_rows:
        folder.clear()
        raise _nothing_readable(source, skipped)
    folder.finish(source.inventory.left_out)
    return skipped


def _embedder_metadata(embedder: Embedder) -> dict[str, Any]:
    from ... import __version__

    rounding = embedder.selection.quantization
    return {
        "created_by": CREATED_BY,
        "pooling": embedder.model.config.pooling,
        "normalize": embedder.normalize,
        "engine": embedder.selection.engine,
        "dtype": embedder.selection.dtype_name,
        **({} if rounding is None else {"quantization": rounding.summary()}),
        "embedding_size": embedder.embedding_size,
        "selfvit_version": __version__,
        "transformers_version": transformers.__version__,
    }


__all__ = [
    "PART_IMAGES",
    "PART_SECONDS",
    "WriteReport",
    "embed_ranges",
    "open_folder",
    "write_embeddings",
    "write_folder",
]
