"""Files of tars, grouped into samples as in WebDataset.

A sample consists of the files whose names are equal up to the first dot of the base name; the rest
is the name of the field: `0001.jpg` and `0001.cls`, or `0001.jpg` and `0001.mask.png`. Where that
would make samples of many images (`img.0000.jpg`, `img.0001.jpg`), names are split at the last dot.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..columns import IMAGE_COLUMNS
from ..inventory import LeftOut
from .image_formats import image_extensions
from .tar_members import Member, TarContents

SURVEYED_TARS = 8  # tars that the fields are known from before any image is read


@dataclass
class TarSample:
    """Files of one sample.

    Args:
        key: Name that the files have in common.
        fields: Files by field name, for example "jpg" and "cls".
    """

    key: str
    fields: dict[str, Member] = field(default_factory=dict)

    def image_fields(self) -> list[str]:
        """Return the fields that are images which can be decoded."""
        return [name for name in self.fields if extension_of_field(name) in image_extensions()]


@dataclass
class TarIndex:
    """Samples of a tar.

    Args:
        path: Path of the tar.
        taken: Samples with an image that is taken, and the image.
        without_image: Samples without an image.
        left_out: Images that are not taken.
        notes: Sentences about the tar.
        is_ended: Whether the tar has the blocks of zeros that mark its end.
    """

    path: Path
    taken: list[tuple[TarSample, Member]] = field(default_factory=list)
    without_image: list[TarSample] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    is_ended: bool = True

    def field_names(self) -> set[str]:
        """Return the names of all fields."""
        samples = [*(sample for sample, _ in self.taken), *self.without_image]
        return {name for sample in samples for name in sample.fields}


@dataclass(frozen=True)
class SampleRule:
    """How the files of all tars of a source are grouped, and which of their images are taken.

    Args:
        splits_at_last_dot: Whether names are split at the last dot.
        ranks: Rank of each image field; the lowest one of a sample is taken.
        image_column: Field that is asked for, in lower case; None for the lowest rank.
    """

    splits_at_last_dot: bool
    ranks: Mapping[str, int]
    image_column: str | None = None

    def index(self, contents: TarContents) -> TarIndex:
        """Return the samples of a tar, and the images that are not taken.

        Args:
            contents: Members of the tar.
        """
        index = TarIndex(
            contents.path,
            left_out=list(contents.left_out),
            notes=list(contents.notes),
            is_ended=contents.is_ended,
        )
        samples, replaced = _grouped(contents.members, last_dot=self.splits_at_last_dot)
        for sample in samples:
            name = self._choose(sample)
            if name is None:
                index.without_image.append(sample)
            else:
                index.taken.append((sample, sample.fields[name]))
            index.left_out += [
                LeftOut(
                    sample.fields[other].name,
                    f"other image of its sample; --image-column {other} takes it",
                )
                for other in sample.image_fields()
                if other != name
            ]
        self._account_for_replaced(index, replaced)
        return index

    def _choose(self, sample: TarSample) -> str | None:
        if self.image_column is not None:
            return self.image_column if self.image_column in sample.fields else None
        names, ranks = sample.image_fields(), self.ranks
        return min(names, key=lambda name: ranks.get(name, len(ranks)), default=None)

    @staticmethod
    def _account_for_replaced(index: TarIndex, replaced: list[tuple[Member, Member]]) -> None:
        """List the images whose field another file has, and note the other files."""
        others = []
        for member, other in replaced:
            if extension_of_field(member.name + member.suffix) not in image_extensions():
                others.append(f"{member.name} (read: {other.name})")
            elif member.name == other.name:
                reason = "a later file of the tar has the same name"
                index.left_out.append(LeftOut(member.name, reason))
            else:
                reason = f"{other.name} is the same field of its sample"
                index.left_out.append(LeftOut(member.name, reason))
        if others:
            index.notes.append(
                f"{len(others)} files of {index.path.name} are not read, as other files are the "
                f"same field of their sample, for example {others[0]}"
            )


def choose_rule(surveyed: Sequence[TarContents], image_column: str | None) -> SampleRule:
    """Return how to group the files of tars, from the members of some of them.

    Args:
        surveyed: Members of tars, for example those of `survey_positions`.
        image_column: Field of the images; by default, the most frequent field of each sample.
    """
    wanted = None if image_column is None else image_column.lower()
    samples = [sample for tar in surveyed for sample in _grouped(tar.members, last_dot=False)[0]]
    is_field = any(wanted in sample.fields for sample in samples)
    last_dot = not is_field and _are_mostly_other_images(samples)
    if last_dot:
        samples = [sample for tar in surveyed for sample in _grouped(tar.members, last_dot=True)[0]]
    return SampleRule(last_dot, _ranks_of_fields(samples), wanted)


def survey_positions(num_tars: int) -> list[int]:
    """Return the positions of the tars to look into first: all of a few, or some of many."""
    number = min(num_tars, SURVEYED_TARS)
    return [place * (num_tars - 1) // max(1, number - 1) for place in range(number)]


def _grouped(
    members: Sequence[Member], *, last_dot: bool
) -> tuple[list[TarSample], list[tuple[Member, Member]]]:
    """Group members into samples; equal keys that are not adjacent belong together, too.

    Also return the members whose field another file has, with that file: of two files of one name,
    the last one counts, as tar itself unpacks it; of two names (0001.jpg and 0001.JPG), the first.
    """
    samples: dict[str, TarSample] = {}
    replaced: list[tuple[Member, Member]] = []
    for member in members:
        folder, name = posixpath.split(member.name + member.suffix)
        at = name.rfind(".") if last_dot else name.find(".")
        at = len(name) if at < 1 else at
        key = posixpath.join(folder, name[:at])
        fields = samples.setdefault(key, TarSample(key)).fields
        field_name = name[at + 1 :].lower()
        first = fields.get(field_name)
        if first is not None and first.name != member.name:
            replaced.append((member, first))
            continue
        if first is not None:
            replaced.append((first, member))
        fields[field_name] = member
    return list(samples.values()), replaced


def _are_mostly_other_images(samples: Sequence[TarSample]) -> bool:
    """Return whether most images are further ones of a sample, in fields that are no real ones.

    A field with a dot is none if few samples have it, or if it begins with a number and no file of
    the sample has just an extension (v1.0001.jpg and v1.0002.jpg, without v1.json).
    """
    with_images = [(sample, names) for sample in samples if (names := sample.image_fields())]
    uses = Counter(name for _, names in with_images for name in names)
    num_loose = 0
    for sample, names in with_images:
        is_numbered = all("." in name for name in sample.fields)
        num_loose += len(names) > 1 and sum(
            "." in name
            and (
                uses[name] == 1
                or uses[name] * 2 < len(with_images)
                or (is_numbered and name.partition(".")[0].isdecimal())
            )
            for name in names
        )
    return num_loose * 2 > uses.total()


def _ranks_of_fields(samples: Sequence[TarSample]) -> dict[str, int]:
    uses = Counter(name for sample in samples for name in sample.image_fields())
    usual = {name: rank for rank, name in enumerate(IMAGE_COLUMNS)}
    names = sorted(
        uses, key=lambda name: (-uses[name], "." in name, usual.get(name, len(usual)), name)
    )
    return {name: rank for rank, name in enumerate(names)}


def extension_of_field(name: str) -> str:
    """Return the extension that a field name ends with, with the dot: ".png" of "mask.png"."""
    return f".{name.rpartition('.')[2].lower()}"


__all__ = [
    "SampleRule",
    "TarIndex",
    "TarSample",
    "choose_rule",
    "extension_of_field",
    "survey_positions",
]
