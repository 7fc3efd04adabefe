"""Open images from folders, Parquet files, WebDataset tars, saved datasets or the Hub.

A source returns records of encoded images; they are decoded in the workers of the DataLoader.
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

# Extensions of files that contain many images: the builder in `datasets`, the name in messages.
SHARDS = {
    ".parquet": ("parquet", "Parquet files"),
    ".tar": ("webdataset", "WebDataset tars"),
}

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
HUB_DATASET = re.compile(rf"(?P<repo_id>{HUB_ID.pattern})(@(?P<revision>[^@\s]+))?")

ROWS_AT_ONCE = 128  # rows per read of a Parquet stream; each open shard keeps them in memory


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
    """Open a source of images.

    Args:
        data: Folder of image files (flat or nested, labeled or not), folder written by
            `Dataset.save_to_disk`, .parquet file or WebDataset .tar file, folder of such files, or
            id of a dataset on the Hub (USER/NAME or USER/NAME@REVISION); tried in this order. A
            stream keeps reading the commit that was current when it was opened.
        split: Split of a dataset, "train" by default; for a folder of image files, the subfolder
            to use, by default all of them.
        streaming: Whether to read Parquet files, tars and Hub datasets as a stream. Without it,
            tars and Hub datasets are copied into the cache of `datasets` first. Folders of image
            files and saved datasets are always read by position.
        image_column: Name of the image column; by default, the column is found by its type.
        label_column: Name of the label column, or COLUMN.FIELD for a field of a struct; by default,
            the ClassLabel column, a column named label, labels or cls, or the label in a JSON
            column.

    Raises:
        FileNotFoundError: If there is no such folder or file, and no such dataset on the Hub.
        ValueError: If the data contains no images; the message lists what it contains.
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
        return FolderSource(path)  # raises an error that lists the contents
    if path.is_file():
        if path.suffix.lower() not in SHARDS:
            raise ValueError(
                f"data must be a folder, a .parquet file or a .tar file, but {str(data)!r} is "
                "another file; give the folder that contains the images."
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
    except OSError as error:  # there is no such dataset, or the Hub is not reachable
        raise FileNotFoundError(
            f"{str(data)!r} is not a local folder or file, and it cannot be opened as a dataset "
            f"on the Hub: {error}"
        ) from error


def _split_folder(folder: Path, split: str | None) -> Path:
    if split is None or (folder / split).is_dir():
        return folder / (split or "")
    raise ValueError(
        f"the split of a folder of image files must be a subfolder, but {str(folder)!r} is "
        f"without a subfolder {split!r}; omit --split to use all images."
    )


def _open_saved_dataset(path: Path, split: str | None, columns: dict) -> DatasetSource:
    import datasets

    dataset = datasets.load_from_disk(str(path))
    if isinstance(dataset, datasets.DatasetDict):
        split = split or "train"
        if split not in dataset:
            raise ValueError(
                f"{str(path)!r} has no split {split!r}; choose one of {', '.join(dataset)}."
            )
        dataset = dataset[split]
    elif split is not None:
        raise ValueError(f"{str(path)!r} has no splits; omit --split.")
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
            f"{name} cannot be read as WebDataset shards. In a shard, the files of an image must "
            "be adjacent and have the same name, for example 0001.jpg and 0001.cls. The error was: "
            f"{error.__cause__ or error}"
        ) from error
    if streaming:
        description = f"{name} ({split}), streamed"
        return StreamingImageSource(dataset, description, identity=[*identity, split], **columns)
    return DatasetSource(dataset, f"{len(dataset)} rows of {name} ({split})", **columns)


def _stream(builder: datasets.DatasetBuilder, split: str) -> datasets.IterableDataset:
    if builder.name == "parquet":
        # By default, it is the size of the first row group, which fails for an empty file.
        builder.config.batch_size = ROWS_AT_ONCE
    return builder.as_streaming_dataset(split=split)


__all__ = ["open_images"]
