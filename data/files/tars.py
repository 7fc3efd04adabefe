"""Index of the members of tar files, grouped into samples as in WebDataset.

A sample consists of the files whose names are equal up to the first dot of the base name; the rest
is the name of the field: `0001.jpg` and `0001.cls`, or `0001.jpg` and `0001.mask.png`. Where that
would make one sample of many images (`img.0000.jpg`, `img.0001.jpg`), names are split at the last
dot.
"""

from __future__ import annotations

import json
import os
import posixpath
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..columns import JSON_COLUMNS, LABEL_COLUMNS
from ..inventory import LeftOut
from .image_formats import NOT_IMAGES, SIGNATURE_BYTES, format_of, image_extensions, missing_support
from .listing import is_hidden


@dataclass(frozen=True)
class Member:
    """File in a tar.

    Args:
        name: Name in the tar.
        offset: Position of its first byte in the tar.
        size: Number of bytes.
    """

    name: str
    offset: int
    size: int


@dataclass
class TarSample:
    """Files of one sample.

    Args:
        key: Name that the files have in common.
        fields: Files by field name, for example "jpg" and "cls".
    """

    key: str
    fields: dict[str, Member] = field(default_factory=dict)

    def image_fields(self) -> list[str]:
        """Return the fields that are images which can be decoded."""
        return [name for name in self.fields if _extension(name) in image_extensions()]


@dataclass
class TarIndex:
    """Samples of a tar file.

    Args:
        path: Path of the tar.
        samples: Samples in the order of the tar.
        left_out: Images that cannot be decoded here, and links that lead nowhere.
        splits_at_last_dot: Whether names are split at the last dot.
    """

    path: Path
    samples: list[TarSample] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    splits_at_last_dot: bool = False

    def read(self, member: Member) -> bytes:
        """Return the content of a member."""
        with open(self.path, "rb") as file:
            return os.pread(file.fileno(), member.size, member.offset)

    def label_of(self, sample: TarSample, label_column: str | None) -> Any:
        """Return the label of a sample, or None.

        Args:
            sample: Sample of this tar.
            label_column: Field that holds the label, or FIELD.KEY for a key of a JSON field; None
                for the first usual one.

        Raises:
            ValueError: If the JSON of a field is invalid.
        """
        if label_column is not None:
            name, _, key = label_column.partition(".")
            if label_column in sample.fields:
                name, key = label_column, ""
            return self._value(sample, name, key or None)
        for name in LABEL_COLUMNS:
            if name in sample.fields:
                return self._value(sample, name, None)
        for name in JSON_COLUMNS:
            for key in LABEL_COLUMNS:
                if (value := self._value(sample, name, key)) is not None:
                    return value
        return None

    def _value(self, sample: TarSample, name: str, key: str | None) -> Any:
        member = sample.fields.get(name)
        if member is None:
            return None
        text = self.read(member).decode("utf-8", "backslashreplace").strip()
        if name not in JSON_COLUMNS:
            return int(text) if text.lstrip("-").isdecimal() else text
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{member.name} in {self.path} is no valid JSON: {error}.") from error
        return content.get(key) if isinstance(content, dict) else content


def index_tar(path: Path) -> TarIndex:
    """Read the headers of a tar and group its members into samples.

    Args:
        path: Path of an uncompressed tar.

    Raises:
        ValueError: If the file is no tar, is compressed, or is truncated.
    """
    index = TarIndex(path)
    members = _members(path, index.left_out)
    samples = _grouped(members, last_dot=False)
    if _is_one_sample_of_many_images(samples):
        index.splits_at_last_dot = True
        samples = _grouped(members, last_dot=True)
    index.samples = samples
    return index


def _members(path: Path, left_out: list[LeftOut]) -> list[Member]:
    members: list[Member] = []
    places: dict[str, Member] = {}  # by name, for hard links
    num_bytes = path.stat().st_size
    try:
        with tarfile.open(path, "r:", errorlevel=1) as archive:
            while (entry := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # the headers, which take memory
                name = posixpath.normpath(entry.name)
                if entry.islnk() and posixpath.normpath(entry.linkname) in places:
                    target = places[posixpath.normpath(entry.linkname)]
                    member = Member(name, target.offset, target.size)
                elif entry.isreg():
                    member = Member(name, entry.offset_data, entry.size)
                else:
                    _note_link(entry, name, left_out)
                    continue
                if member.offset + member.size > num_bytes:
                    raise tarfile.ReadError("unexpected end of data")
                places[name] = member
                _sort_member(path, member, members, left_out)
    except (tarfile.TarError, EOFError, UnicodeError) as error:
        raise ValueError(
            f"{str(path)!r} cannot be read as a tar file: {error}; repair or replace it (a "
            "compressed tar must be decompressed first)."
        ) from error
    return members


def _note_link(entry: tarfile.TarInfo, name: str, left_out: list[LeftOut]) -> None:
    is_link = entry.issym() or entry.islnk()
    if is_link and _extension(name) in image_extensions() and not is_hidden(name):
        left_out.append(LeftOut(name, f"link to {entry.linkname} in a tar"))


def _sort_member(
    path: Path, member: Member, members: list[Member], left_out: list[LeftOut]
) -> None:
    if is_hidden(member.name):
        return
    extension = _extension(member.name)
    if extension not in image_extensions() and extension not in NOT_IMAGES:
        with open(path, "rb") as file:
            head = os.pread(file.fileno(), min(SIGNATURE_BYTES, member.size), member.offset)
        extension = format_of(head) or extension
        if extension in image_extensions():
            member = Member(member.name + extension, member.offset, member.size)
    if (needed := missing_support(extension)) is not None:
        left_out.append(LeftOut(member.name, f"cannot be decoded here: {needed}"))
    else:
        members.append(member)


def _grouped(members: list[Member], *, last_dot: bool) -> list[TarSample]:
    """Group members into samples; equal keys that are not adjacent belong together, too."""
    samples: dict[str, TarSample] = {}
    for member in members:
        folder, name = posixpath.split(member.name)
        at = name.rfind(".") if last_dot else name.find(".")
        at = len(name) if at < 1 else at
        key = posixpath.join(folder, name[:at])
        fields = samples.setdefault(key, TarSample(key)).fields
        field_name = name[at + 1 :].lower()
        if field_name in fields:  # the same name twice: the last one, as tar itself unpacks it
            del fields[field_name]
        fields[field_name] = member
    return list(samples.values())


def _is_one_sample_of_many_images(samples: list[TarSample]) -> bool:
    """Return whether a sample has several images in fields that no other sample has."""
    images = [sample.image_fields() for sample in samples]
    uses = Counter(name for names in images for name in names)
    return any(len(names) > 1 and any(uses[name] == 1 for name in names) for names in images)


def _extension(name: str) -> str:
    return f".{posixpath.basename(name).rpartition('.')[2].lower()}"


__all__ = ["Member", "TarIndex", "TarSample", "index_tar"]
