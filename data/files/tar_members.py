"""Members of tar files: their names and positions, read from the headers."""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from ...errors import printable, shorten
from ..inventory import LeftOut
from .image_formats import (
    NOT_IMAGES,
    SIGNATURE_BYTES,
    extension_of,
    format_of,
    image_extensions,
    missing_support,
)
from .listing import CONTAINERS, METADATA_FILES, is_archive, is_hidden

BLOCK_BYTES = 512  # of a header; the content of a file is padded to a multiple of it
CHUNK_BYTES = 1 << 20
# First bytes of compressed files, and the program that decompresses them.
COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}


@dataclass(frozen=True, slots=True)
class Member:
    """File in a tar.

    Args:
        name: Printable name in the tar.
        offset: Position of its first byte in the tar.
        size: Number of bytes.
        suffix: Extension of its format, if its name does not tell that it is an image.
    """

    name: str
    offset: int
    size: int
    suffix: str = ""


@dataclass
class TarContents:
    """Members of a tar that are read, and images among the others.

    Args:
        path: Path of the tar.
        members: Files in the order of the tar.
        left_out: Images that cannot be decoded here, links that lead nowhere, and sparse files.
        notes: Sentences about the tar.
        is_ended: Whether the tar has the blocks of zeros that mark its end.
    """

    path: Path
    members: list[Member] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    is_ended: bool = True


def read_member(path: Path, member: Member) -> bytes:
    """Return the content of a member.

    Args:
        path: Path of the tar.
        member: Member of this tar.
    """
    with open(path, "rb") as file:
        return os.pread(file.fileno(), member.size, member.offset)


def read_headers(path: Path) -> TarContents:
    """Return the members of a tar, and of tars that are joined to it.

    Args:
        path: Path of an uncompressed tar.

    Raises:
        ValueError: If the file is no tar, is compressed, is damaged, or is truncated.
    """
    if not path.is_file():
        raise _unreadable(path, "it is no regular file")
    reader = _HeaderReader(path)
    try:
        reader.read()
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise _unreadable(path, _cause(path, error)) from error
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    return reader.contents


def _unreadable(path: Path, reason: str) -> ValueError:
    return ValueError(f"{str(path)!r} cannot be read as a tar file: {reason}.")


def _cause(path: Path, error: Exception) -> str:
    with open(path, "rb") as file:
        head = file.read(8)
    for signature, program in COMPRESSED.items():
        if head.startswith(signature):
            return f"it is compressed; decompress it, for example with {program}"
    return f"{error}; repair or replace it"


class _HeaderReader:
    """Reader of the headers of a tar that sorts its files."""

    def __init__(self, path: Path):
        self.contents = TarContents(path)
        self.num_bytes = path.stat().st_size
        self.places: dict[str, Member] = {}  # by name, for hard links
        self.unread: list[str] = []  # tables and archives

    def read(self) -> None:
        """Read all headers."""
        with open(self.contents.path, "rb") as file:
            for entry in self._entries(file):
                self._sort(file, entry)
        if self.unread:
            name, files = self.contents.path.name, shorten(self.unread, 3)
            self.contents.notes.append(f"files in {name} that are not read: {files}")

    def _entries(self, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
        """Yield the headers; tarfile itself stops at a damaged one without an error."""
        start: int | None = 0
        while start is not None:
            file.seek(start)
            with tarfile.open(fileobj=file, mode="r:", errorlevel=1) as archive:
                end = start
                while (entry := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # they take memory
                    if archive.offset <= end:  # type: ignore[attr-defined]  # a negative size
                        raise tarfile.ReadError(f"its header at byte {end} is damaged")
                    end = archive.offset  # type: ignore[attr-defined]
                    yield entry
            start = self._next_part(file, end)

    def _next_part(self, file: BinaryIO, end: int) -> int | None:
        """Return where a tar begins that is joined to the one that ends at `end`, or None."""
        file.seek(end)
        head = file.read(BLOCK_BYTES)
        self.contents.is_ended = bool(head)
        if head.strip(b"\0"):
            raise tarfile.ReadError(f"its header at byte {end} is damaged or cut off")
        while chunk := file.read(CHUNK_BYTES):
            if content := chunk.lstrip(b"\0"):
                position = file.tell() - len(content)
                start = position - (position - end) % BLOCK_BYTES
                file.seek(start)
                _check_header(file.read(BLOCK_BYTES), start)
                return start
        return None

    def _sort(self, file: BinaryIO, entry: tarfile.TarInfo) -> None:
        """Add a file to the members or to what is left out."""
        name = printable(posixpath.normpath(entry.name))
        target = self.places.get(printable(posixpath.normpath(entry.linkname)))
        if entry.islnk() and target is not None:
            member = Member(name, target.offset, target.size)
        elif entry.isreg() and not entry.issparse():
            member = Member(name, entry.offset_data, entry.size)
            if member.offset + member.size > self.num_bytes:
                raise tarfile.ReadError("unexpected end of data")
        else:
            self._leave_out(entry, name)
            return
        self.places[name] = member
        if not is_hidden(name):
            self._add(file, member)

    def _leave_out(self, entry: tarfile.TarInfo, name: str) -> None:
        """Add an image that is no plain file to what is left out."""
        extension = extension_of(name)
        is_image = extension in image_extensions() or missing_support(extension) is not None
        if entry.isreg():  # without an extension, its content cannot tell what it is
            is_image, reason = extension not in NOT_IMAGES, "sparse file; pack it without --sparse"
        elif entry.issym() or entry.islnk():
            reason = f"link to {printable(entry.linkname)} in a tar"
        else:
            reason = "no file, but a device or a pipe"
        if is_image and not entry.isdir() and not is_hidden(name):
            self.contents.left_out.append(LeftOut(name, reason))

    def _add(self, file: BinaryIO, member: Member) -> None:
        extension = extension_of(member.name)
        name = posixpath.basename(member.name)
        if extension in CONTAINERS or name in METADATA_FILES or is_archive(name):
            self.unread.append(member.name)
        is_known = extension in image_extensions() or missing_support(extension) is not None
        if not is_known and extension not in NOT_IMAGES:
            head = os.pread(file.fileno(), min(SIGNATURE_BYTES, member.size), member.offset)
            extension = format_of(head) or extension
            if extension in image_extensions():
                member = replace(member, suffix=extension)
        if (reason := missing_support(extension)) is not None:
            self.contents.left_out.append(LeftOut(member.name, reason))
        else:
            self.contents.members.append(member)


def _check_header(block: bytes, start: int) -> None:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.TarError as error:
        raise tarfile.ReadError(
            f"what follows its end mark at byte {start} is no header of a tar"
        ) from error


__all__ = ["Member", "TarContents", "read_headers", "read_member"]
