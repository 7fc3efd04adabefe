"""List the image files below a folder, each once, and the files that were left out.

Paths are strings relative to the folder, with "/" as in POSIX. `os.scandir` is used directly,
because a `Path` for each file takes ten times as long as the listing itself.
"""

from __future__ import annotations

import itertools
import os
import posixpath
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import shorten
from ..inventory import LeftOut
from .image_formats import (
    NOT_IMAGES,
    VIDEOS,
    extension_of,
    image_extensions,
    kind_of,
    missing_support,
)

# Folders in which systems keep thumbnails and deleted files, besides hidden ones.
SYSTEM_FOLDERS = frozenset(
    ("@eadir", "@recycle", "#recycle", "#snapshot", "__macosx", "$recycle.bin", "lost+found")
    + ("system volume information", "previews.lrdata")
)
CONTAINERS = (".parquet", ".tar", ".zip")  # files that can hold many images
METADATA_FILES = ("metadata.csv", "metadata.jsonl")
# Other files that can hold many images, which are not opened.
ARCHIVES = (".7z", ".arrow", ".feather", ".h5", ".hdf5", ".rar", ".tbz", ".tbz2", ".tgz", ".txz")
COMPRESSIONS = (".bz2", ".gz", ".xz", ".zst")
CLOSED_FOLDER = "folder that cannot be opened"
NUM_THREADS = 16  # that open files of unknown kind where opening takes long
NOT_REGULAR = "not a regular file but a pipe, socket or device"


@dataclass
class Listing:
    """Files found below a folder.

    Args:
        paths: Image files, sorted.
        left_out: Images that cannot be taken, folders that cannot be opened, and broken links.
        containers: Files that can hold many images, sorted, by extension.
        metadata: Files named metadata.csv or metadata.jsonl.
        system_folders: Number of folders of the system that were not opened, by name.
        num_links: Number of links to files that were counted already.
        other_files: Tables that hold no images.
        archives: Archives of a kind that is not opened.
        links_above: Links to folders that contain the listed folder.
        videos: Videos by their extensions, sorted; links to missing files are among them.
        is_remote: Whether the files are in object storage, from which no videos are read.
    """

    paths: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    containers: dict[str, list[str]] = field(default_factory=dict)
    metadata: list[str] = field(default_factory=list)
    system_folders: Counter[str] = field(default_factory=Counter)
    num_links: int = 0
    other_files: list[str] = field(default_factory=list)
    archives: list[str] = field(default_factory=list)
    links_above: list[str] = field(default_factory=list)
    videos: list[str] = field(default_factory=list)
    is_remote: bool = False

    def notes(self) -> list[str]:
        """Return sentences about what the listing does not count."""
        notes = []
        if self.system_folders:
            names = ", ".join(sorted(self.system_folders))
            notes.append(
                f"{self.system_folders.total()} folders of the system are ignored: {names}"
            )
        if self.num_links:
            notes.append(f"{self.num_links} links lead to files that are counted already")
        if self.other_files:
            notes.append(f"tables without images are ignored: {shorten(self.other_files, 3)}")
        if self.archives:
            notes.append(archives_note(self.archives))
        if self.links_above:
            notes.append(
                "links to folders that contain the data are not followed: "
                f"{shorten(self.links_above, 3)}"
            )
        return [*notes, *self.notes_on_videos()]

    def notes_on_videos(self) -> list[str]:
        """Return a sentence about the videos, which are not read, if there are any."""
        if not self.videos:
            return []
        are, them = ("s are", "them") if len(self.videos) > 1 else (" is", "it")
        fix = f"selfvit embed --video-fps reads {them}"
        if self.is_remote:
            fix = f"copy {them} to a disk to embed the frames"
        return [f"{len(self.videos)} video file{are} not read ({shorten(self.videos, 3)}); {fix}"]


class _Walk:
    """Walk over a folder that fills a listing."""

    def __init__(self, root: str):
        self.root = root
        self.listing = Listing()
        self.paths = self.listing.paths
        self.links: list[str] = []
        self.unknown: list[str] = []  # files whose extension does not tell what they are
        self.suffixes = image_extensions()
        # without the dot, as str.rpartition is the fastest way to an extension
        self.usual = {f(suffix[1:]) for suffix in self.suffixes for f in (str.lower, str.upper)}

    def visit(self, folder: str) -> None:
        """List a folder and all below it; `folder` is "" or a relative path that ends with "/"."""
        folders = [folder]
        while folders:
            current = folders.pop()
            try:
                with os.scandir(os.path.join(self.root, current)) as entries:
                    folders += self._sort(current, entries)
            except OSError as error:
                reason = f"{CLOSED_FOLDER}: {error.strerror}"
                self.listing.left_out.append(LeftOut(current or ".", reason))

    def _sort(self, current: str, entries: Iterable[os.DirEntry[str]]) -> list[str]:
        """Sort the entries of a folder by their kind, and return its sub-folders."""
        folders = []
        usual, paths = self.usual, self.paths
        for entry in entries:
            name = entry.name
            if name[0] == ".":
                continue
            is_file = entry.is_file(follow_symlinks=False)
            stem, _, extension = name.rpartition(".")
            if is_file and stem and extension in usual:
                paths.append(current + name)
            elif entry.is_symlink():
                self.links.append(current + name)
            elif entry.is_dir(follow_symlinks=False):
                if name.lower() in SYSTEM_FOLDERS:
                    self.listing.system_folders[name] += 1
                else:
                    folders.append(f"{current}{name}/")
            else:
                self.add_file(current + name, is_file)
        return folders

    def add_file(self, path: str, is_regular: bool) -> None:
        """Add a file to the list of its kind; one that is not regular can still be an image."""
        name = os.path.basename(path)
        extension = extension_of(name)
        if extension in self.suffixes:
            self.paths.append(path)
        elif (reason := missing_support(extension)) is not None:
            self.listing.left_out.append(LeftOut(path, reason))
        elif extension in CONTAINERS or name in METADATA_FILES:
            self._add_table(path, name, extension, is_regular)
        elif is_archive(name):
            self.listing.archives.append(path)
        elif extension in VIDEOS:
            self.listing.videos.append(path)
        elif is_regular and extension not in NOT_IMAGES:
            self.unknown.append(path)

    def _add_table(self, path: str, name: str, extension: str, is_regular: bool) -> None:
        """Add a file that is opened for what it says of many images."""
        if not is_regular:
            self.listing.left_out.append(LeftOut(path, NOT_REGULAR))
        elif extension in CONTAINERS:
            self.listing.containers.setdefault(extension, []).append(path)
        else:
            self.listing.metadata.append(path)

    def look_into_unknown(self, kind_by_content: Callable[[str], str | None]) -> None:
        """Open the files of unknown kind, and add those that are images."""
        for path in self.unknown:
            try:
                kind = kind_by_content(path)
            except OSError as error:
                self.listing.left_out.append(LeftOut(path, f"cannot be opened: {error.strerror}"))
                continue
            if kind is None:
                continue
            if (reason := missing_support(kind)) is not None:
                self.listing.left_out.append(LeftOut(path, reason))
            else:
                self.paths.append(path)
        self.unknown = []

    def finish(self, kind_by_content: Callable[[str], str | None]) -> Listing:
        """Look into the files of unknown kind, and return the sorted listing."""
        self.look_into_unknown(kind_by_content)
        listing = self.listing
        listing.paths.sort()
        listing.left_out.sort(key=lambda entry: entry.name)
        listing.containers = {
            kind: sorted(names) for kind, names in listing.containers.items() if names
        }
        listing.metadata.sort()
        listing.videos.sort()
        return listing

    def follow_links(self) -> None:
        """Add the files that links lead to, unless they are counted already.

        Links to folders are followed after all real folders, so that a file has the name of its
        real path if that is below the root.
        """
        seen_folders: set[str] = set()
        counted = self._real_paths()
        while self.links:
            links, self.links = sorted(self.links), []
            for link in links:
                path = os.path.join(self.root, link)
                target = os.path.realpath(path)
                try:
                    mode = os.stat(path).st_mode
                except OSError:
                    self._add_broken(link)
                    continue
                if not stat.S_ISDIR(mode):
                    self._follow_file(link, target, mode, counted)
                elif not self._is_visited(link, target, seen_folders):
                    seen_folders.add(target)
                    below = _Walk(self.root)
                    below.visit(f"{link}/")
                    self._add_new(below, counted)

    def _follow_file(self, link: str, target: str, mode: int, counted: set[str]) -> None:
        # A table of metadata names files relative to where it lies, so its links are not the same.
        if target not in counted or os.path.basename(link) in METADATA_FILES:
            counted.add(target)
            self.add_file(link, stat.S_ISREG(mode))
        else:
            self.listing.num_links += 1

    def _is_visited(self, link: str, target: str, seen_folders: set[str]) -> bool:
        """Return whether the real folder `target` was visited, or contains the root."""
        root = os.path.realpath(self.root)
        if target != root and _is_below(root, {target}):
            self.listing.links_above.append(link)
            return True
        if _is_below(target, seen_folders):
            return True
        return _is_below(target, {root}) and not is_hidden(os.path.relpath(target, root) + "/")

    def _real_paths(self) -> set[str]:
        """Return the real paths of all files found so far."""
        join, real = os.path.join, os.path.realpath
        listing = self.listing
        others = [*listing.containers.values(), listing.archives, listing.metadata, listing.videos]
        names = itertools.chain(
            self.paths, self.unknown, (entry.name for entry in listing.left_out), *others
        )
        return {real(join(self.root, name)) for name in names}

    def _add_new(self, below: _Walk, counted: set[str]) -> None:
        """Add what the walk over a linked folder found, without the files counted already."""
        mine, new = self.listing, below.listing
        self.paths += self._not_counted(below.paths, counted)
        self.unknown += self._not_counted(below.unknown, counted)
        mine.archives += self._not_counted(new.archives, counted)
        mine.videos += self._not_counted(new.videos, counted)
        for extension, names in new.containers.items():
            mine.containers.setdefault(extension, []).extend(self._not_counted(names, counted))
        left_out = {entry.name: entry for entry in new.left_out}
        mine.left_out += [left_out[name] for name in self._not_counted(left_out, counted)]
        mine.metadata += self._not_counted(new.metadata, counted)
        mine.system_folders += new.system_folders
        self.links += below.links

    def _not_counted(self, names: Iterable[str], counted: set[str]) -> list[str]:
        """Return the names of files that are not counted yet, and count them."""
        new = []
        for name in names:
            target = os.path.realpath(os.path.join(self.root, name))
            if target in counted:
                self.listing.num_links += 1
            else:
                counted.add(target)
                new.append(name)
        return new

    def _add_broken(self, link: str) -> None:
        if extension_of(link) in VIDEOS:
            self.listing.videos.append(link)
        elif extension_of(link) not in NOT_IMAGES:
            self.listing.left_out.append(LeftOut(link, "link to a file that does not exist"))


def list_images(folder: Path) -> Listing:
    """List the image files below a folder, without hidden files and folders.

    A file is an image by its extension; where that tells nothing, by its content. Links to files
    and folders are followed, and a file is counted once, whatever links lead to it. Hard links are
    different files.

    Args:
        folder: Folder to list.
    """
    walk = _Walk(str(folder))
    walk.visit("")
    if walk.links:
        walk.follow_links()
    return walk.finish(lambda path: kind_of(os.path.join(walk.root, path)))


def list_names(names: Iterable[str], kind_by_content: Callable[[str], str | None]) -> Listing:
    """Sort the files of object storage, which has no folders and links, by their kind.

    The rules are those of `list_images`.

    Args:
        names: Paths of all files, relative to the place.
        kind_by_content: Function of a path that opens the file, and returns the extension of its
            image format, or None.
    """
    walk = _Walk("")
    walk.listing.is_remote = True
    system_folders: set[str] = set()
    for name in names:
        if not is_hidden(name):
            walk.add_file(name, is_regular=True)
        elif folder := _system_folder(name):
            system_folders.add(folder)
    walk.listing.system_folders.update(posixpath.basename(folder) for folder in system_folders)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        kinds = dict(zip(walk.unknown, pool.map(kind_by_content, walk.unknown), strict=True))
    return walk.finish(kinds.__getitem__)


def _system_folder(path: str) -> str | None:
    """Return the first ignored folder of a path, if it is a folder of the system."""
    parts = path.split("/")[:-1]
    for depth, part in enumerate(parts, start=1):
        if _is_ignored(part):
            return "/".join(parts[:depth]) if part.lower() in SYSTEM_FOLDERS else None
    return None


def is_hidden(path: str) -> bool:
    """Return whether a path in an archive has a hidden part or a folder of the system."""
    *folders, name = path.split("/")
    return any(_is_ignored(part) for part in folders) or name.startswith(".")


def _is_ignored(folder: str) -> bool:
    is_hidden_name = folder.startswith(".") and folder not in (".", "..")
    return is_hidden_name or folder.lower() in SYSTEM_FOLDERS


def is_archive(name: str) -> bool:
    """Return whether a file name is that of an archive that can hold images and is not opened.

    A single image that is compressed, such as a.png.gz, is one, too.
    """
    stem, extension = os.path.splitext(name.lower())
    if extension in ARCHIVES:
        return True
    inner = os.path.splitext(stem)[1]
    return extension in COMPRESSIONS and (inner in (".tar", ".cpio") or inner in image_extensions())


def archives_note(names: Sequence[str]) -> str:
    """Return a sentence about archives that are not opened.

    Args:
        names: Names of the archives.
    """
    return f"archives are not read: {shorten(names, 3)}; unpack them if they hold images"


def _is_below(path: str, folders: set[str]) -> bool:
    """Return whether a path is one of the folders, or lies below one of them."""
    while True:
        if path in folders:
            return True
        parent = os.path.dirname(path)
        if parent == path:
            return False
        path = parent


__all__ = [
    "CLOSED_FOLDER",
    "CONTAINERS",
    "METADATA_FILES",
    "NOT_REGULAR",
    "Listing",
    "archives_note",
    "is_archive",
    "is_hidden",
    "list_images",
    "list_names",
]
