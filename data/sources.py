"""Open images from files, folders, tables, archives, saved datasets or the Hub.

A source returns records of encoded images; they are decoded in the workers of the DataLoader.
"""

from __future__ import annotations

import difflib
import errno
import logging
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from ..errors import shorten
from .dataset_source import AnySource, DatasetSource, DatasetStream, StreamingImageSource
from .files.image_files import open_folder, open_list, open_zip, source_of_files
from .files.image_formats import extension_of
from .files.listing import CONTAINERS, NOT_REGULAR, Listing, list_images
from .files.splits import ALL, choose_files, split_folders
from .files.tables import ROWS_AT_ONCE, open_parquet
from .files.tar_source import TarSource, TarStream
from .folder_source import FolderSource
from .image_source import ImageSource
from .inventory import Inventory, LeftOut, opening_lines
from .labels import first_folders
from .remote.file_system import is_url
from .remote.remote_images import open_remote
from .videos.video_source import open_videos

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

SAVED_DATASET_FILES = ("dataset_info.json", "state.json", "dataset_dict.json")
KINDS = {".parquet": "Parquet files", ".tar": "WebDataset tars", ".zip": "zip files"}
LISTS = (".txt", ".lst", ".csv", ".tsv", ".jsonl")

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
HUB_DATASET = re.compile(rf"(?P<repo_id>{HUB_ID.pattern})(@(?P<revision>[^@\s]+))?")

Data = str | Path | Sequence[str | Path]


@overload
def open_images(
    data: Data,
    *,
    split: str | None = None,
    streaming: Literal[False] = False,
    image_column: str | None = None,
    label_column: str | None = None,
    video_fps: None = None,
) -> ImageSource: ...


@overload
def open_images(
    data: Data,
    *,
    split: str | None = None,
    streaming: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    video_fps: float,
) -> StreamingImageSource: ...


@overload
def open_images(
    data: Data,
    *,
    split: str | None = None,
    streaming: bool,
    image_column: str | None = None,
    label_column: str | None = None,
    video_fps: float | None = None,
) -> ImageSource | StreamingImageSource: ...


def open_images(
    data: Data,
    *,
    split: str | None = None,
    streaming: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    video_fps: float | None = None,
) -> ImageSource | StreamingImageSource:
    """Open a source of images.

    Args:
        data: One or several image files, a folder of image files (flat or nested, labeled or not),
            a folder written by `Dataset.save_to_disk`, Parquet files, WebDataset tars, a folder of
            such files, a zip file of images, a .txt, .csv or .jsonl file of paths, the URL of an
            image file or of a folder of them in object storage (s3://BUCKET/FOLDER), or the id of a
            dataset on the Hub (USER/NAME or USER/NAME@REVISION). A stream keeps reading the commit
            that was current when it was opened.
        split: Split to read; "all" reads all splits. It is a split of a dataset, a first-level
            folder if all of these are named like splits, or a split in the names of Parquet files
            or tars; "train" by default. For another folder of image files, the subfolder to use,
            by default all of them.
        streaming: Whether to read Parquet files, tars and Hub datasets as a stream. Without it,
            Parquet files and Hub datasets are copied into the cache of `datasets` first. All other
            data is always read by position.
        image_column: Name of the image column; by default, the column is found by its type.
        label_column: Name of the label column, or COLUMN.FIELD for a field of a struct; by default,
            the ClassLabel column, a column with a usual name such as label or class, or the label
            in a JSON column.
        video_fps: Frames per second of videos; None for images. The source is then a stream of the
            frames of one or several video files, or of a folder of them, see `open_videos`.

    Returns:
        The source. Its `inventory` has the number of images found and the images that were left
        out, with reasons.

    Raises:
        FileNotFoundError: If there is no such folder or file, and no such dataset on the Hub.
        ImportError: If the package for a URL is missing.
        StorageError: If object storage cannot be read.
        ValueError: If the data contains no images; the message lists what it contains.
    """
    columns: dict[str, Any] = {"image_column": image_column, "label_column": label_column}
    names = [data] if isinstance(data, (str, os.PathLike)) else list(data)
    if not names:
        raise ValueError("data must name at least one image file or folder.")
    if any([is_url(name) for name in names]):
        urls = [str(name) for name in names]
        if video_fps is not None:
            raise ValueError(
                f"videos are not read from object storage, but data is {', '.join(urls)}; copy "
                "them to a disk, or leave out --video-fps for images."
            )
        remote = open_remote(urls, split, streaming=streaming, **columns)
        if isinstance(remote, StreamingImageSource):
            return remote
        return _without_columns(remote, image_column)
    files = [Path(name).expanduser() for name in names]
    if video_fps is not None:
        _check_unused("videos have no columns", **columns)
        return open_videos(files, video_fps, split)
    if len(files) > 1:
        return _open_files(files, split, streaming, columns)
    path = files[0]
    mode = _mode(path)
    if mode is None:
        return _open_hub_dataset(str(names[0]), split, streaming, columns)
    if stat.S_ISDIR(mode):
        return _open_directory(path, split, streaming, columns)
    _check_file(path)
    return _open_file(path, split, streaming, columns)


@overload
def as_source(images: ImageSource | Data) -> ImageSource: ...


@overload
def as_source(images: AnySource | Data) -> AnySource: ...


def as_source(images: AnySource | Data) -> AnySource:
    """Return a source as it is, and the source of paths as `open_images` opens it.

    For paths, the images that are left out, the rule of the labels and other remarks are logged.

    Args:
        images: Source, or paths as in `open_images`.

    Raises:
        FileNotFoundError: As `open_images`.
        TypeError: If it is neither.
        ValueError: As `open_images`.
    """
    if isinstance(images, ImageSource | StreamingImageSource):
        return images
    paths = [images] if isinstance(images, (str, os.PathLike)) else list(images)
    for path in paths:
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(
                f"a source or paths are needed, not an object of type {type(path).__name__}; open "
                "paths by open_images, or call an Embedder with images in memory."
            )
    source = open_images(paths)
    if (summary := source.inventory.summary()) is not None:
        logger.warning(summary)
    for line in opening_lines(source.inventory, source.label_rule):
        logger.info(line)
    return source


def _mode(path: Path) -> int | None:
    """Return the mode of a file or folder; None if there is none.

    Raises:
        ValueError: If a folder above it cannot be opened.
    """
    try:
        return path.stat().st_mode
    except PermissionError as error:
        raise ValueError(_not_permitted(path)) from error
    except OSError:
        return None


def _check_file(path: Path) -> None:
    """Check that a file can be opened without waiting for another program.

    Raises:
        ValueError: If it is no regular file, or cannot be opened.
    """
    if not path.is_file():
        raise ValueError(f"{str(path)!r} is {NOT_REGULAR}; write its content to a file.")
    effective = os.access in os.supports_effective_ids
    # It is not opened, as a file of a stream may hang.
    if not os.access(path, os.R_OK, effective_ids=effective):
        raise ValueError(_not_permitted(path))


def _not_permitted(path: Path) -> str:
    reason = os.strerror(errno.EACCES)
    return f"{str(path)!r} cannot be opened: {reason}; change its permissions or copy it."


def _check_unused(where: str, **options: str | None) -> None:
    """Check that no option is given that has no meaning for the data.

    Args:
        where: The data, with the reason.
        options: Options with their values.

    Raises:
        ValueError: If an option is given.
    """
    for name, value in options.items():
        if value is not None and (name, value) != ("split", ALL):
            option = name.replace("_", "-")
            raise ValueError(f"{where}, so that {value!r} cannot be chosen; omit --{option}.")


def _without_columns(source: FolderSource, image_column: str | None) -> FolderSource:
    """Return a source of image files, with a note if an image column was chosen.

    It is no error, as one command may read a table and a folder.
    """
    if image_column is not None:
        note = f"--image-column {image_column} is not used for {source.description}"
        source.inventory.notes.append(note)
    return source


def _open_directory(
    path: Path, split: str | None, streaming: bool, columns: dict[str, Any]
) -> ImageSource | StreamingImageSource:
    if any(os.path.isfile(path / name) for name in SAVED_DATASET_FILES):
        return _open_saved_dataset(path, split, columns)
    listing = list_images(path)
    containers = _containers_with_images(path, listing)
    if len(containers) + bool(listing.paths) > 1:
        kinds = [f"{len(names)} {KINDS[kind]} ({names[0]})" for kind, names in containers.items()]
        if listing.paths:
            kinds.insert(0, f"{len(listing.paths)} image files ({listing.paths[0]}, ...)")
        raise ValueError(
            f"data must be of one kind, but {str(path)!r} has {' and '.join(kinds)}; give the "
            "folder or the files of the kind that is meant."
        )
    image_column, label_column = columns["image_column"], columns["label_column"]
    if not containers:
        folder = open_folder(path, listing, split, label_column=label_column)
        return _without_columns(folder, image_column)
    kind, names = next(iter(containers.items()))
    if kind == ".zip":
        if len(names) > 1:
            raise ValueError(
                f"{str(path)!r} has {len(names)} zip files ({', '.join(names[:3])}); give one of "
                "them, or unpack them."
            )
        _check_file(path / names[0])
        opened = open_zip(path / names[0], split, label_column=label_column)
        _add_listing(opened, listing, listing.notes())
        return _without_columns(opened, image_column)
    chosen, note = choose_files(names, split, str(path))
    source = _open_shards(path, chosen, kind, streaming, columns)
    notes = listing.notes() if note is None else [note, *listing.notes()]
    if source.label_rule is None and (folders := _class_folders(chosen)):
        notes.append(
            f"the folders of the {KINDS[kind]} are no labels ({shorten(folders, 3)}); labels are "
            "read from their content"
        )
    _add_listing(source, listing, notes)
    return source


def _class_folders(names: Sequence[str]) -> list[str]:
    """Return the first-level folders of shards if there are several that name no splits."""
    folders = sorted(set(first_folders(names)) - {""})
    return folders if len(folders) > 1 and not split_folders(folders) else []


def _add_listing(
    source: ImageSource | StreamingImageSource, listing: Listing, notes: Sequence[str]
) -> None:
    """Add what a listing left out, and notes, to the inventory of a source of a folder."""
    left_out, inventory = listing.left_out, source.inventory
    if listing.metadata:
        notes = [*notes, f"{shorten(listing.metadata, 3)} beside other data is not read"]
    source.inventory = Inventory(
        inventory.found + len(left_out),
        inventory.taken,
        [*inventory.left_out, *left_out],
        [*notes, *inventory.notes],
    )


def _containers_with_images(path: Path, listing: Listing) -> dict[str, list[str]]:
    """Return the files that hold many images; beside image files, only tables that hold images."""
    containers = {
        kind: listing.containers[kind] for kind in CONTAINERS if kind in listing.containers
    }
    if listing.paths and ".parquet" in containers:
        from .columns import holds_images
        from .files.parquet import read_footer
        from .files.tables import features_of

        holding = []
        for name in containers.pop(".parquet"):
            try:
                schema = read_footer(path / name).schema.to_arrow_schema()
            except (OSError, ValueError) as error:
                listing.left_out.append(LeftOut(name, f"cannot be read as Parquet: {error}"))
                continue
            try:
                is_table_of_images = holds_images(features_of(schema))
            except ValueError:  # a type that `datasets` cannot store
                is_table_of_images = False
            if is_table_of_images:
                holding.append(name)
            else:
                listing.other_files.append(name)
        if holding:
            containers[".parquet"] = holding
    return containers


def _open_shards(
    folder: Path, names: list[str], kind: str, streaming: bool, columns: dict[str, Any]
) -> ImageSource | StreamingImageSource:
    """Open the Parquet files or tars of a folder."""
    files = [folder / name for name in names]
    for file in files:
        _check_file(file)
    where = f"{KINDS[kind]} in {folder}" if len(names) > 1 else str(files[0])
    identity = [f"{name} {(folder / name).stat().st_size}" for name in names]
    if streaming and len(names) > 1:
        where = f"{len(names)} {where}"
    if kind == ".parquet":
        return open_parquet(files, where, streaming=streaming, identity=identity, **columns)
    if streaming:
        return TarStream(files, f"{where}, streamed", identity, **columns)
    return TarSource(files, where, **columns)


def _open_file(
    path: Path, split: str | None, streaming: bool, columns: dict[str, Any]
) -> ImageSource | StreamingImageSource:
    suffix = extension_of(path.name)
    image_column, label_column = columns["image_column"], columns["label_column"]
    if suffix == ".zip":
        return _without_columns(open_zip(path, split, label_column=label_column), image_column)
    if suffix in KINDS:
        chosen, _ = choose_files([path.name], split, str(path))
        return _open_shards(path.parent, chosen, suffix, streaming, columns)
    if suffix in LISTS:
        _check_unused(f"the images that {str(path)!r} lists have no splits", split=split)
        return open_list(path, **columns)
    _check_unused(f"{str(path)!r} is one file", split=split, label_column=label_column)
    return _without_columns(source_of_files([path]), image_column)


def _open_files(
    files: list[Path], split: str | None, streaming: bool, columns: dict[str, Any]
) -> ImageSource | StreamingImageSource:
    for file in files:
        if _mode(file) is None:
            raise FileNotFoundError(f"there is no file {str(file)!r}.")
    kinds = {extension_of(file.name) for file in files}
    if len(kinds) == 1 and (kind := next(iter(kinds))) in (".parquet", ".tar"):
        return _open_given_shards(files, kind, split, streaming, columns)
    for file in files:
        kind = extension_of(file.name)
        if file.is_dir() or kind in KINDS or kind in LISTS:
            raise ValueError(
                f"several values of data must be image files, or all Parquet files or all tars, "
                f"but {str(file)!r} is {'a folder' if file.is_dir() else 'another file'}; give one "
                "folder, or only files of one kind."
            )
    where, label_column = f"{len(files)} image files are given", columns["label_column"]
    _check_unused(where, split=split, label_column=label_column)
    return _without_columns(source_of_files(files), columns["image_column"])


def _open_given_shards(
    files: Sequence[Path], kind: str, split: str | None, streaming: bool, columns: dict[str, Any]
) -> ImageSource | StreamingImageSource:
    """Open Parquet files or tars that are given one by one; all of them without a split."""
    by_place = {os.path.realpath(file): file.absolute() for file in reversed(files)}
    different = list(dict.fromkeys(by_place[os.path.realpath(file)] for file in files))
    folder = Path(os.path.commonpath([file.parent for file in different]))
    names = [os.path.relpath(file, folder) for file in different]
    if split is not None:
        names, _ = choose_files(names, split, f"the list of {len(names)} files")
    source = _open_shards(folder, names, kind, streaming, columns)
    if num_repeated := len(files) - len(different):
        source.inventory.notes.append(f"{num_repeated} files are given twice, and taken once")
    return source


def _open_saved_dataset(path: Path, split: str | None, columns: dict[str, Any]) -> DatasetSource:
    import datasets

    try:
        dataset = datasets.load_from_disk(str(path.absolute()))
    except Exception as error:  # the files can contain anything
        raise ValueError(
            f"{str(path)!r} is no complete saved dataset: {type(error).__name__}: {error}; save it "
            "again with Dataset.save_to_disk."
        ) from error
    notes: list[str] = []
    if isinstance(dataset, datasets.DatasetDict):
        dataset, notes = _choose_split(dataset, split, str(path))
    elif split not in (None, ALL):
        raise ValueError(f"{str(path)!r} has no splits; omit --split.")
    description = f"{len(dataset)} rows of the dataset in {path}"
    source = DatasetSource(dataset, description, **columns, folders=[(path, len(dataset))])
    source.inventory.notes[:0] = notes
    return source


def _choose_split(
    splits: datasets.DatasetDict, split: str | None, where: str
) -> tuple[datasets.Dataset, list[str]]:
    """Return the rows of a split, or of all splits, and a note on those that are not read.

    Raises:
        ValueError: If there is no such split, or the splits have different columns.
    """
    import datasets

    if split == ALL and split not in splits:
        try:
            return datasets.concatenate_datasets(list(splits.values())), []
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"the splits {', '.join(splits)} of {where!r} cannot be read together: {error}; "
                "choose one with --split."
            ) from error
    split = split or "train"
    if split not in splits:
        raise ValueError(
            f"{where!r} has no split {split!r}; choose one of {', '.join(splits)}, or {ALL}."
        )
    others = [name for name in splits if name != split]
    if not others:
        return splits[split], []
    choice = f"--split chooses, --split {ALL} reads all"
    return splits[split], [f"split {split}; {', '.join(others)} are not read ({choice})"]


def _open_hub_dataset(
    name: str, split: str | None, streaming: bool, columns: dict[str, Any]
) -> ImageSource | StreamingImageSource:
    import datasets

    on_hub = HUB_DATASET.fullmatch(name)
    if on_hub is None or "/" not in name:
        beside = [path.name for path in Path(name).expanduser().parent.glob("*")]
        close = difflib.get_close_matches(Path(name).name, beside, n=1)
        hint = f" Did you mean {str(Path(name).parent / close[0])!r}?" if close else ""
        raise FileNotFoundError(
            f"there is no folder or file {name!r}; a dataset on the Hub is USER/NAME.{hint}"
        )
    repo_id, revision, split = on_hub["repo_id"], on_hub["revision"], split or "train"
    where: dict[str, Any] = {"path": repo_id, "revision": revision}
    try:
        if not streaming:
            dataset = datasets.load_dataset(**where, split=split)
            return DatasetSource(dataset, f"{len(dataset)} rows of {name} ({split})", **columns)
        from huggingface_hub import HfApi

        revision = HfApi().dataset_info(repo_id, revision=revision).sha
        builder = datasets.load_dataset_builder(repo_id, revision=revision)
        if builder.name == "parquet":
            builder.config.batch_size = ROWS_AT_ONCE
        name = f"{repo_id}@{revision}"
        stream = builder.as_streaming_dataset(split=split)
        return DatasetStream(
            stream, f"{name} ({split}), streamed", **columns, identity=[name, split]
        )
    except datasets.exceptions.DatasetGenerationError as error:
        raise ValueError(f"{name} cannot be read: {error.__cause__ or error}") from error
    except OSError as error:  # there is no such dataset, or the Hub is not reachable
        raise FileNotFoundError(
            f"{name!r} is not a local folder or file, and it cannot be opened as a dataset "
            f"on the Hub: {error}"
        ) from error


__all__ = ["Data", "as_source", "open_images"]
