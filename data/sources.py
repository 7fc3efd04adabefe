"""Open images from files, folders, tables, archives, saved datasets or the Hub.

A source returns records of encoded images; they are decoded in the workers of the DataLoader.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from huggingface_hub import HfApi

from .dataset_source import DatasetSource, DatasetStream, StreamingImageSource
from .files.image_files import open_folder, open_list, open_zip, source_of_files
from .files.image_formats import extension_of
from .files.listing import CONTAINERS, Listing, list_images
from .files.splits import ALL, choose_files
from .files.tables import ROWS_AT_ONCE, open_parquet
from .files.tar_source import TarSource, TarStream
from .image_source import ImageSource

if TYPE_CHECKING:
    import datasets

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
) -> ImageSource: ...


@overload
def open_images(
    data: Data,
    *,
    split: str | None = None,
    streaming: bool,
    image_column: str | None = None,
    label_column: str | None = None,
) -> ImageSource | StreamingImageSource: ...


def open_images(
    data: Data,
    *,
    split: str | None = None,
    streaming: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
) -> ImageSource | StreamingImageSource:
    """Open a source of images.

    Args:
        data: One or several image files, a folder of image files (flat or nested, labeled or not),
            a folder written by `Dataset.save_to_disk`, Parquet files, WebDataset tars, a folder of
            such files, a zip file of images, a .txt, .csv or .jsonl file of paths, or the id of a
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

    Returns:
        The source. Its `inventory` has the number of images found and the images that were left
        out, with reasons.

    Raises:
        FileNotFoundError: If there is no such folder or file, and no such dataset on the Hub.
        ValueError: If the data contains no images; the message lists what it contains.
    """
    columns: dict[str, Any] = {"image_column": image_column, "label_column": label_column}
    if isinstance(data, (str, os.PathLike)):
        files = [Path(data).expanduser()]
    else:
        files = [Path(name).expanduser() for name in data]
        if not files:
            raise ValueError("data must name at least one image file or folder.")
    if len(files) > 1:
        return _open_files(files, split, streaming, columns)
    path = files[0]
    if path.is_dir():
        return _open_directory(path, split, streaming, columns)
    if path.exists():
        return _open_file(path, split, streaming, columns)
    name = str(data) if isinstance(data, (str, os.PathLike)) else str(data[0])
    return _open_hub_dataset(name, split, streaming, columns)


def _open_directory(
    path: Path, split: str | None, streaming: bool, columns: dict[str, Any]
) -> ImageSource | StreamingImageSource:
    if any((path / name).is_file() for name in SAVED_DATASET_FILES):
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
    if not containers:
        return open_folder(path, listing, split, **columns)
    kind, names = next(iter(containers.items()))
    if kind == ".zip":
        if len(names) > 1:
            raise ValueError(
                f"{str(path)!r} has {len(names)} zip files ({', '.join(names[:3])}); give one of "
                "them, or unpack them."
            )
        return open_zip(path / names[0], split, **columns)
    chosen, note = choose_files(names, split, str(path))
    source = _open_shards(path, chosen, kind, streaming, columns)
    source.inventory.notes.extend(listing.notes() if note is None else [note, *listing.notes()])
    return source


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
                is_table_of_images = holds_images(features_of(schema))
            except (OSError, ValueError):
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
    if suffix == ".zip":
        return open_zip(path, split, **columns)
    if suffix in KINDS:
        chosen, _ = choose_files([path.name], split, str(path))
        return _open_shards(path.parent, chosen, suffix, streaming, columns)
    if suffix in LISTS:
        return open_list(path, **columns)
    return source_of_files([path])


def _open_files(
    files: list[Path], split: str | None, streaming: bool, columns: dict[str, Any]
) -> ImageSource | StreamingImageSource:
    missing = [str(file) for file in files if not file.exists()]
    if missing:
        raise FileNotFoundError(f"there is no file {missing[0]!r}.")
    kinds = {extension_of(file.name) for file in files}
    if len(kinds) == 1 and (kind := next(iter(kinds))) in (".parquet", ".tar"):
        folder = Path(os.path.commonpath([file.absolute().parent for file in files]))
        names = [os.path.relpath(file.absolute(), folder) for file in files]
        return _open_shards(folder, names, kind, streaming, columns)
    for file in files:
        kind = extension_of(file.name)
        if file.is_dir() or kind in KINDS or kind in LISTS:
            raise ValueError(
                f"several values of data must be image files, or all Parquet files or all tars, "
                f"but {str(file)!r} is {'a folder' if file.is_dir() else 'another file'}; give one "
                "folder, or only files of one kind."
            )
    return source_of_files(files)


def _open_saved_dataset(path: Path, split: str | None, columns: dict[str, Any]) -> DatasetSource:
    import datasets

    try:
        dataset = datasets.load_from_disk(str(path))
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
    if on_hub is None:
        raise FileNotFoundError(f"there is no folder or file {name!r}.")
    repo_id, revision, split = on_hub["repo_id"], on_hub["revision"], split or "train"
    where: dict[str, Any] = {"path": repo_id, "revision": revision}
    try:
        if not streaming:
            dataset = datasets.load_dataset(**where, split=split)
            return DatasetSource(dataset, f"{len(dataset)} rows of {name} ({split})", **columns)
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


__all__ = ["Data", "open_images"]
