"""Splits of a folder: first-level folders or file names such as train, val and test."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# Names of splits in file names and folders, and the split that they stand for.
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
ALL = "all"
_WORD = re.compile(
    rf"(?:^|[-_./])({'|'.join(sorted(SPLITS, key=len, reverse=True))})(?=$|[-_.0-9/])"
)


def split_folders(folders: Sequence[str]) -> list[str]:
    """Return the first-level folders if all of them are splits; else none.

    Args:
        folders: Names of the first-level folders that contain images.
    """
    names = split_names(folders)
    return names if len(names) == len(folders) else []


def split_names(folders: Iterable[str]) -> list[str]:
    """Return the folders that are named like a split.

    Args:
        folders: Names of folders.
    """
    return sorted(name for name in folders if name.lower() in SPLITS)


def choose_split_folder(folders: Sequence[str], split: str | None, where: str) -> str:
    """Return the folder of a split, "train" by default.

    Args:
        folders: Folders from `split_folders`.
        split: Requested split; None for train.
        where: Name of the data in the error.

    Raises:
        ValueError: If there is no folder for the split.
    """
    wanted = (split or "train").lower()
    if split is None and len(folders) == 1:
        return folders[0]
    exact = [name for name in folders if name == split]
    alike = [name for name in folders if SPLITS[name.lower()] == SPLITS.get(wanted)]
    if not exact and not alike:
        raise ValueError(
            f"{where} has the splits {', '.join(folders)}; choose one with --split, or all of them "
            f"with --split {ALL}."
        )
    return (exact or alike)[0]


def split_of_file(path: str) -> str | None:
    """Return the split that a file name or one of its folders names, or None.

    Args:
        path: Path relative to the folder of the data, with "/".
    """
    names = _WORD.findall(path.lower())
    return SPLITS[names[-1]] if names else None


def choose_files(
    paths: Sequence[str], split: str | None, where: str
) -> tuple[list[str], str | None]:
    """Return the files of a split, and a note on what is not read.

    Without a split in any name, all files are the split train.

    Args:
        paths: Paths of the files, relative to the folder of the data.
        split: Requested split; None for train.
        where: Name of the data in errors.

    Raises:
        ValueError: If some files belong to a split and others to none, or the split does not exist.
    """
    if split == ALL:
        return list(paths), None
    by_split: dict[str | None, list[str]] = {}
    for path in paths:
        by_split.setdefault(split_of_file(path), []).append(path)
    none = by_split.pop(None, [])
    if none and by_split:
        example = ", ".join(none[:3])
        raise ValueError(
            f"every file of {where} must belong to a split, or none, but the names of {example} "
            f"name none, and others name {', '.join(map(str, by_split))}; rename the files, or "
            f"read all of them with --split {ALL}."
        )
    if none:
        if split in (None, "train"):
            return none, None
        raise ValueError(f"{where} has no split {split!r}; the names of its files name none.")
    if split is None and len(by_split) == 1:
        split = next(iter(by_split))
    wanted = SPLITS.get((split or "train").lower(), split)
    if wanted not in by_split:
        raise ValueError(
            f"{where} has no split {split or 'train'!r}; choose one of "
            f"{', '.join(map(str, by_split))} with --split, or all of them with --split {ALL}."
        )
    others = [str(name) for name in by_split if name != wanted]
    note = None
    if others:
        note = f"split {wanted}; the files of {', '.join(others)} are not read (--split chooses)"
    return by_split[wanted], note


__all__ = [
    "ALL",
    "choose_files",
    "choose_split_folder",
    "split_folders",
    "split_names",
    "split_of_file",
]
