"""Manifest of a folder of vectors: its checkpoint, its data, and the complete parts."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...data.remote.file_system import StorageError
from .storage import opened, parquet_input, read_text, storage_of

MANIFEST = "manifest.json"
TABLE = "embeddings.parquet"  # the only file of vectors before there were parts
PART_FILE = re.compile(r"part-\d{5,}\.parquet")
VECTOR_DTYPES = {"float32": pa.float32(), "float16": pa.float16()}
# Fields of an encoder's configuration that change its vectors, and do not show in its weights.
ENCODER_FIELDS = (
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "position_embedding_type",
    "interpolate_antialias",
    "rope_theta",
)
FOOTER = b"selfvit"  # key of a part's own description, in the metadata of its Parquet file


@dataclass(frozen=True)
class Part:
    """One complete file of vectors.

    Args:
        file: Name of the file.
        start: First position in the source; None in a folder that was updated, whose rows no longer
            follow the order of a source.
        stop: Position after the last one; None as well.
        num_rows: Number of vectors.
        num_skipped: Number of images that cannot be read.
        num_bytes: Size of the file.
        sha256: SHA-256 hash of the file, hexadecimal.
    """

    file: str
    start: int | None
    stop: int | None
    num_rows: int
    num_skipped: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Origin of the vectors of a folder, and its parts.

    Args:
        checkpoint: Values that the vectors depend on, see `checkpoint_fingerprint`.
        data: Fingerprint, description and number of positions of the source, the name of its id
            column, and whether it is labeled, has videos, and is a stream that numbers its rows.
        parts: Complete parts.
        run: Random name of the run; the parts of a folder have that of its manifest.
        group: Token of the group of processes that writes it; "" for a single process.
    """

    checkpoint: dict[str, Any]
    data: dict[str, Any]
    parts: list[Part] = field(default_factory=list)
    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    group: str = ""

    @property
    def schema(self) -> pa.Schema:
        """Columns of the parts.

        They are `path` or `id`; `seconds` (float64), the time of a frame in its video, if the
        source has videos; `label`, the name of the class, if the source is labeled; `checksum` of
        the file, null for a frame; `embedding`, E values; `patches`, rows x columns x D values of
        float16, if the patch tokens are written.
        """
        fields = [pa.field(self.data["id_column"], pa.string())]
        if self.data.get("is_video"):
            fields.append(pa.field("seconds", pa.float64()))
        if self.data["is_labeled"]:
            fields.append(pa.field("label", pa.string()))
        fields.append(pa.field("checksum", pa.string()))
        value = VECTOR_DTYPES[self.checkpoint["vector_dtype"]]
        fields.append(pa.field("embedding", pa.list_(value, self.checkpoint["embedding_size"])))
        if (grid := self.checkpoint.get("patch_grid")) is not None:
            patches = pa.float16()
            for size in reversed(grid):
                patches = pa.list_(patches, size)
            fields.append(pa.field("patches", patches))
        return pa.schema(fields)

    @property
    def num_rows(self) -> int:
        """Number of vectors."""
        return sum(part.num_rows for part in self.parts)

    @property
    def num_done(self) -> int:
        """Number of images that the parts cover, skipped ones too."""
        return sum(part.num_rows + part.num_skipped for part in self.parts)

    def missing(self, span: range | None = None) -> list[range]:
        """Return the positions that no part covers, in ascending order.

        Args:
            span: Positions to look at; all of the source by default.
        """
        span = range(self.data["num_positions"]) if span is None else span
        gaps, position = [], span.start
        for start, stop in sorted((p.start or 0, p.stop or 0) for p in self.parts):
            if position < min(start, span.stop):
                gaps.append(range(position, min(start, span.stop)))
            position = max(position, stop)
        if position < span.stop:
            gaps.append(range(position, span.stop))
        return gaps

    @property
    def is_whole(self) -> bool:
        """Whether the parts cover each position once."""
        spans = [(part.start, part.stop) for part in self.in_order()]
        starts, stops = zip(*spans, strict=True)
        return [*starts, self.data["num_positions"]] == [0, *stops]

    def in_order(self) -> list[Part]:
        """Return the parts in the order of the source."""
        return sorted(self.parts, key=lambda part: (part.start or 0, part.file))

    def differences(self, other: Manifest) -> list[str]:
        """Return what differs in another manifest, one text for each value."""
        mine, theirs = (
            {
                **manifest.checkpoint,
                "data": manifest.data["fingerprint"],
                # older streams named rows of Parquet files in another way
                "numbers_rows": manifest.data.get("numbers_rows", False),
            }
            for manifest in (self, other)
        )
        unknown = {name for name in ENCODER_FIELDS if name not in mine}  # in older manifests
        return [
            name
            if isinstance(mine.get(name) or theirs.get(name), dict)  # too long to show
            else f"{name} ({mine.get(name)}, now {theirs.get(name)})"
            for name in sorted({**mine, **theirs}.keys() - unknown)
            if mine.get(name) != theirs.get(name)
        ]

    def save(self, folder: Path) -> None:
        """Write the manifest into a folder, completely or not at all."""
        with storage_of(folder).output(MANIFEST) as unfinished:
            unfinished.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Manifest | None:
        """Read the manifest of a folder; None if it has none.

        Raises:
            ValueError: If the file is damaged.
        """
        path = folder / MANIFEST
        try:
            if (text := read_text(path)) is None:
                return None
            content = json.loads(text)
            parts = [Part(**part) for part in content.pop("parts")]
            return cls(parts=parts, **content)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{str(path)!r} must be the manifest of a folder of vectors, but cannot be read: "
                f"{error}; write the vectors to a new folder."
            ) from error

    def with_found_parts(self, folder: Path) -> Manifest:
        """Return the manifest with the parts that are in a folder, whole and of this run.

        A process that is killed between the two may leave a part that its manifest lacks. It is
        left out if other parts have some of its images. A part of the manifest that is gone, or has
        another size, is dropped: its images are embedded again.
        """
        sizes = storage_of(folder).sizes()
        kept = [part for part in self.parts if sizes.get(part.file) == part.num_bytes]
        found = replace(self, parts=kept)
        for name in found.unnamed_parts(sizes):
            part = self._part_of_file(folder / name)
            if part is not None and found.lacks(part.start, part.stop):
                found = replace(found, parts=[*found.parts, part])
        return found

    def lacks(self, start: int | None, stop: int | None) -> bool:
        """Return whether no part has one of these positions; None if they are not known."""
        span = None if start is None or stop is None else range(start, stop)
        return span is None or self.missing(span) == [span]

    def unnamed_parts(self, names: Iterable[str]) -> list[str]:
        """Return those names of a folder that are names of parts, without the parts named here.

        Args:
            names: Names in the folder.
        """
        named = {part.file for part in self.parts}
        return [name for name in part_names(names) if name not in named]

    def _part_of_file(self, path: Path) -> Part | None:
        footer = read_footer(path)
        if footer is None or footer["run"] != self.run:
            return None
        return describe_part(path, footer)


def describe_part(path: Path, footer: dict[str, Any]) -> Part:
    """Return the entry of a file of vectors, with its checksum.

    Args:
        path: File of vectors.
        footer: Its description, see `read_footer`.
    """
    digest = hashlib.sha256()
    with opened(path) as file:
        for block in iter(partial(file.read, 1 << 23), b""):
            digest.update(block)
        num_bytes = file.tell()
        num_rows = pq.read_metadata(file).num_rows
    return Part(
        file=path.name,
        start=footer["start"],
        stop=footer["stop"],
        num_rows=num_rows,
        num_skipped=len(footer["skipped"]),
        num_bytes=num_bytes,
        sha256=digest.hexdigest(),
    )


def read_footer(path: Path) -> dict[str, Any] | None:
    """Return a part's own description: "run", "start", "stop" and "skipped".

    Args:
        path: File of vectors.

    Returns:
        The description; None if the file is damaged or was not written as a part.

    Raises:
        StorageError: If object storage cannot be read.
    """
    try:
        with parquet_input(path) as file:
            metadata = pq.read_metadata(file).metadata or {}
        return json.loads(metadata[FOOTER])
    except StorageError:
        raise
    except (OSError, ValueError, KeyError):  # pyarrow's errors are ValueErrors and OSErrors
        return None


def part_names(names: Iterable[str]) -> list[str]:
    """Return those names of a folder that are names of parts, sorted.

    Args:
        names: Names in the folder.
    """
    return sorted(name for name in names if PART_FILE.fullmatch(name))


def next_part_name(names: Sequence[str]) -> str:
    """Return the name of a new part, with a number above those of all others.

    Args:
        names: Names of the existing parts.
    """
    numbers = [int(name.removeprefix("part-").partition(".")[0]) for name in names]
    return f"part-{max(numbers, default=-1) + 1:05}.parquet"


__all__ = [
    "FOOTER",
    "MANIFEST",
    "TABLE",
    "VECTOR_DTYPES",
    "Manifest",
    "Part",
    "describe_part",
    "next_part_name",
    "part_names",
    "read_footer",
]
