"""Expected mean and std of the preprocessing, by model family."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from ...sharing.provenance import CARD


@dataclass(frozen=True)
class Statistics:
    """Mean and std per channel, for values in [0, 1]."""

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.name} (mean {list(self.mean)}, std {list(self.std)})"


@dataclass(frozen=True)
class Expectation:
    """Expected preprocessing statistics of a checkpoint.

    Args:
        statistics: Acceptable statistics; one of them is correct.
        family: Model family.
        evidence: Evidence for the family, such as "model_type is 'dinov2'".
    """

    statistics: tuple[Statistics, ...]
    family: str
    evidence: str


IMAGENET = Statistics("ImageNet's", tuple(IMAGENET_DEFAULT_MEAN), tuple(IMAGENET_DEFAULT_STD))
HALF = Statistics("0.5", tuple(IMAGENET_STANDARD_MEAN), tuple(IMAGENET_STANDARD_STD))
CLIP = Statistics("CLIP's", tuple(OPENAI_CLIP_MEAN), tuple(OPENAI_CLIP_STD))
# facebook/dinov3-*-sat493m, trained on satellite images.
SATELLITE = Statistics("DINOv3's for satellite", (0.430, 0.411, 0.296), (0.213, 0.156, 0.143))

# By model_type: family, and the statistics of the authors' checkpoints on the Hub.
BY_TYPE = {
    "dinov2": ("DINOv2", (IMAGENET,)),
    "dinov2_with_registers": ("DINOv2", (IMAGENET,)),
    "dinov3_vit": ("DINOv3", (IMAGENET, SATELLITE)),
    "vit_mae": ("MAE", (IMAGENET,)),
    "vit_msn": ("MSN", (IMAGENET,)),
    "clip": ("CLIP", (CLIP,)),
    "siglip": ("SigLIP", (HALF,)),
}

# Types that several families share. The family is identified by names, as whole words.
SHARED_TYPES = ("vit", "timm", "timm_wrapper")
BY_NAME = (
    (r"dino|ibot|dinov2", "DINO", (IMAGENET,)),
    (r"mae", "MAE", (IMAGENET,)),
    (r"msn", "MSN", (IMAGENET,)),
    (r"augreg|google/vit|google--vit", "Google's ViT", (HALF,)),
)


def expected_statistics(folder: Path, config: dict[str, Any]) -> Expectation | None:
    """Return the expected statistics of a checkpoint, or None if its family is unknown.

    Args:
        folder: Folder of the checkpoint.
        config: Content of its config.json.
    """
    model_type = config.get("model_type", "timm")
    if model_type in BY_TYPE:
        family, statistics = BY_TYPE[model_type]
        return Expectation(statistics, family, f"model_type is {model_type!r}")
    if model_type not in SHARED_TYPES:
        return None
    for where, name in _names(folder, config):
        for pattern, family, statistics in BY_NAME:
            if re.search(rf"(?<![a-z0-9])({pattern})(?![a-z0-9])", name.lower()):
                return Expectation(statistics, family, f"{where} is {name!r}")
    return None


def are_close(found: Sequence[float], expected: Sequence[float]) -> bool:
    """Return whether two statistics are equal up to rounding."""
    return len(found) == len(expected) and all(
        abs(one - other) < 0.006 for one, other in zip(found, expected, strict=True)
    )


def _names(folder: Path, config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the location of each name that may identify the family, and the name."""
    for key in ("_name_or_path", "architecture"):
        yield f"{key} in config.json", str(config.get(key) or "")
    for key in ("tag", "hf_hub_id", "architecture"):
        yield f"{key} of pretrained_cfg", str(_part(config, "pretrained_cfg").get(key) or "")
    card = _card_of(folder)
    bases = card.base_model or []
    for base in [bases] if isinstance(bases, str) else bases:
        yield "base_model of the model card", str(base)
    for tag in card.tags or []:
        yield "a tag of the model card", str(tag)
    absolute = folder.absolute()
    yield "the folder name", absolute.name
    for part in absolute.parts:
        if part.startswith("models--"):
            yield "the folder in the Hub cache", part


def _part(config: dict[str, Any], name: str) -> dict[str, Any]:
    part = config.get(name)
    return part if isinstance(part, dict) else {}


def _card_of(folder: Path) -> ModelCardData:
    if not (folder / CARD).is_file():
        return ModelCardData()
    try:
        return ModelCard.load(folder / CARD, ignore_metadata_errors=True).data
    except (ValueError, yaml.YAMLError):
        return ModelCardData()  # an unreadable card does not identify the family


__all__ = ["Expectation", "Statistics", "are_close", "expected_statistics"]
