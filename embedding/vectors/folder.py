"""Folder of vectors that is readable at every moment: parts are added whole, by any process."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from ...data.dataset_source import AnySource
from ...data.inventory import LeftOut, write_left_out
from ...data.remote.file_system import StorageError
from .columns import is_own_feather
from .manifest import (
    FOOTER,
    MANIFEST,
    TABLE,
    Manifest,
    Part,
    describe_part,
    next_part_name,
    part_names,
    read_footer,
)
from .parts import PartWriter
from .storage import LOCKS, UNFINISHED, is_remote, read_text, storage_of

SKIPPED, METADATA = "skipped.csv", "metadata.json"
CREATED_BY = "selfvit embed"
INDEX = ("index.faiss", "index.json")  # of the vectors, written by `selfvit index`
PASSIVE = (LOCKS, ".gitattributes")  # which a new dataset on the Hub has


class VectorFolder:
    """Folder that parts are added to.

    Args:
        path: Folder.
        manifest: Manifest of the run; its parts are those that are complete.
        metadata: Content of metadata.json besides the numbers of images.
        may_begin: Whether the first part deletes the result of an earlier run.

    Attributes:
        replaced: Run that the folder had when it was opened, or None; no other one is replaced or
            continued.
    """

    def __init__(
        self, path: Path, manifest: Manifest, metadata: dict[str, Any], may_begin: bool = True
    ):
        self.path = path
        self.storage = storage_of(path)
        self.manifest = manifest
        self.metadata = metadata
        self._may_begin = may_begin
        self.replaced = _run_of(path)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Create the folder, keep others from writing to it, and find the parts that it has.

        Raises:
            FileExistsError: If another process writes to it, or has begun another run in it since
                it was opened.
        """
        self.storage.prepare()
        lock = self._lock("run", blocking=False)
        try:
            lock.acquire()
        except Timeout as error:
            raise FileExistsError(
                f"another process is writing vectors to {str(self.path)!r}; wait for its end, or "
                "choose another folder."
            ) from error
        try:
            self.storage.remove_unfinished()
            with self._lock("manifest"):  # a process of a killed group may still add a part
                self._find_parts()
            yield
        finally:
            lock.release()
            self.storage.clean()

    def _find_parts(self) -> None:
        """Take the parts of this run as they are now; another process may have added some."""
        stored = Manifest.load(self.path)
        if (None if stored is None else stored.run) != self.replaced:
            raise self._other_run()
        if stored is None or stored.run != self.manifest.run:
            return
        found = stored.with_found_parts(self.path)
        if found != stored:
            found.save(self.path)
        self.manifest = replace(self.manifest, parts=found.parts)
        self._delete_unnamed_parts(found)

    def _delete_unnamed_parts(self, manifest: Manifest) -> None:
        """Delete parts of this run that its manifest does not name, as other parts replace them.

        They are left by a process that was killed before it saved the manifest.
        """
        for name in manifest.unnamed_parts(self.storage.sizes()):
            footer = read_footer(self.path / name)
            if footer is not None and footer["run"] == manifest.run:
                self.storage.delete([name])

    def _other_run(self) -> FileExistsError:
        return FileExistsError(
            f"another run has begun in {str(self.path)!r}; repeat the command, or choose another "
            "folder."
        )

    def _lock(self, name: str, blocking: bool = True) -> FileLock:
        return FileLock(self.storage.locks / f"{name}.lock", blocking=blocking)

    def new_part(self, source: AnySource, start: int | None) -> PartWriter:
        """Return a writer of a part.

        Args:
            source: Images to embed.
            start: First position of the part.
        """
        return PartWriter(self.storage.new_file(), self.manifest.schema, source.label_names, start)

    def add(self, part: PartWriter) -> None:
        """Complete a part, and add it to the folder.

        With the first part, the result of an earlier run is deleted. A part that does not have the
        rows that were counted, because it was interrupted, is discarded.

        Raises:
            FileExistsError: If another run has begun in the folder.
            OSError: If it cannot be written.
        """
        footer = part.close(self.manifest.run)
        entry = describe_part(part.path, footer)
        if entry.num_rows != part.num_rows:
            part.discard()
            return
        with self._lock("manifest"):
            stored = Manifest.load(self.path)
            if stored is None or stored.run != self.manifest.run:
                stored = self.begin()
            if is_remote(self.path):
                self._check_alone(stored, footer["start"], footer["stop"])
            name = next_part_name(part_names(self.storage.sizes()))
            self.storage.add(part.path, name)
            self.manifest = replace(stored, parts=[*stored.parts, replace(entry, file=name)])
            self.manifest.save(self.path)
            if footer["skipped"] and not is_remote(self.path):  # `finish` writes the whole list
                write_left_out(self.path / SKIPPED, _left_out(footer))

    def _check_alone(self, stored: Manifest, start: int | None, stop: int | None) -> None:
        """Check that no other machine, which locks do not reach, has embedded the same images.

        Raises:
            FileExistsError: If one has.
        """
        if not stored.lacks(start, stop):
            raise FileExistsError(
                f"another process is writing vectors to {str(self.path)!r}; wait for its end, or "
                "choose another folder."
            )

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
            self.storage.delete([part.file])
        else:
            footer: dict[str, Any] = {
                "run": self.manifest.run,
                "start": None,
                "stop": None,
                "skipped": [],
            }
            unfinished = self.storage.new_file()
            metadata = {**(table.schema.metadata or {}), FOOTER: json.dumps(footer).encode()}
            table = table.replace_schema_metadata(metadata)
            pq.write_table(table, unfinished, write_page_checksum=True)
            entry = describe_part(unfinished, footer)
            self.storage.add(unfinished, part.file, replace=True)
            parts.append(replace(entry, file=part.file))
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
        return self.is_new_run and METADATA in self.storage.sizes()

    def begin(self) -> Manifest:
        """Delete the files of an earlier run, and write metadata and manifest of this one.

        Raises:
            FileExistsError: If that is left to another process.
        """
        if not self._may_begin or _run_of(self.path) != self.replaced:
            raise self._other_run()
        self._write_metadata({"complete": False})
        self._delete_all_but([METADATA])
        begun = replace(self.manifest, parts=[])
        begun.save(self.path)
        self.replaced = begun.run
        return begun

    def clear(self) -> None:
        """Delete the files of this run or an earlier one."""
        self._delete_all_but([])

    def _delete_all_but(self, kept: Sequence[str]) -> None:
        """Delete own files, except for some."""
        own = _own_files(self.path, self.storage.sizes())
        self.storage.delete([name for name in own if name not in kept])

    def finish(self, left_out: Sequence[LeftOut]) -> None:
        """Write skipped.csv, and say in metadata.json that the vectors are complete.

        Args:
            left_out: Images that were left out, besides those that the parts name.

        Raises:
            FileExistsError: If the parts do not hold each image once: another machine, which locks
                may not reach, has changed the manifest.
        """
        self.storage.remove_unfinished()
        in_order = all(part.start is not None for part in self.manifest.parts)
        if self.manifest.parts and in_order and not self.manifest.is_whole:
            is_less = bool(self.manifest.missing())
            way = "repeat the command with --resume" if is_less else "write to a new folder"
            raise FileExistsError(
                f"another process has changed the manifest of {str(self.path)!r}; {way}."
            )
        if not is_remote(self.path):  # only one process writes to object storage
            with self._lock("manifest"):
                self._delete_unnamed_parts(Manifest.load(self.path) or self.manifest)
        num_skipped = len(left_out)
        with self.storage.output(SKIPPED) as unfinished:
            write_left_out(unfinished, left_out)
            for part in self.manifest.in_order():
                skipped = skipped_of(self.path / part.file) if part.num_skipped else []
                write_left_out(unfinished, skipped)
                num_skipped += part.num_skipped
        num_embedded = self.manifest.num_rows
        counts = {"num_embedded": num_embedded, "num_skipped": num_skipped, "complete": True}
        self._write_metadata(counts)

    def _write_metadata(self, counts: dict[str, Any]) -> None:
        content = {**self.metadata, **counts}
        text = json.dumps(content, indent=2, ensure_ascii=False)
        if re.search("[\ud800-\udfff]", text):  # bytes of a path that are not UTF-8
            text = json.dumps(content, indent=2)
        with self.storage.output(METADATA) as unfinished:
            unfinished.write_text(f"{text}\n", encoding="utf-8")


def _run_of(folder: Path) -> str | None:
    stored = Manifest.load(folder)
    return None if stored is None else stored.run


def skipped_of(part: Path) -> list[LeftOut]:
    """Return the images that could not be read while a part was written.

    Args:
        part: File of vectors.
    """
    return _left_out(read_footer(part) or {"skipped": []})


def _left_out(footer: dict[str, Any]) -> list[LeftOut]:
    return [LeftOut(name, reason) for name, reason in footer["skipped"]]


def _own_files(folder: Path, sizes: Mapping[str, int | None]) -> list[str]:
    """Return the names of the files that selfvit wrote, in the order in which to delete them.

    The manifest is before the parts and the metadata is last, as others may read them meanwhile.

    Args:
        folder: Folder of vectors.
        sizes: Names in the folder, as `sizes` of its storage returns them.
    """
    files = [name for name, size in sizes.items() if size is not None]
    columns = [n for n in files if n.endswith(".feather") and is_own_feather(folder / n)]
    ordered = [*INDEX, *columns, MANIFEST, TABLE, SKIPPED, *part_names(files), METADATA]
    return [name for name in ordered if name in files]


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
    storage = storage_of(output)
    if not storage.is_usable():
        raise FileExistsError(
            f"the output must be a folder, but {str(output)!r} is a file or a link; choose a new "
            "folder."
        )
    sizes = storage.sizes()
    names = sorted(sizes)
    left = [n for n in names if n not in PASSIVE and not fnmatch.fnmatchcase(n, UNFINISHED)]
    if not left:
        return
    # the manifest is written last, so a run that was killed at its start may have none
    is_begun = _is_own(output) and TABLE not in names
    if resume and is_begun:
        return
    if resume:
        raise FileExistsError(
            f"{str(output)!r} holds no run to go on with: it was not written by {CREATED_BY!r}, or "
            "by a version without parts; choose a new folder."
        )
    if not overwrite:
        ways = "--overwrite (overwrite=True) to replace an earlier result"
        if is_begun and _read_metadata(output).get("complete"):
            ways = f"--update to embed only what is new, or {ways}"
        elif is_begun:
            ways += ", or --resume to go on"
        raise FileExistsError(f"{str(output)!r} is not empty; choose a new folder, or use {ways}.")
    _check_replaceable(output, left, sizes)


def _check_replaceable(output: Path, names: Sequence[str], sizes: Mapping[str, int | None]) -> None:
    if not _is_own(output):
        raise FileExistsError(
            f"{str(output)!r} is not replaced, because it contains {', '.join(names[:3])} but no "
            f"{METADATA} created by {CREATED_BY!r}; choose a new folder."
        )
    own = _own_files(output, sizes)
    foreign = [name for name in names if name not in own]
    if foreign:
        raise FileExistsError(
            f"{str(output)!r} is not replaced, because it contains {', '.join(foreign[:3])}, which "
            f"{CREATED_BY!r} did not write; choose a new folder."
        )


def _is_own(output: Path) -> bool:
    return _read_metadata(output).get("created_by") == CREATED_BY


def _read_metadata(output: Path) -> dict[str, Any]:
    """Return the content of metadata.json; empty if there is none, or it is damaged."""
    try:
        content = json.loads(read_text(output / METADATA) or "")
    except StorageError:
        raise
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


__all__ = [
    "CREATED_BY",
    "INDEX",
    "METADATA",
    "SKIPPED",
    "VectorFolder",
    "check_output",
    "skipped_of",
]
