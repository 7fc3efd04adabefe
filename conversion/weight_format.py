"""What a source says of itself, and the model that is drafted from it."""

# D hidden · N patches · R registers

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
)

from .key_mapping import Names, source_names
from .read_weights import SourceFile

BICUBIC, BILINEAR = 3, 2  # of PIL.Image.Resampling, as preprocessor_config.json stores them

ENCODERS = ("vit.", "student.vit.")  # where encoders lie in the models that have one or two


@dataclass(frozen=True)
class Preprocessing:
    """How images become pixel values.

    Args:
        mean: per channel, of values in [0, 1].
        std: per channel, of values in [0, 1].
        resize: "shortest_edge" and a crop of the center, or "square".
        resample: `BICUBIC` or `BILINEAR`.
        crop_ratio: shorter side before the crop, as a multiple of the crop's.
        origin: why these.
    """

    mean: Sequence[float] = tuple(IMAGENET_DEFAULT_MEAN)
    std: Sequence[float] = tuple(IMAGENET_DEFAULT_STD)
    resize: Literal["shortest_edge", "square"] = "shortest_edge"
    resample: int = BICUBIC
    crop_ratio: float = 256 / 224
    origin: str = "convention: ImageNet statistics, as the paper's evaluation"


STATISTICS = {
    "imagenet": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    "half": (IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD),  # 0.5 everywhere
}


@dataclass(frozen=True)
class Options:
    """What the caller decides; None leaves it to the source or the convention.

    Args:
        num_heads: attention heads of the encoder.
        decoder_num_heads: attention heads of MAE's decoder.
        image_size: pixels, (height, width), whose positions the source stores.
        pooling: as for `SelfViTConfig`.
        norm_pix_loss: whether MAE's decoder predicts normalized pixels.
        statistics: "imagenet" or "half" (0.5), of the preprocessing.
        dtype: "float32", "float16" or "bfloat16" of the result.
    """

    num_heads: int | None = None
    decoder_num_heads: int | None = None
    image_size: tuple[int, int] | None = None
    pooling: str | None = None
    norm_pix_loss: bool | None = None
    statistics: str | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class Source:
    """A kind of source: its names, and what else is known of it.

    Args:
        name: as printed.
        names: the source's names to those of the pretraining model: `vit.*`, `student.vit.*`, ...
        architecture: class of the result.
        extras: patterns of names that are left out, and why.
        needed: templates of our names that the source always has, beside an encoder's.
        new: patterns of our names that the source may lack, and why; they are initialized.
        adapt: what the table cannot say: changes the draft.
        read_config: fields from the source's `config.json`.
        pooling: of the result.
        layer_norm_eps: where no config.json says otherwise.
        positions: what stored positions cover: "class" (class token and patches), "prefix"
            (registers too), "patches".
        preprocessing: where none is stored.
        license_note: what is known of it, or "".
        license_id: as the Hub writes it, or None.
        difference: what the result does otherwise than the source, or "".
    """

    name: str
    names: Names
    architecture: str = "SelfViTModel"
    extras: Mapping[str, str] = field(default_factory=dict)
    needed: tuple[str, ...] = ()
    new: Mapping[str, str] = field(default_factory=dict)
    adapt: Callable[[Draft], None] | None = None
    read_config: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    pooling: str = "cls"
    layer_norm_eps: float = 1e-6
    positions: tuple[str, ...] = ("class",)
    preprocessing: Preprocessing = Preprocessing()
    license_note: str = ""
    license_id: str | None = None
    difference: str = ""

    def reason_to_leave_out(self, name: str) -> str | None:
        """Return why a tensor is a known extra, or None if it is none."""
        return next((why for pattern, why in self.extras.items() if re.search(pattern, name)), None)


@dataclass
class Draft:
    """The result in the making.

    Args:
        file: what was read.
        source: its kind.
        options: what the caller decided.
        weights: tensors by our names.
        origins: the source's names by ours.
        kind: the kind as printed; `source.name` unless `adapt` knows better.
        architecture: class of the result.
        pooling: of the result.
        preprocessing: of the result, where the source stores none.
        license_note: see `Source`.
        license_id: see `Source`.
        fields: of the configuration.
        where_from: origin of each field: "weights", "config.json", "option", "convention".
        left_out: source's names and why.
        new: our names and why.
        differences: what the result does otherwise than the source.
    """

    file: SourceFile
    source: Source
    options: Options
    weights: dict[str, Tensor]
    origins: dict[str, str]
    kind: str = ""
    architecture: str = ""
    pooling: str = ""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    license_note: str = ""
    license_id: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    where_from: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    new: dict[str, str] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)

    def set(self, name: str, value: Any, origin: str) -> None:
        """Set a field of the configuration, and say where it is from."""
        self.fields[name], self.where_from[name] = value, origin

    def encoders(self) -> list[str]:
        """Return the prefixes of the encoders that there are."""
        return [
            prefix for prefix in ENCODERS if any(name.startswith(prefix) for name in self.weights)
        ]

    def leave_out(self, pattern: str, why: str) -> None:
        """Take tensors out again, by a pattern of our names, and note why."""
        for name in [name for name in self.weights if re.match(pattern, name)]:
            del self.weights[name]
            self.left_out[self.origins[name]] = why

    def called(self, name: str) -> str:
        """Return what the source calls, or would call, one of our tensors."""
        if name in self.origins:
            return self.origins[name]
        found = source_names(name, self.source.names, self.file.tensors)
        return " or ".join(found) or name


__all__ = [
    "BICUBIC",
    "BILINEAR",
    "ENCODERS",
    "STATISTICS",
    "Draft",
    "Options",
    "Preprocessing",
    "Source",
]
