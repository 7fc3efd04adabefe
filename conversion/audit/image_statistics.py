"""Which mean and standard deviation a model's images need, and how that is known."""

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


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation per channel, of values in [0, 1]."""

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.name} (mean {list(self.mean)}, std {list(self.std)})"


@dataclass(frozen=True)
class Expectation:
    """What a checkpoint's images need.

    Args:
        statistics: one of them is right.
        family: of models.
        evidence: where the family is known from, as part of a sentence.
    """

    statistics: tuple[Statistics, ...]
    family: str
    evidence: str


IMAGENET = Statistics("ImageNet's", tuple(IMAGENET_DEFAULT_MEAN), tuple(IMAGENET_DEFAULT_STD))
HALF = Statistics("0.5", tuple(IMAGENET_STANDARD_MEAN), tuple(IMAGENET_STANDARD_STD))
CLIP = Statistics("CLIP's", tuple(OPENAI_CLIP_MEAN), tuple(OPENAI_CLIP_STD))
# facebook/dinov3-*-sat493m: satellite images
SATELLITE = Statistics("DINOv3's for satellite", (0.430, 0.411, 0.296), (0.213, 0.156, 0.143))

# By model_type: what the authors' checkpoints on the Hub store.
BY_TYPE = {
    "dinov2": ("DINOv2", (IMAGENET,)),
    "dinov2_with_registers": ("DINOv2", (IMAGENET,)),
    "dinov3_vit": ("DINOv3", (IMAGENET, SATELLITE)),
    "vit_mae": ("MAE", (IMAGENET,)),
    "vit_msn": ("MSN", (IMAGENET,)),
    "clip": ("CLIP", (CLIP,)),
    "siglip": ("SigLIP", (HALF,)),
}

# Types that weights of several families are stored as: the names tell, whole words only.
SHARED_TYPES = ("vit", "timm", "timm_wrapper")
BY_NAME = (
    (r"dino|ibot|dinov2", "DINO", (IMAGENET,)),
    (r"mae", "MAE", (IMAGENET,)),
    (r"msn", "MSN", (IMAGENET,)),
    (r"augreg|google/vit|google--vit", "Google's ViT", (HALF,)),
)


def expected_statistics(folder: Path, config: dict[str, Any]) -> Expectation | None:
    """Return what the images of a checkpoint need; None if nothing tells its family.

    Args:
        folder: of the checkpoint.
        config: its config.json.
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
    """Whether two statistics are the same but for rounding."""
    return len(found) == len(expected) and all(
        abs(one - other) < 0.006 for one, other in zip(found, expected, strict=True)
    )


def _names(folder: Path, config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Give where a name stands, and the name."""
    for key in ("_name_or_path", "architecture"):
        yield f"{key} in config.json", str(config.get(key) or "")
    for key in ("tag", "hf_hub_id", "architecture"):
        yield f"{key} of pretrained_cfg", str(config.get("pretrained_cfg", {}).get(key) or "")
    card = _card_of(folder)
    bases = card.base_model or []
    for base in [bases] if isinstance(bases, str) else bases:
        yield "base_model of the model card", str(base)
    for tag in card.tags or []:
        yield "a tag of the model card", str(tag)
    absolute = folder.absolute()
    yield "the folder's name", absolute.name
    for part in absolute.parts:
        if part.startswith("models--"):  # the cache of the Hub
            yield "the folder in the Hub's cache", part


def _card_of(folder: Path) -> ModelCardData:
    if not (folder / "README.md").is_file():
        return ModelCardData()
    try:
        return ModelCard.load(folder / "README.md", ignore_metadata_errors=True).data
    except (ValueError, yaml.YAMLError):
        return ModelCardData()  # a broken card tells nothing


__all__ = ["Expectation", "Statistics", "are_close", "expected_statistics"]
