"""Where images come from: folders, Parquet, WebDataset tars, saved datasets, the Hub.

Nothing is decoded here: a source hands out records of encoded images, so that decoding happens
where it is wanted, in the DataLoader's workers.
"""

from __future__ import annotations

import re
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from huggingface_hub import HfApi

from .dataset_source import DatasetSource, StreamingImageSource
from .folder_source import FolderSource, image_files
from .image_source import ImageSource

if TYPE_CHECKING:
    import datasets

SAVED_DATASET_FILES = ("dataset_info.json", "state.json", "dataset_dict.json")

# Files of many images, by their extensions: what `datasets` reads them with, what they are called.
SHARDS = {
    ".parquet": ("parquet", "Parquet files"),
    ".tar": ("webdataset", "WebDataset tars"),
}

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
HUB_DATASET = re.compile(rf"(?P<repo_id>{HUB_ID.pattern})(@(?P<revision>[^@\s]+))?")

ROWS_AT_ONCE = 128  # of a Parquet stream; each open shard holds as many encoded images


@overload
def open_images(
    data: str | Path,
    *,
    split: str | None = None,
    streaming: Literal[False] = False,
    image_column: str | None = None,
    label_column: str | None = None,
) -> ImageSource: ...


@overload
def open_images(
    data: str | Path,
    *,
    split: str | None = None,
    streaming: bool,
    image_column: str | None = None,
    label_column: str | None = None,
) -> ImageSource | StreamingImageSource: ...


def open_images(
    data: str | Path,
    *,
    split: str | None = None,
    streaming: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
) -> ImageSource | StreamingImageSource:
    """Open images, whatever they are stored as.

    Args:
        data: folder of image files (flat or nested, labeled or not), folder written by
            `Dataset.save_to_disk`, .parquet file or WebDataset .tar, folder of such files, or id of
            a dataset on the Hub, USER/NAME or USER/NAME@REVISION; tried in this order. A stream
            stays at the commit that it was opened at.
        split: of a dataset that has several, "train" by default; of a folder of image files, the
            sub-folder of that name.
        streaming: read Parquet, tars and Hub data in passing. What is on the disk file by file is
            not streamed: it is opened by position all the same. Without it, tars and Hub data are
            copied into the cache of `datasets` first.
        image_column: of a dataset; found by its type by default.
        label_column: of a dataset; by default its ClassLabel column, or one named label(s) or cls,
            or a label in its JSON; COLUMN.FIELD for another field of it.

    Raises:
        FileNotFoundError: if there is nothing of that name, here or on the Hub.
        ValueError: if it holds no images; the message says what it holds.
    """
    path = Path(data).expanduser()
    columns = {"image_column": image_column, "label_column": label_column}
    if path.is_dir():
        if any((path / name).is_file() for name in SAVED_DATASET_FILES):
            return _open_saved_dataset(path, split, columns)
        if next(image_files(path), None) is not None:
            return FolderSource(_split_folder(path, split))
        for suffix, (builder, kind) in SHARDS.items():
            if shards := sorted(path.rglob(f"*{suffix}")):
                where = {"path": builder, "data_dir": str(path)}
                name, identity = f"{kind} in {path}", []
                if streaming:
                    name = f"{len(shards)} {name}"
                    identity = [
                        f"{file.relative_to(path)} {file.stat().st_size}" for file in shards
                    ]
                return _open_dataset(where, name, split, streaming, columns, identity)
        return FolderSource(path)  # which says what is missing
    if path.is_file():
        if path.suffix.lower() not in SHARDS:
            raise ValueError(
                f"{str(data)!r} is a file; give the folder of the images, or a .parquet or .tar "
                "file."
            )
        builder, _ = SHARDS[path.suffix.lower()]
        where = {"path": builder, "data_files": str(path)}
        identity = [f"{path.name} {path.stat().st_size}"]
        return _open_dataset(where, str(path), split, streaming, columns, identity)
    on_hub = HUB_DATASET.fullmatch(str(data))
    if on_hub is None:
        raise FileNotFoundError(f"there is no folder or file {str(data)!r}.")
    repo_id, revision, name = on_hub["repo_id"], on_hub["revision"], str(data)
    try:
        if streaming:
            revision = HfApi().dataset_info(repo_id, revision=revision).sha
            name = f"{repo_id}@{revision}"
        where = {"path": repo_id, "revision": revision}
        return _open_dataset(where, name, split, streaming, columns, [name])
    except OSError as error:  # not there, or the Hub is out of reach
        raise FileNotFoundError(
            f"{str(data)!r} is no folder or file here, and opening it as a dataset of the Hub "
            f"failed: {error}"
        ) from error


def _split_folder(folder: Path, split: str | None) -> Path:
    if split is None or (folder / split).is_dir():
        return folder / (split or "")
    raise ValueError(
        f"{str(folder)!r} is a folder of image files without a sub-folder {split!r}; "
        "leave split out to use all of them."
    )


def _open_saved_dataset(path: Path, split: str | None, columns: dict) -> DatasetSource:
    import datasets

    dataset = datasets.load_from_disk(str(path))
    if isinstance(dataset, datasets.DatasetDict):
        split = split or "train"
        if split not in dataset:
            raise ValueError(f"{str(path)!r} has no split {split!r}; it has {', '.join(dataset)}.")
        dataset = dataset[split]
    elif split is not None:
        raise ValueError(f"{str(path)!r} has no splits; leave split out.")
    return DatasetSource(dataset, f"{len(dataset)} rows of the dataset in {path}", **columns)


def _open_dataset(
    where: dict,
    name: str,
    split: str | None,
    streaming: bool,
    columns: dict,
    identity: list[str],
) -> ImageSource | StreamingImageSource:
    import datasets

    split = split or "train"
    try:
        if streaming:
            dataset = _stream(datasets.load_dataset_builder(**where), split)
        else:
            dataset = datasets.load_dataset(**where, split=split)
    except (tarfile.TarError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        if where["path"] != "webdataset" or "split" in str(error):
            raise
        raise ValueError(
            f"{name} cannot be read as WebDataset shards, in which the files of an image follow "
            f"each other and share a name, as 0001.jpg and 0001.cls: {error.__cause__ or error}"
        ) from error
    if streaming:
        description = f"{name} ({split}), streamed"
        return StreamingImageSource(dataset, description, identity=[*identity, split], **columns)
    return DatasetSource(dataset, f"{len(dataset)} rows of {name} ({split})", **columns)


def _stream(builder: datasets.DatasetBuilder, split: str) -> datasets.IterableDataset:
    if builder.name == "parquet":
        # by default the rows of a file's first row group, which fails where there are none
        builder.config.batch_size = ROWS_AT_ONCE
    return builder.as_streaming_dataset(split=split)


__all__ = ["open_images"]
