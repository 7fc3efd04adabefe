"""Sources that read the samples of WebDataset tars, by position or as a stream."""

from __future__ import annotations

import functools
import os
from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np

from ...errors import printable
from ..columns import JSON_COLUMNS, LABEL_COLUMNS
from ..dataset_source import StreamingImageSource
from ..image_source import NO_LABEL, ImageRecord, ImageSource, UnreadableContent, short_hash
from ..inventory import Inventory, LeftOut, group_reasons
from ..remote.remote_file import RemoteFile, local_copy
from .tar_labels import TarLabels
from .tar_members import Member, read_headers, read_member
from .tars import SampleRule, TarIndex, choose_rule, survey_positions

MAX_NOTES = 5  # on single tars
NO_END = "the tar has no end mark, so it may be cut off and files may be missing"


class TarSource(ImageSource):
    """Samples of tars, read by position from the tars themselves.

    Args:
        paths: Paths of the tars.
        description: Description of the tars, without the number of images.
        image_column: Field of the images; by default, the most frequent field of each sample.
        label_column: Field of the labels, or FIELD.KEY for a key of a JSON field.

    Raises:
        ValueError: If a tar cannot be read, or there are no images or no such field.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        description: str,
        image_column: str | None = None,
        label_column: str | None = None,
    ):
        contents = [read_headers(path) for path in paths]
        surveyed = [contents[place] for place in survey_positions(len(contents))]
        rule = choose_rule(surveyed, image_column)
        tars = [rule.index(tar) for tar in contents]
        self._paths = [tar.path.absolute() for tar in tars]
        left_out = _left_out(tars)
        taken = [(n, sample, member) for n, tar in enumerate(tars) for sample, member in tar.taken]
        if not taken:
            raise ValueError(_without_images(description, tars, rule, left_out))
        self._tars = [number for number, _, _ in taken]
        self._keys = [sample.key for _, sample, _ in taken]
        self._members = [member for _, _, member in taken]
        labels = TarLabels(tars, description).read(label_column)
        self._labels = labels.values
        notes = [*_notes(tars, rule), *labels.notes]
        inventory = Inventory(len(taken) + len(left_out), len(taken), left_out, notes)
        super().__init__(
            f"{len(taken)} samples of {description}", labels.names, "id", inventory, labels.rule
        )

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, position: int) -> ImageRecord:
        position = range(len(self))[position]
        label = NO_LABEL if self._labels is None else int(self._labels[position])
        content = read_member(self._paths[self._tars[position]], self._members[position])
        return ImageRecord(self._keys[position], content, None if label == NO_LABEL else label)

    def name_of(self, position: int) -> str:
        """Return the key of a sample."""
        return self._keys[position]

    def labels(self) -> np.ndarray | None:
        """Return the labels (N,), int64, -1 for a sample without one, or None if none has one."""
        return None if self._labels is None else self._labels.copy()

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the keys, the sizes of the images and the labels."""
        parts = [
            f"{key} {member.size}".encode("utf-8", "backslashreplace")
            for key, member in zip(self._keys, self._members, strict=True)
        ]
        return short_hash(parts + ([] if self._labels is None else [self._labels.tobytes()]))


class TarStream(StreamingImageSource):
    """Samples of tars as a stream, one shard per tar, without labels.

    Args:
        paths: Tars, also in object storage, of which only the first one is surveyed then.
        description: Description of the data for logs and model cards.
        identity: Names and sizes of the tars.
        image_column: Field of the images; by default, the most frequent field of each sample.
        label_column: Must be None.

    Raises:
        ValueError: If the first tar cannot be read or has no images, or labels are asked for.
    """

    def __init__(
        self,
        paths: Sequence[Path | RemoteFile],
        description: str,
        identity: Sequence[str],
        image_column: str | None = None,
        label_column: str | None = None,
    ):
        if label_column is not None:
            raise ValueError(
                f"labels of a stream must be in a ClassLabel column, but {label_column!r} is a "
                "field of a tar, so the names of its labels are not known before the end of the "
                "stream; read the data without streaming."
            )
        self._paths = [path.absolute() if isinstance(path, Path) else path for path in paths]
        is_remote = any(isinstance(path, RemoteFile) for path in paths)
        surveyed = []
        for place in [0] if is_remote else survey_positions(len(paths)):
            with local_copy(paths[place]) as path:
                surveyed.append(read_headers(path))
        self._rule = choose_rule(surveyed, image_column)
        tars = [self._rule.index(tar) for tar in surveyed]
        left_out, taken = _left_out(tars), sum(len(tar.taken) for tar in tars)
        self._is_surveyed = len(tars) == len(paths)
        if not taken:
            raise ValueError(_without_images(description, tars, self._rule, left_out))
        notes = _notes(tars, self._rule)
        if self._is_surveyed:
            inventory = Inventory(taken + len(left_out), taken, left_out, notes)
        else:
            inventory = Inventory(0, 0, notes=notes)
            if left_out:
                notes.append(
                    f"{len(left_out)} images in {len(tars)} of {len(paths)} tars are left out, for "
                    f"example {left_out[0].name} ({left_out[0].reason}); the others are counted "
                    "when they are read"
                )
        super().__init__(description, None, identity, inventory)

    @property
    def num_shards(self) -> int:
        """Number of tars."""
        return len(self._paths)

    def read_shard(
        self, shard: int, *, start: int = 0, part: int = 0, num_parts: int = 1
    ) -> Generator[ImageRecord, None, None]:
        """Yield the records of a tar; see `StreamingImageSource`."""
        with local_copy(self._paths[shard]) as path:
            yield from self._read_tar(path, shard, start, part, num_parts)

    def will_read(self, shard: int) -> None:
        """Start to copy the tar, if it is in object storage."""
        file = self._paths[shard]
        if isinstance(file, RemoteFile):
            file.start_copy()

    def _read_tar(
        self, path: Path, shard: int, start: int, part: int, num_parts: int
    ) -> Generator[ImageRecord, None, None]:
        try:
            tar = self._rule.index(read_headers(path))
        except (ValueError, OSError) as error:
            raise ValueError(
                f"shard {shard} (from 0, sorted by name) of {self.description} cannot be read: "
                f"{error}"
            ) from error
        entries: list[tuple[str, Member | UnreadableContent]] = []
        if not self._is_surveyed and (tar.left_out or not tar.is_ended):
            entries.append((printable(path.name), _summary(tar)))
        entries += [(sample.key, member) for sample, member in tar.taken]
        for key, member in entries[part::num_parts][start:]:
            if isinstance(member, UnreadableContent):
                yield ImageRecord(key, member)
            else:
                yield ImageRecord(key, read_member(path, member))


def _left_out(tars: Sequence[TarIndex]) -> list[LeftOut]:
    """Return what all tars leave out; of several tars, the names begin with that of the tar."""
    if len(tars) == 1:
        return tars[0].left_out
    folder = os.path.commonpath([tar.path.absolute().parent for tar in tars])
    return [
        LeftOut(
            printable(f"{os.path.relpath(tar.path.absolute(), folder)}/{entry.name}"), entry.reason
        )
        for tar in tars
        for entry in tar.left_out
    ]


def _summary(tar: TarIndex) -> UnreadableContent:
    """Return one content for all images of a tar that are left out or may be missing."""
    texts = [] if tar.is_ended else [NO_END]
    if tar.left_out:
        reasons = group_reasons([entry.reason for entry in tar.left_out])
        first = tar.left_out[0].name
        texts.append(
            f"{len(tar.left_out)} of its images are left out, for example {first} ({reasons})"
        )
    return UnreadableContent("; ".join(texts))


def _notes(tars: Sequence[TarIndex], rule: SampleRule) -> list[str]:
    """Return sentences about how names are split, and about the first tars that have notes."""
    notes = []
    if rule.splits_at_last_dot:
        where = tars[0].path.name if len(tars) == 1 else f"{tars[0].path.name} and the other tars"
        notes.append(
            f"{where}: names are split at the last dot, as the first dot would make samples of "
            "several images"
        )
    of_tars = [f"{tar.path.name}: {NO_END}" for tar in tars if not tar.is_ended]
    of_tars += [note for tar in tars for note in (*tar.notes, *_note_on_labels(tar))]
    if len(of_tars) > MAX_NOTES:
        more = len(of_tars) - MAX_NOTES + 1
        of_tars = [*of_tars[: MAX_NOTES - 1], f"{more} more notes on single tars"]
    return [printable(note) for note in (*notes, *of_tars)]


def _note_on_labels(tar: TarIndex) -> list[str]:
    """Return a sentence about the labels of a tar that belong to no image, if it has any."""
    alone = [
        sample.fields[name].name
        for sample in tar.without_image
        if not sample.image_fields()
        for name in sample.fields
        if name in (*LABEL_COLUMNS, *JSON_COLUMNS)
    ]
    if not alone:
        return []
    return [f"{len(alone)} labels in {tar.path.name} belong to no image, for example {alone[0]}"]


def _without_images(
    description: str, tars: Sequence[TarIndex], rule: SampleRule, left_out: Sequence[LeftOut]
) -> str:
    names = ", ".join(sorted({name for tar in tars for name in tar.field_names()})[:20])
    if rule.image_column is not None:
        return (
            f"no sample of {description} has a field {rule.image_column!r}; the fields are {names}."
        )
    reason = f" ({left_out[0].name}: {left_out[0].reason})" if left_out else ""
    return (
        f"no sample of {description} has an image that can be decoded{reason}; the fields are "
        f"{names or 'none'}. In a WebDataset tar, the files of an image have the same "
        "name up to the first dot, for example 0001.jpg and 0001.cls."
    )


__all__ = ["TarSource", "TarStream"]
