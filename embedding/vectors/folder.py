"""Folder of vectors that is readable at every moment: parts are added whole, by any process."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from ...atomic_output import atomic_output, flush_entry
from ...data.dataset_source import AnySource
from ...data.inventory import LeftOut, write_left_out
from ...file_modes import apply_umask
from .manifest import (
    FOOTER,
    MANIFEST,
    PART_PATTERN,
    TABLE,
    Manifest,
    Part,
    describe_part,
    next_part_name,
    read_footer,
)
from .parts import PartWriter

SKIPPED, METADATA = "skipped.csv", "metadata.json"
LOCKS, UNFINISHED = ".locks", ".*.unfinished-*"  # only while a process writes
CREATED_BY = "selfvit embed"
OWN_FILES = (TABLE, SKIPPED, METADATA, MANIFEST, PART_PATTERN, LOCKS, UNFINISHED)


class VectorFolder:
    """Folder that parts are added to.

    Args:
        path: Folder.
        manifest: Manifest of the run; its parts are those that are complete.
        metadata: Content of metadata.json besides the numbers of images.
        may_begin: Whether the first part deletes the result of an earlier run.
    """

    def __init__(
        self, path: Path, manifest: Manifest, metadata: dict[str, Any], may_begin: bool = True
    ):
        self.path = path
        self.manifest = manifest
        self.metadata = metadata
        self._may_begin = may_begin

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Create the folder, and keep others from writing to it.

        Raises:
            FileExistsError: If another process writes to it.
        """
        is_new = not self.path.exists()
        (self.path / LOCKS).mkdir(parents=True, exist_ok=True)
        lock = self._lock("run", blocking=False)
        try:
            lock.acquire()
        except Timeout as error:
            raise FileExistsError(
                f"another process is writing vectors to {str(self.path)!r}; wait for its end, or "
                "choose another folder."
            ) from error
        try:
            self._remove_unfinished()
            yield
        finally:
            lock.release()
            shutil.rmtree(self.path / LOCKS, ignore_errors=True)
            if is_new and not any(self.path.iterdir()):
                self.path.rmdir()

    def _remove_unfinished(self) -> None:
        """Remove what processes that were killed have left."""
        for leftover in self.path.glob(UNFINISHED):
            leftover.unlink()

    def _lock(self, name: str, blocking: bool = True) -> FileLock:
        return FileLock(self.path / LOCKS / f"{name}.lock", blocking=blocking)

    def new_part(self, source: AnySource, start: int | None) -> PartWriter:
        """Return a writer of a part.

        Args:
            source: Images to embed.
            start: First position of the part.
        """
        path = self.path / f".part.unfinished-{uuid.uuid4().hex[:8]}"
        return PartWriter(path, self.manifest.schema, source.label_names, start)

    def add(self, part: PartWriter) -> None:
        """Complete a part, and add it to the folder.

        With the first part, the result of an earlier run is deleted.

        Raises:
            FileExistsError: If another run has begun in the folder.
            OSError: If it cannot be written.
        """
        footer = part.close(self.manifest.run)
        with self._lock("manifest"):
            stored = Manifest.load(self.path)
            if stored is None or stored.run != self.manifest.run:
                stored = self.begin()
            names = [path.name for path in self.path.glob(PART_PATTERN)]
            entry = self._move(part.path, next_part_name(names), footer)
            self.manifest = replace(stored, parts=[*stored.parts, entry])
            self.manifest.save(self.path)

    def _move(self, unfinished: Path, name: str, footer: dict[str, Any]) -> Part:
        """Let a complete file appear under its name, and return its entry of the manifest."""
        apply_umask([unfinished])
        flush_entry(unfinished)
        os.rename(unfinished, self.path / name)
        flush_entry(self.path)
        return describe_part(self.path / name, footer)

    def begin_update(self) -> None:
        """Write metadata and manifest of an update: the rows lose their order of a source."""
        self._write_metadata({"complete": False})
        parts = [replace(p, start=None, stop=None, num_skipped=0) for p in self.manifest.parts]
        self.manifest = replace(self.manifest, parts=parts)
        self.manifest.save(self.path)

    def replace_part(self, part: Part, table: pa.Table) -> None:
        """Replace the rows of a part; one without rows is deleted.

        Args:
            part: Part of the folder.
            table: New rows.

        Raises:
            OSError: If they cannot be written.
        """
        parts = [other for other in self.manifest.parts if other.file != part.file]
        if not len(table):
            (self.path / part.file).unlink()
        else:
            footer: dict[str, Any] = {
                "run": self.manifest.run,
                "start": None,
                "stop": None,
                "skipped": [],
            }
            unfinished = self.path / f".part.unfinished-{uuid.uuid4().hex[:8]}"
            metadata = {**(table.schema.metadata or {}), FOOTER: json.dumps(footer).encode()}
            table = table.replace_schema_metadata(metadata)
            pq.write_table(table, unfinished, write_page_checksum=True)
            parts.append(self._move(unfinished, part.file, footer))
        self.manifest = replace(self.manifest, parts=parts)
        self.manifest.save(self.path)

    @property
    def is_new_run(self) -> bool:
        """Whether this run has not begun yet."""
        stored = Manifest.load(self.path)
        return stored is None or stored.run != self.manifest.run

    @property
    def replaces_earlier_result(self) -> bool:
        """Whether the first part of this run will delete the result of an earlier run."""
        return self.is_new_run and (self.path / METADATA).exists()

    def begin(self) -> Manifest:
        """Delete the files of an earlier run, and write metadata and manifest of this one.

        Raises:
            FileExistsError: If that is left to another process.
        """
        if not self._may_begin:
            raise FileExistsError(
                f"another run has begun in {str(self.path)!r}; choose another folder."
            )
        self.clear()
        self._write_metadata({"complete": False})
        begun = replace(self.manifest, parts=[])
        begun.save(self.path)
        return begun

    def clear(self) -> None:
        """Delete the files of this run or an earlier one."""
        for path in self.path.iterdir():
            if path.name in (TABLE, SKIPPED, METADATA, MANIFEST) or path.match(PART_PATTERN):
                path.unlink()

    def finish(self, left_out: Sequence[LeftOut]) -> None:
        """Write skipped.csv, and say in metadata.json that the vectors are complete.

        Args:
            left_out: Images that were left out, besides those that the parts name.
        """
        self._remove_unfinished()
        num_skipped = len(left_out)
        with atomic_output(self.path / SKIPPED) as unfinished:
            write_left_out(unfinished, left_out)
            for part in self.manifest.in_order():
                skipped = skipped_of(self.path / part.file) if part.num_skipped else []
                write_left_out(unfinished, skipped)
                num_skipped += part.num_skipped
        num_embedded = self.manifest.num_rows
        counts = {"num_embedded": num_embedded, "num_skipped": num_skipped, "complete": True}
        self._write_metadata(counts)

    def _write_metadata(self, counts: dict[str, Any]) -> None:
        text = json.dumps({**self.metadata, **counts}, indent=2, ensure_ascii=False) + "\n"
        with atomic_output(self.path / METADATA) as unfinished:
            unfinished.write_text(text, encoding="utf-8")


def skipped_of(part: Path) -> list[LeftOut]:
    """Return the images that could not be read while a part was written.

    Args:
        part: File of vectors.
    """
    footer = read_footer(part) or {"skipped": []}
    return [LeftOut(name, reason) for name, reason in footer["skipped"]]


def check_output(output: Path, overwrite: bool = False, resume: bool = False) -> None:
    """Check that vectors can be written to a folder, before any work is done.

    Args:
        output: Folder to write.
        overwrite: Whether the vectors of an earlier run may be replaced.
        resume: Whether to go on with the vectors of an earlier run.

    Raises:
        FileExistsError: If `output` is a file or a link, or contains something that may not be
            replaced: a file that `write_embeddings` did not write is never deleted.
        ValueError: If both `overwrite` and `resume` are set.
    """
    if overwrite and resume:
        raise ValueError(
            "overwrite starts from the beginning and resume goes on; choose one of --overwrite and "
            "--resume."
        )
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise FileExistsError(
            f"the output must be a folder, but {str(output)!r} is a file or a link; choose a new "
            "folder."
        )
    names = sorted(entry.name for entry in output.iterdir()) if output.is_dir() else []
    left = [name for name in names if name != LOCKS and not fnmatchcase(name, UNFINISHED)]
    if not left:
        return
    # the manifest is written last, so a run that was killed at its start may have none
    is_begun = _is_own(output) and not (output / TABLE).exists()
    if resume and is_begun:
        return
    if resume:
        raise FileExistsError(
            f"{str(output)!r} holds no run to go on with: it was not written by {CREATED_BY!r}, or "
            "by a version without parts; choose a new folder."
        )
    if not overwrite:
        way = ", or --resume to go on" if is_begun else ""
        raise FileExistsError(
            f"{str(output)!r} is not empty; choose a new folder, or use --overwrite "
            f"(overwrite=True) to replace an earlier result{way}."
        )
    _check_replaceable(output, left)


def _check_replaceable(output: Path, names: Sequence[str]) -> None:
    if not _is_own(output):
        raise FileExistsError(
            f"{str(output)!r} is not replaced, because it contains {', '.join(names[:3])} but no "
            f"{METADATA} created by {CREATED_BY!r}; choose a new folder."
        )
    foreign = [n for n in names if not any(fnmatchcase(n, pattern) for pattern in OWN_FILES)]
    if foreign:
        raise FileExistsError(
            f"{str(output)!r} is not replaced, because it contains {', '.join(foreign[:3])}, which "
            f"{CREATED_BY!r} did not write; choose a new folder."
        )


def _is_own(output: Path) -> bool:
    try:
        content = json.loads((output / METADATA).read_text(encoding="utf-8"))
        return content["created_by"] == CREATED_BY
    except (OSError, ValueError, KeyError, TypeError):
        return False


__all__ = [
    "CREATED_BY",
    "METADATA",
    "SKIPPED",
    "VectorFolder",
    "check_output",
    "skipped_of",
]
