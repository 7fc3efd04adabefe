"""Weight formats, and the draft of a checkpoint that is converted from one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL.Image import Resampling
from torch import Tensor
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
)

from .key_mapping import KeyMapping, find_source_names
from .read_weights import SourceFile

BICUBIC, BILINEAR = int(Resampling.BICUBIC), int(Resampling.BILINEAR)

ENCODER_PREFIXES = ("vit.", "student.vit.")  # encoders of the models that have one or two
# Number of heads by hidden size, where a head does not have 64 channels.
NUM_HEADS_BY_WIDTH = {
    1152: 16,  # SoViT-400m, arXiv 2305.13035
    1280: 16,  # ViT-H, arXiv 2010.11929, Table 1
    1408: 16,  # ViT-g, arXiv 2106.04560, Table 2
    1664: 16,  # ViT-G, Table 2
}


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of images to pixel values.

    Args:
        mean: Mean per channel, for values in [0, 1].
        std: Std per channel, for values in [0, 1].
        resize: "shortest_edge" (followed by a center crop) or "square".
        resample: `BICUBIC` or `BILINEAR`.
        crop_ratio: Length of the shorter side before the crop, as a multiple of the crop size.
        origin: Source of these values, in words.
        guess: Assumption about size and interpolation, and how to correct it, or "".
    """

    mean: Sequence[float] = tuple(IMAGENET_DEFAULT_MEAN)
    std: Sequence[float] = tuple(IMAGENET_DEFAULT_STD)
    resize: Literal["shortest_edge", "square"] = "shortest_edge"
    resample: int = BICUBIC
    crop_ratio: float = 256 / 224
    origin: str = "convention: ImageNet mean and std, as in the paper's evaluation"
    guess: str = ""


STATISTICS = {
    "imagenet": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    "half": (IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD),  # 0.5 for every channel
}


@dataclass(frozen=True)
class Options:
    """Options of a conversion. None means: use the value of the source or the convention.

    Args:
        num_heads: Number of attention heads of the encoder.
        decoder_num_heads: Number of attention heads of the MAE decoder.
        image_size: Image size in pixels, (height, width), of the stored position embeddings.
        pooling: Pooling of the embedding, as for `SelfViTConfig`.
        norm_pix_loss: Whether the MAE decoder predicts normalized pixels.
        statistics: Mean and std of the preprocessing: "imagenet" or "half" (0.5).
        image_mean: Mean per channel, for values in [0, 1].
        image_std: Std per channel, for values in [0, 1].
        dtype: Data type of the result: "float32", "float16" or "bfloat16".
    """

    num_heads: int | None = None
    decoder_num_heads: int | None = None
    image_size: tuple[int, int] | None = None
    pooling: str | None = None
    norm_pix_loss: bool | None = None
    statistics: str | None = None
    image_mean: tuple[float, ...] | None = None
    image_std: tuple[float, ...] | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class WeightFormat:
    """A format that weights are published in: its tensor names and its conventions.

    Args:
        name: Name of the format, as printed.
        key_mapping: Mapping from the source's tensor names to those of the pretraining model
            (`vit.*`, `student.vit.*`, ...).
        architecture: Class name of the converted model.
        extras: Patterns of source tensors that are left out, with the reason.
        required: Names of target tensors that the source must provide, in addition to an encoder.
        new: Patterns of target tensors that the source may lack, with the reason. They are
            initialized.
        adapt: Function that changes the draft where the key mapping is not enough.
        read_config: Function that returns configuration fields from the source's `config.json`.
        pooling: Pooling of the converted model.
        layer_norm_eps: LayerNorm epsilon if there is no config.json.
        position_layouts: Tokens that the stored position embeddings may cover: "class" (class token
            and patches), "prefix" (class token, registers and patches) or "patches".
        preprocessing: Preprocessing if the source stores none.
        rotary: Whether patches have rotary positions, which no tensor reveals.
        separate_biases: Whether query, key and value may have a bias independently of each other.
        num_heads_by_width: Number of heads by hidden size, where a head does not have 64 channels.
        license_note: Note on the license of published weights, or "".
        license_id: License identifier of the Hub, or None.
        license_name: Name of the license if `license_id` is "other".
        license_link: Link to the text of the license if `license_id` is "other".
        difference: Difference in behavior between the source and the converted model, or "".
        usual_image_size: Image size of all published weights, used if it fits the positions; None
            if there are several.
        applies: Function of the tensor names that returns whether they can have this format. None:
            always.
    """

    name: str
    key_mapping: KeyMapping
    architecture: str = "SelfViTModel"
    extras: Mapping[str, str] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    new: Mapping[str, str] = field(default_factory=dict)
    adapt: Callable[[Draft], None] | None = None
    read_config: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    pooling: str = "cls"
    layer_norm_eps: float = 1e-6
    position_layouts: tuple[str, ...] = ("class",)
    preprocessing: Preprocessing = Preprocessing()
    rotary: bool = False
    separate_biases: bool = False
    num_heads_by_width: Mapping[int, int] = field(default_factory=lambda: NUM_HEADS_BY_WIDTH)
    license_note: str = ""
    license_id: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    difference: str = ""
    usual_image_size: int | None = None
    applies: Callable[[Iterable[str]], bool] | None = None

    def reason_to_leave_out(self, name: str) -> str | None:
        """Return the reason to leave out a source tensor, or None if it is to be converted."""
        return next((why for pattern, why in self.extras.items() if re.search(pattern, name)), None)


@dataclass
class Draft:
    """Draft of a converted checkpoint, completed step by step.

    Args:
        file: Source that was read.
        format: Detected weight format.
        options: Options of the conversion.
        weights: Tensors by target name.
        source_names: Source name of each tensor, by target name.
        kind: Format as printed; `format.name`, unless `adapt` refines it.
        architecture: Class name of the converted model.
        pooling: Pooling of the converted model.
        preprocessing: Preprocessing if the source stores none.
        license_note: See `WeightFormat`.
        license_id: See `WeightFormat`.
        fields: Fields of the configuration.
        field_origins: Origin of each field: "weights", "config.json", "option" or "convention".
        left_out: Source tensors that are left out, with the reason.
        new: Target tensors that are initialized, with the reason.
        differences: Differences in behavior between the source and the converted model.
        guesses: Assumption about a field, and the option that corrects it, by field.
        pooling_origin: Origin of `pooling`.
    """

    file: SourceFile
    format: WeightFormat
    options: Options
    weights: dict[str, Tensor]
    source_names: dict[str, str]
    kind: str = ""
    architecture: str = ""
    pooling: str = ""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    license_note: str = ""
    license_id: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    field_origins: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    new: dict[str, str] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)
    guesses: dict[str, str] = field(default_factory=dict)
    pooling_origin: str = "convention of the format"

    def add_guess(self, name: str, text: str) -> None:
        """Record what was assumed about a field, and how to correct it; the first one stays."""
        self.guesses.setdefault(name, text)

    def set_field(self, name: str, value: Any, origin: str) -> None:
        """Set a field of the configuration and record its origin."""
        self.fields[name], self.field_origins[name] = value, origin

    def encoder_prefixes(self) -> list[str]:
        """Return the prefixes of the encoders that the draft has."""
        return [prefix for prefix in ENCODER_PREFIXES if self.has_weights(prefix)]

    def has_weights(self, prefix: str) -> bool:
        """Return whether the target name of any tensor starts with `prefix`."""
        return any(name.startswith(prefix) for name in self.weights)

    def check_weights(self, required: Iterable[str]) -> None:
        """Check that the draft has the required tensors, given by their target names."""
        missing = [self.source_name(name) for name in required if name not in self.weights]
        if missing:
            raise ValueError(f"missing tensors: {', '.join(missing)}.")

    def leave_out(self, pattern: str, reason: str) -> None:
        """Remove the tensors whose target names match `pattern`, and record the reason."""
        for name in [name for name in self.weights if re.match(pattern, name)]:
            del self.weights[name]
            self.left_out[self.source_names[name]] = reason

    def source_name(self, target: str) -> str:
        """Return the name that a target tensor has, or would have, in the source."""
        if target in self.source_names:
            return self.source_names[target]
        found = find_source_names(target, self.format.key_mapping, self.file.tensors)
        return " or ".join(found) or target


__all__ = [
    "BICUBIC",
    "BILINEAR",
    "ENCODER_PREFIXES",
    "STATISTICS",
    "Draft",
    "Options",
    "Preprocessing",
    "WeightFormat",
]
