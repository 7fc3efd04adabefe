"""facebookresearch/dino: backbone files and whole checkpoints.

A whole checkpoint holds `student`, `teacher` (each with backbone and head) and `dino_loss`.
"""

from __future__ import annotations

import re

from ..infer_config import usual
from ..key_mapping import Names, prefixed
from ..weight_format import Draft, Source
from . import timm
from .timm import ENCODER

LICENSE_NOTE = "DINO's published weights are Apache-2.0; if these are, the result is too"
INTERPOLATION = (
    "at other image sizes, facebookresearch/dino scales positions by a factor (0.1 patches off); "
    "selfvit scales them to the size itself"
)

NETWORKS = ("", "student.")


def head_names(layers: str) -> Names:
    """Return the names of a projection head whose linear layers lie at 0, 2, 4, ... of `layers`."""
    return {
        **{f"{layers}.{2 * index}.*": f"layers.{index}.*" for index in range(8)},
        f"{layers}.*": "layers.0.*",  # of a single layer
        "last_layer.weight_g": "last_layer.magnitude",
        "last_layer.weight_v": "last_layer.direction",
        # what torch's newer weight normalization writes
        "last_layer.parametrizations.weight.original0": "last_layer.magnitude",
        "last_layer.parametrizations.weight.original1": "last_layer.direction",
    }


def read_objective(draft: Draft) -> None:
    """Read the head's geometry off its weights, and give the center its shape (K,).

    Raises:
        ValueError: if a tensor of the head is missing.
    """
    weights = draft.weights
    wanted = [
        f"{network}head.{name}"
        for network in NETWORKS
        for name in ("last_layer.direction", "last_layer.magnitude", "layers.0.weight")
    ]
    missing = [draft.called(name) for name in wanted if name not in weights]
    if missing:
        raise ValueError(f"missing: {', '.join(missing)}.")
    last = max(
        int(match[1]) for name in weights if (match := re.search(r"head\.layers\.(\d+)\.", name))
    )

    def sizes(name: str, dimension: int = 0) -> list[int]:
        """Sizes of the same tensor in both networks, where there is such a dimension."""
        found = [weights.get(f"{network}head.{name}") for network in NETWORKS]
        return [t.shape[dimension] for t in found if t is not None and t.dim() > dimension]

    magnitude = weights["student.head.last_layer.magnitude"]
    objective = {
        "num_prototypes": usual(sizes("last_layer.direction") + sizes("last_layer.magnitude")),
        "head_bottleneck_size": usual(
            sizes("last_layer.direction", 1)
            + sizes(f"layers.{last}.weight")
            + sizes(f"layers.{last}.bias")
        ),
        "num_head_layers": last + 1,
        "normalize_last_layer": bool((magnitude == 1).all()),
    }
    if last:
        objective["head_hidden_size"] = usual(sizes("layers.0.weight") + sizes("layers.0.bias"))
    draft.set("dino_config", objective, "weights; its schedules by convention")
    if "loss.center" in weights:
        weights["loss.center"] = weights["loss.center"].flatten().float()


def adapt_backbone(draft: Draft) -> None:
    """A headless encoder in timm's names: MAE's, if its positions are fixed sines and cosines."""
    if draft.file.config:  # DINO and MAE write none, timm does
        timm.adapt(draft)
    elif draft.fields.get("position_embedding_type") == "sincos":
        draft.kind = "facebookresearch/mae encoder (timm's names, sine-cosine positions)"
        draft.pooling = "mean"
        draft.license_note = (
            "MAE's published weights are CC BY-NC 4.0; if these are, the result is too"
        )
        draft.license_id = "cc-by-nc-4.0"
    else:
        draft.differences.append(INTERPOLATION)


BACKBONE = Source(
    name="facebookresearch/dino backbone (timm's names, no head)",
    names={
        theirs: ours
        for theirs, ours in prefixed(ENCODER, target="vit.").items()
        if "reg_token" not in theirs and ".ls" not in theirs
    },
    adapt=adapt_backbone,
    read_config=timm.read_config,
    positions=("class", "patches"),
    license_note=LICENSE_NOTE,
)

CHECKPOINT = Source(
    name="facebookresearch/dino checkpoint (student, teacher, heads, center)",
    names={
        **prefixed(ENCODER, "teacher.backbone.", "vit."),
        **prefixed(head_names("mlp"), "teacher.head.", "head."),
        **prefixed(ENCODER, "student.backbone.", "student.vit."),
        **prefixed(head_names("mlp"), "student.head.", "student.head."),
        "dino_loss.center": "loss.center",
    },
    architecture="SelfViTForDINO",
    needed=("loss.center",),
    adapt=read_objective,
    license_note=LICENSE_NOTE,
    difference=INTERPOLATION,
)

__all__ = ["BACKBONE", "CHECKPOINT", "head_names", "read_objective"]
