"""Open image files: those of a folder, of a zip file, of a list of paths, or given one by one."""

from __future__ import annotations

import os
import posixpath
import stat
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import printable, shorten
from ..folder_source import FolderSource, ListedSource, ZipSource, kind_of_member, members_of_zip
from ..inventory import Inventory, LeftOut
from ..labels import Labels, first_folders, labels_of_folders, labels_of_values
from ..remote.file_system import is_url
from .image_formats import (
    NOT_IMAGES,
    VIDEOS,
    extension_of,
    image_extensions,
    kind_of,
    missing_support,
)
from .listing import (
    CONTAINERS,
    METADATA_FILES,
    NOT_REGULAR,
    Listing,
    archives_note,
    is_archive,
)
from .metadata import values_of_metadata
from .splits import ALL, choose_split_folder, split_folders, split_names
from .tables import (
    check_repeated_label,
    notes_on_list,
    path_column,
    read_label_column,
    read_list,
)

ONLY_FILES = "a URL, but a list names files; download it"
USUAL = (".jpg", ".png", ".tif", ".webp")  # extensions that a message names


def open_folder(
    folder: Path,
    listing: Listing,
    split: str | None,
    *,
    label_column: str | None = None,
) -> FolderSource:
    """Open a folder of image files.

    Args:
        folder: Folder.
        listing: Its files.
        split: First-level folder to use; None for train where all of them are splits, and for all
            of them otherwise; "all" for all of them.
        label_column: Column of metadata.csv or metadata.jsonl; None to find it.

    Raises:
        ValueError: If there are no images, or no such split or column.
    """
    images = choose_images(listing, split, str(folder), folder, label_column=label_column)
    root = folder / images.prefix if images.prefix else folder
    description = f"{len(images.names)} image files in {root}"
    return FolderSource(root, images.names, description, images.labels, images.inventory)


@dataclass(frozen=True)
class ChosenImages:
    """Images of a folder that are taken.

    Args:
        prefix: Folder of the split with "/"; "" if all images are taken.
        names: Paths below the prefix.
        labels: Labels of the images.
        inventory: Files that were found, taken and left out.
    """

    prefix: str
    names: list[str]
    labels: Labels
    inventory: Inventory


def choose_images(
    listing: Listing,
    split: str | None,
    where: str,
    folder: Path,
    *,
    label_column: str | None = None,
) -> ChosenImages:
    """Choose the split of a listed folder, and find the labels of its images.

    Args:
        listing: Files of the folder.
        split: As in `open_folder`.
        where: Name of the folder in errors.
        folder: Local folder with the tables of metadata of the listing.
        label_column: As in `open_folder`.

    Raises:
        ValueError: If there are no images, or no such split or column.
    """
    firsts = first_folders(listing.paths)
    chosen = choose_split(firsts, listing.left_out, split, where)
    prefix = chosen.prefix
    paths, left_out = listing.paths, chosen.own(listing.left_out)
    if prefix:
        paths = [path for path in paths if path.startswith(prefix)]
    if not paths:
        contents, videos = _list_contents(folder / prefix), listing.notes_on_videos()
        raise ValueError(
            _without_images(f"{where}/{prefix}".rstrip("/"), left_out, contents, *videos)
        )
    notes = [*listing.notes(), *chosen.notes]
    # a table beside the split folders may name images of all splits
    metadata = [name for name in listing.metadata if name.startswith(prefix) or "/" not in name]
    if label_column is not None and not metadata:
        raise ValueError(
            f"{where!r} has no columns to find {label_column!r} in, as a folder of images "
            "without metadata.csv or metadata.jsonl; leave out --label-column."
        )
    labels = Labels()
    if metadata:
        listed = {entry.name for entry in left_out}
        values, column, missing, more = values_of_metadata(
            folder, metadata, paths, label_column, listed=listed
        )
        left_out += [entry for entry in chosen.own(missing) if entry.name not in listed]
        notes += more
        if column is not None:
            required = label_column is not None
            found = [values.get(path) for path in paths]
            labels = labels_of_values(found, column, is_required=required)
    if labels.values is None:
        notes += labels.notes
        labels = labels_below(paths, None if prefix else firsts, prefix, split == ALL)
    notes += labels.notes
    names = [path[len(prefix) :] for path in paths] if prefix else paths
    inventory = Inventory(len(paths) + len(left_out), len(paths), left_out, notes)
    return ChosenImages(prefix, names, labels, inventory)


@dataclass(frozen=True)
class Split:
    """Split of a folder or zip file.

    Args:
        prefix: Its folder with "/"; "" if all images are taken.
        notes: Sentences about what is not read.
        others: Folders of the other splits, with "/"; None if it is a folder beside any others.
    """

    prefix: str = ""
    notes: tuple[str, ...] = ()
    others: tuple[str, ...] | None = ()

    def own(self, left_out: Sequence[LeftOut], top: str = "") -> list[LeftOut]:
        """Return the entries that lie in no other split; `top` is a folder above the splits."""
        if self.others is None:
            return [entry for entry in left_out if entry.name.startswith(top + self.prefix)]
        others = tuple(top + other for other in self.others)
        return [entry for entry in left_out if not entry.name.startswith(others)]


def choose_split(
    firsts: Sequence[str],
    left_out: Sequence[LeftOut],
    split: str | None,
    where: str,
    noun: str = "image",
) -> Split:
    """Choose the split to read; a split may hold nothing but images that cannot be taken.

    Args:
        firsts: First-level folder of each image; "" without one.
        left_out: Images that cannot be taken.
        split: Requested split, as in `open_folder`.
        where: Name of the data in the error.
        noun: Noun for messages, "image" or "video".

    Raises:
        ValueError: If there is no such split.
    """
    with_images = sorted(set(firsts) - {""})
    without = {first for e in left_out if (first := e.name.partition("/")[0]) != e.name}
    folders = sorted({*with_images, *split_names(without)})
    if split == ALL:
        return Split()
    num_stray = firsts.count("")
    splits = [] if num_stray and len(folders) < 2 else split_folders(folders)
    if split is not None and split in folders and split not in splits:
        return Split(f"{split}/", (), None)
    if not splits or (len(splits) == 1 and split is None):
        if split is not None:
            raise ValueError(
                f"the split of a folder of {noun} files must be a subfolder, but {where!r} is "
                f"without a subfolder {split!r}; omit --split to use all {noun}s."
            )
        if splits:
            return Split(f"{splits[0]}/", (f"split {splits[0]}",))
        return Split("", tuple(_note_on_splits_among_classes(with_images, noun)))
    chosen = choose_split_folder(splits, split, where)
    others = [name for name in splits if name != chosen]
    notes = []
    if split != chosen:
        choice = f"--split chooses, --split {ALL} reads all"
        notes.append(f"split {chosen}; {', '.join(others)} are not read ({choice})")
    if num_stray:
        notes.append(f"{num_stray} {noun}s beside the split folders are not read")
    return Split(f"{chosen}/", tuple(notes), tuple(f"{name}/" for name in others))


def _note_on_splits_among_classes(folders: Sequence[str], noun: str) -> list[str]:
    """Return a sentence on folders that are named like splits beside others that are not."""
    alike = split_names(folders)
    if not alike or len(folders) < 2:
        return []
    others = [printable(name) for name in folders if name not in alike]
    verb = "is a class and no split" if len(alike) == 1 else "are classes and no splits"
    return [
        f"{', '.join(alike)} {verb} here, as {noun}s lie in {shorten(others, 3)}, too; --split "
        f"{alike[0]} reads one folder alone"
    ]


def labels_below(
    paths: Sequence[str],
    firsts: Sequence[str] | None,
    prefix: str,
    all_splits: bool,
    noun: str = "image",
) -> Labels:
    """Label images by the folders below the split.

    Args:
        paths: Sorted paths of the images.
        firsts: First-level folder of each image, if known.
        prefix: Folder of the split with "/", or "".
        all_splits: Whether all splits are read, whose folders are no classes.
        noun: Noun for notes, "image" or "video".
    """
    names = [path[len(prefix) :] for path in paths] if prefix else paths
    folders = first_folders(names) if firsts is None else firsts
    if all_splits and split_folders(sorted(set(folders) - {""})):
        names = [name.partition("/")[2] if "/" in name else name for name in names]
        folders = [name.partition("/")[0] if "/" in name else "" for name in names]
    printable_names = {name: printable(name) for name in set(folders)}
    return labels_of_folders(folders, printable_names, names, f"{noun}s")


def open_zip(archive: Path, split: str | None, *, label_column: str | None = None) -> ZipSource:
    """Open the images of a zip file as those of a folder, without unpacking it.

    Args:
        archive: Path of the zip file.
        split: As in `open_folder`.
        label_column: Must be None, as a zip file has no columns.

    Raises:
        ValueError: If the file is no zip file, or has no images.
    """
    if label_column is not None:
        raise ValueError(
            f"{str(archive)!r} is a zip file, which has no columns to find {label_column!r} in; "
            "leave out --label-column, or unpack it if it has a metadata.csv or metadata.jsonl."
        )
    members = members_of_zip(archive)
    names, left_out, notes = _images_of_zip(archive, members)
    if not names:
        hints = [f"{note}." for note in notes]
        raise ValueError(
            " ".join([_without_images(str(archive), left_out, "no image files"), *hints])
        )
    tops = {name.partition("/")[0] if "/" in name else None for name in names}
    first = next(iter(tops)) if len(tops) == 1 else None
    top = "" if first is None else f"{first}/"
    firsts = first_folders([name[len(top) :] for name in names])
    below = [
        LeftOut(entry.name.removeprefix(top), entry.reason)
        for entry in left_out
        if entry.name.startswith(top)
    ]
    chosen = choose_split(firsts, below, split, str(archive))
    prefix = top + chosen.prefix
    names = [name for name in names if name.startswith(prefix)]
    left_out = chosen.own(left_out, top)
    if not names:
        raise ValueError(_without_images(str(archive), left_out, "no image files"))
    labels = labels_below(names, None, prefix, split == ALL)
    notes = [*notes, *chosen.notes, *labels.notes]
    inventory = Inventory(len(names) + len(left_out), len(names), left_out, notes)
    return ZipSource(archive, names, f"{len(names)} image files in {archive}", labels, inventory)


def _images_of_zip(
    archive: Path, members: Sequence[tuple[str, zipfile.ZipInfo]]
) -> tuple[list[str], list[LeftOut], list[str]]:
    """Return the sorted names of the images, the images left out, and notes on other members."""
    names: list[str] = []
    left_out: list[LeftOut] = []
    archives: list[str] = []
    tables: list[str] = []
    last = dict(members)
    for name, entry in members:
        extension = kind_of_member(archive, entry)
        if (reason := missing_support(extension)) is not None:
            left_out.append(LeftOut(name, reason))
        elif extension in image_extensions():
            if entry is last[name]:
                names.append(name)
            else:
                left_out.append(LeftOut(name, "another file of this name follows in the zip file"))
        elif extension in CONTAINERS or is_archive(name):
            archives.append(name)
        elif posixpath.basename(name) in METADATA_FILES:
            tables.append(name)
    notes = [archives_note(archives)] if archives else []
    if tables:
        notes.append(f"{shorten(tables, 3)} in a zip file is not read; unpack the zip file")
    return sorted(names), left_out, notes


def open_list(
    file: Path, *, image_column: str | None = None, label_column: str | None = None
) -> FolderSource:
    """Open the images that a file lists: one path per line, or a table with a column of paths.

    Args:
        file: Text file, CSV file or JSON-lines file; relative paths start from its folder.
        image_column: Name of the column of paths; None to find it.
        label_column: Name of the label column; None to find it.

    Raises:
        ValueError: If the file cannot be read, has no such column, or names no image file.
    """
    table = read_list(file)
    paths = path_column(table, image_column, str(file))
    column, values = read_label_column(table, label_column, str(file))
    taken: list[str] = []
    kept: list[int] = []
    left_out: list[LeftOut] = []
    seen: dict[str, int] = {}
    num_repeated = 0
    for row, path in enumerate(paths):
        if not path:
            left_out.append(LeftOut(f"row {row + 1} of {file.name}", "the row has no path"))
            continue
        full = os.path.join(file.parent, path)
        reason = ONLY_FILES if is_url(path) else _why_not_taken(full)
        place = _real_path(full)
        if place in seen:
            num_repeated += 1
            if column is not None:
                check_repeated_label(path, values[seen[place]], values[row], str(file), column)
            continue
        seen[place] = row
        if reason is None:
            taken.append(path)
            kept.append(row)
        else:
            left_out.append(LeftOut(printable(path), reason))
    if not taken:
        reason = f"{left_out[0].name}: {left_out[0].reason}" if left_out else "it is empty"
        raise ValueError(f"{str(file)!r} names no image that can be read ({reason}).")
    labels = Labels()
    if column is not None:
        required = label_column is not None
        labels = labels_of_values([values[row] for row in kept], column, is_required=required)
    notes = [*notes_on_list(table, column), *labels.notes]
    if num_repeated:
        notes.append(f"{num_repeated} lines of {file.name} repeat a file, which is taken once")
    inventory = Inventory(len(taken) + len(left_out), len(taken), left_out, notes)
    description = f"{len(taken)} image files listed in {file}"
    return ListedSource(file.parent, taken, description, labels, inventory)


def source_of_files(files: Sequence[Path]) -> FolderSource:
    """Return a source of image files given one by one; each file is taken once.

    Args:
        files: Paths of image files.

    Raises:
        ValueError: If none of them is an image.
    """
    by_place = {os.path.realpath(file): file for file in reversed(files)}
    ordered = list(dict.fromkeys(by_place[os.path.realpath(file)] for file in files))
    taken: list[Path] = []
    left_out: list[LeftOut] = []
    for file in ordered:
        reason = _why_not_taken(str(file))
        if reason is None:
            taken.append(file.absolute())
        else:
            left_out.append(LeftOut(printable(str(file)), reason))
    if not taken:
        raise ValueError(
            f"data must be image files, a folder, a Parquet file, a tar, a zip file or a list of "
            f"paths, but {left_out[0].name!r} is none of these ({left_out[0].reason})."
        )
    folder = Path(os.path.commonpath([file.parent for file in taken]))
    names = [os.path.relpath(file, folder) for file in taken]
    inventory = Inventory(len(ordered), len(taken), left_out)
    description = str(taken[0]) if len(taken) == 1 else f"{len(taken)} image files in {folder}"
    return FolderSource(folder, names, description, Labels(), inventory)


def _real_path(path: str) -> str:
    try:
        return os.path.realpath(path)
    except ValueError:  # a null byte or a broken character
        return path


def _why_not_taken(path: str) -> str | None:
    """Return why a file cannot be an image of a source; None if it can."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "there is no such file"
    except OSError as error:
        return f"cannot be opened: {error.strerror}"
    except ValueError:
        return "not a possible name of a file; write the names as UTF-8"
    if stat.S_ISDIR(mode):
        return "a folder, not an image file"
    if not stat.S_ISREG(mode):
        return NOT_REGULAR
    extension = extension_of(path)
    if extension in image_extensions():
        return None
    if is_archive(os.path.basename(path)):
        return "an archive, which is not read; unpack it, a .tar.gz for example to a .tar"
    if extension in VIDEOS:
        return "a video, which selfvit embed --video-fps reads"
    if extension in NOT_IMAGES:
        return "not an image"
    try:
        kind = extension if missing_support(extension) is not None else kind_of(path)
    except OSError as error:
        return f"cannot be opened: {error.strerror}"
    if kind is None:
        return "not an image"
    return missing_support(kind)


def _without_images(
    where: str, left_out: Sequence[LeftOut], contents: str, videos: str | None = None
) -> str:
    if videos is not None:
        return f"there are no images in {where!r}; {videos}."
    if left_out:
        first = left_out[0]
        return (
            f"there are no images in {where!r} that can be decoded; {len(left_out)} are left "
            f"out, for example {first.name}: {first.reason}."
        )
    if _is_checkpoint(where):
        return f"{where!r} is a checkpoint, not a folder of images; name the images with --data."
    num_more = len(image_extensions()) - len(USUAL)
    return (
        f"there are no images in {where!r}, which contains {contents}; images are files with an "
        f"extension such as {', '.join(USUAL)}, or one of {num_more} others."
    )


def _is_checkpoint(where: str) -> bool:
    folder = Path(where)
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _list_contents(folder: Path) -> str:
    if not folder.is_dir():
        return "no image files"
    entries = sorted(folder.iterdir())
    found = [
        printable(entry.name) + ("/" if entry.is_dir() else "")
        for entry in entries
        if not entry.name.startswith(".")
    ]
    nothing = "nothing but hidden files" if entries else "nothing"
    return shorten(found, 5) if found else nothing


__all__ = [
    "ChosenImages",
    "Split",
    "choose_images",
    "choose_split",
    "labels_below",
    "open_folder",
    "open_list",
    "open_zip",
    "source_of_files",
]
