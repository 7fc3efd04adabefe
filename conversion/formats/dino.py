"""facebookresearch/dino: backbone files and full checkpoints.

A full checkpoint holds `student` and `teacher`, each with backbone and head, and `dino_loss`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..infer_config import most_common
from ..key_mapping import KeyMapping, add_prefixes
from ..weight_format import Draft, WeightFormat
from . import mae, timm
from .timm import ENCODER

LICENSE_NOTE = (
    "DINO's published weights are Apache-2.0; if the source is one of them, so is the result"
)
INTERPOLATION = (
    "at other image sizes, facebookresearch/dino interpolates positions by a scale factor (with an "
    "offset of 0.1 patches); selfvit interpolates them to the exact size"
)

NETWORKS = ("", "student.")


def map_head(layers: str) -> KeyMapping:
    """Return the key mapping of a projection head with linear layers 0, 2, 4, ... in `layers`."""
    return {
        **{f"{layers}.{2 * index}.*": f"layers.{index}.*" for index in range(8)},
        f"{layers}.*": "layers.0.*",  # a head with a single layer
        "last_layer.weight_g": "last_layer.magnitude",
        "last_layer.weight_v": "last_layer.direction",
        # Names of torch.nn.utils.parametrizations.weight_norm.
        "last_layer.parametrizations.weight.original0": "last_layer.magnitude",
        "last_layer.parametrizations.weight.original1": "last_layer.direction",
    }


def read_objective(draft: Draft) -> None:
    """Infer the size of the head from its weights, and reshape the center to (K,).

    Raises:
        ValueError: If a tensor of the head is missing.
    """
    weights = draft.weights
    draft.check_weights(
        f"{network}head.{name}"
        for network in NETWORKS
        for name in ("last_layer.direction", "last_layer.magnitude", "layers.0.weight")
    )
    last = max(
        int(match[1]) for name in weights if (match := re.search(r"head\.layers\.(\d+)\.", name))
    )

    def sizes(name: str, dimension: int = 0) -> list[int]:
        """Return the sizes of a tensor of the head in both networks, if it has the dimension."""
        found = [weights.get(f"{network}head.{name}") for network in NETWORKS]
        return [t.shape[dimension] for t in found if t is not None and t.dim() > dimension]

    magnitude = weights["student.head.last_layer.magnitude"]
    objective = {
        "num_prototypes": most_common(
            sizes("last_layer.direction") + sizes("last_layer.magnitude")
        ),
        "head_bottleneck_size": most_common(
            sizes("last_layer.direction", 1)
            + sizes(f"layers.{last}.weight")
            + sizes(f"layers.{last}.bias")
        ),
        "num_head_layers": last + 1,
        "normalize_last_layer": bool((magnitude == 1).all()),
    }
    if last:
        hidden = sizes("layers.0.weight") + sizes("layers.0.bias")
        objective["head_hidden_size"] = most_common(hidden)
    draft.set_field("dino_config", objective, "weights; schedules by convention")
    if "loss.center" in weights:
        weights["loss.center"] = weights["loss.center"].flatten().float()


def adapt_backbone(draft: Draft) -> None:
    """Distinguish the encoders without a head that share timm's names.

    A config.json means timm, fixed sine-cosine positions mean MAE, anything else means DINO.
    """
    if draft.file.config:
        timm.adapt(draft)
    elif draft.fields.get("position_embedding_type") == "sincos":
        draft.kind = "facebookresearch/mae encoder (timm's names, sine-cosine positions)"
        draft.pooling = "mean"
        draft.license_note, draft.license_id = mae.LICENSE_NOTE, mae.LICENSE_ID
    else:
        draft.differences.append(INTERPOLATION)
        if draft.fields["num_channels"] == 3:
            draft.add_guess(
                "image_mean, image_std",
                "the values of ImageNet, as DINO's models have; encoders of timm have the same "
                "names and often 0.5. Give --statistics half, or --image-mean and --image-std",
            )


def is_teacher(names: Iterable[str]) -> bool:
    """Return whether a checkpoint has a teacher, but not the student and heads of DINO."""
    names = list(names)
    has_student = any(name.startswith("student.") for name in names)
    return not has_student or any(".dino_head." in name for name in names)


BACKBONE = WeightFormat(
    name="facebookresearch/dino backbone (timm's names, no head)",
    key_mapping=add_prefixes(timm.PLAIN_ENCODER, target="vit."),
    adapt=adapt_backbone,
    read_config=timm.read_config,
    position_layouts=("class", "patches"),
    license_note=LICENSE_NOTE,
)

CHECKPOINT = WeightFormat(
    name="facebookresearch/dino checkpoint (student, teacher, heads, center)",
    key_mapping={
        **add_prefixes(ENCODER, "teacher.backbone.", "vit."),
        **add_prefixes(map_head("mlp"), "teacher.head.", "head."),
        **add_prefixes(ENCODER, "student.backbone.", "student.vit."),
        **add_prefixes(map_head("mlp"), "student.head.", "student.head."),
        "dino_loss.center": "loss.center",
    },
    architecture="SelfViTForDINO",
    required=("loss.center",),
    adapt=read_objective,
    license_note=LICENSE_NOTE,
    difference=INTERPOLATION,
    applies=lambda names: not is_teacher(names),
)

__all__ = ["BACKBONE", "CHECKPOINT", "is_teacher", "map_head", "read_objective"]
