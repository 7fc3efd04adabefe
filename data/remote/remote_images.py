"""Open image files in object storage, by the rules for local folders."""

from __future__ import annotations

import posixpath
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import hub_id_in, shorten
from ..dataset_source import StreamingImageSource
from ..files.image_files import ChosenImages, choose_images
from ..files.image_formats import SIGNATURE_BYTES, format_of
from ..files.listing import Listing, list_names
from ..files.splits import ALL, choose_files
from ..files.tables import open_parquet
from ..files.tar_source import TarStream
from ..folder_source import FolderSource
from ..image_source import UnreadableContent
from ..inventory import Inventory
from ..labels import Labels
from .file_system import file_system, is_url, storage_errors
from .remote_file import RemoteFile


class RemoteSource(FolderSource):
    """Image files in object storage; the file system is opened in each process that reads.

    Args:
        url: URL of the folder that the paths are relative to.
        paths: Paths of the objects, in the order of the source.
        args: Positional arguments of `FolderSource` from `description` on.
    """

    def __init__(self, url: str, paths: list[str], *args: Any):
        super().__init__(url, paths, *args)
        self.url = url

    def read(self, path: str) -> bytes | UnreadableContent:
        """Return the content of an object, or why it is missing.

        Raises:
            StorageError: If the connection, the credentials or the service failed.
        """
        content = _read(_join(self.url, path))
        return (
            UnreadableContent("the object was deleted after the listing")
            if content is None
            else content
        )


def open_remote(
    urls: Sequence[str],
    split: str | None,
    *,
    streaming: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
) -> RemoteSource | StreamingImageSource:
    """Open an image file, a folder of image files, or Parquet files or tars in object storage.

    Args:
        urls: Values of `data`; only a single URL is read.
        split: Split to read, as for a local folder.
        streaming: Whether to read as a stream, which Parquet files and tars need.
        image_column: Name of the image column of Parquet files and tars.
        label_column: Name of the label column, as for a local folder.

    Raises:
        FileNotFoundError: If there is no such object or folder.
        ImportError: If the package for the URL is missing.
        StorageError: If the storage cannot be read.
        ValueError: If there are no images, or there are several URLs.
    """
    if len(urls) > 1 or not is_url(urls[0]):
        raise ValueError(
            f"data must be one URL, but has {len(urls)} values; give the folder that contains them."
        )
    url = urls[0]
    sizes, is_file = _list(url)
    url = url.rstrip("/")
    if is_file:
        url, _, name = url.rpartition("/")
        sizes = {name: sizes[""]}
    listing = list_names(sorted(sizes), lambda name: _kind(_join(url, name), sizes[name]))
    kinds = [kind for kind in (".parquet", ".tar") if kind in listing.containers]
    if len(kinds) == 1 and not listing.paths:
        _check_streaming(url, listing.containers[kinds[0]], streaming)
        names, _ = choose_files(listing.containers[kinds[0]], split, url)
        files = [RemoteFile(_join(url, name), sizes[name] or 0) for name in names]
        return _open_shards(url, files, kinds[0], image_column, label_column)
    if is_file:
        return _open_one(url, name, listing, split, label_column)
    if not listing.paths and not listing.left_out:
        raise ValueError(_without_images(url, listing, sizes))
    images = _choose(url, listing, split, label_column)
    notes = images.inventory.notes
    for kind, names in sorted(listing.containers.items()):
        notes.append(f"{kind} files beside the images are not read: {shorten(names, 3)}")
    root = _join(url, images.prefix.rstrip("/")) if images.prefix else url
    description = f"{len(images.names)} image files in {root}"
    return RemoteSource(root, images.names, description, images.labels, images.inventory)


def _check_streaming(url: str, names: Sequence[str], streaming: bool) -> None:
    if not streaming:
        raise ValueError(
            f"{names[0]} in {url!r} is a shard, which can be read from object storage only as a "
            "stream; use --streaming, or copy it to a disk."
        )


def _open_shards(
    url: str,
    files: Sequence[RemoteFile],
    kind: str,
    image_column: str | None,
    label_column: str | None,
) -> StreamingImageSource:
    columns = {"image_column": image_column, "label_column": label_column}
    identity = [f"{file.url.removeprefix(url).lstrip('/')} {file.size}" for file in files]
    where = f"{len(files)} {kind} files in {url}" if len(files) > 1 else files[0].url
    if kind == ".parquet":
        stream = open_parquet(files, where, streaming=True, identity=identity, **columns)
        assert isinstance(stream, StreamingImageSource)
        return stream
    return TarStream(files, f"{where}, streamed", identity, **columns)


def _list(url: str) -> tuple[dict[str, int | None], bool]:
    """Return the sizes of all objects below a URL by their relative paths, and whether it is one.

    Raises:
        FileNotFoundError: If there is none.
    """
    hub_id = hub_id_in(url)
    if hub_id is not None and "/resolve/" not in url:
        raise FileNotFoundError(f"{url!r} is a page of the Hub; name the dataset {hub_id}.")
    system, root = file_system(url)
    try:
        with storage_errors(url):
            system.invalidate_cache()
            info = system.info(root)
            if info["type"] == "file" and not url.endswith("/"):
                return {"": info.get("size")}, True
            found = system.find(root, detail=True)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"there is no object or folder {url!r}; correct its name."
        ) from error
    system.invalidate_cache()  # a second copy of the listing
    start = f"{root.rstrip('/')}/"
    return {
        path[len(start) :]: entry.get("size")
        for path, entry in found.items()
        if entry["type"] == "file" and path.startswith(start) and not path.endswith("/")
    }, False


def _kind(url: str, size: int | None) -> str | None:
    """Return the extension of the image format of an object by its first bytes; None without."""
    head = _read(url, SIGNATURE_BYTES) if size != 0 else None
    return None if head is None else format_of(head)


def _read(url: str, num_bytes: int | None = None) -> bytes | None:
    """Return the content of an object, or its first bytes; None if there is no such object."""
    system, path = file_system(url)
    part = {} if num_bytes is None else {"start": 0, "end": num_bytes}
    try:
        with storage_errors(url):
            return system.cat_file(path, **part)
    except FileNotFoundError:
        return None


def _open_one(
    url: str, name: str, listing: Listing, split: str | None, label_column: str | None
) -> RemoteSource:
    full = _join(url, name)
    for option, value in (("split", split), ("label-column", label_column)):
        if value is not None and (option, value) != ("split", ALL):
            raise ValueError(
                f"{full!r} is one file, so that {value!r} cannot be chosen; omit --{option}."
            )
    if not listing.paths:
        reason = "not an image"
        if listing.containers or listing.videos:
            reason = "a kind of file that is not read from object storage; copy it to a disk"
        elif listing.left_out:
            reason = listing.left_out[0].reason
        raise ValueError(
            f"data in object storage must be an image file or a folder of them, but {full!r} is "
            f"none ({reason})."
        )
    return RemoteSource(url, [name], full, Labels(), Inventory(1, 1))


def _choose(
    url: str, listing: Listing, split: str | None, label_column: str | None
) -> ChosenImages:
    """Choose the images as those of a local folder, with copies of the tables of metadata."""
    with tempfile.TemporaryDirectory() as copies:
        for name in list(listing.metadata):
            copy = Path(copies, name)  # of an absolute name: outside of `copies`
            is_inside = copy.resolve().is_relative_to(Path(copies).resolve())
            content = None
            if is_inside and posixpath.normpath(name) == name:
                content = _read(_join(url, name))
            if content is None:
                listing.metadata.remove(name)
                listing.other_files.append(name)
                continue
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content)
        try:
            return choose_images(listing, split, url, Path(copies), label_column=label_column)
        except ValueError as error:  # it may name the copy of a table
            raise ValueError(str(error).replace(copies, url)) from error


def _without_images(url: str, listing: Listing, sizes: dict[str, int | None]) -> str:
    if listing.containers:
        kinds = ", ".join(f"{len(names)} {kind}" for kind, names in listing.containers.items())
        return (
            f"{url!r} must hold image files, or Parquet files or tars, but holds {kinds} files; "
            "give a folder of one kind."
        )
    firsts = {name.partition("/")[0] + ("/" if "/" in name else "") for name in sizes}
    contents = shorten(sorted(firsts), 5) if firsts else "nothing"
    notes = "".join(f" {note}." for note in listing.notes())
    return f"there are no images in {url!r}, which contains {contents}; give another folder.{notes}"


def _join(url: str, name: str) -> str:
    return f"{url}/{name}"


__all__ = ["RemoteSource", "open_remote"]
