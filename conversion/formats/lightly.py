"""Lightly: `MaskedVisionTransformer`, students and teachers, and Lightning modules around them.

An encoder may be one of facebookresearch/dino, timm or torchvision. It may be used directly, or
inside a `MaskedVisionTransformer`, which calls it `vit` and adds a mask token. `MAEBackbone` has
torchvision's names; see `torchvision.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..key_mapping import KeyMapping, add_prefixes
from ..weight_format import Draft, WeightFormat
from . import timm, torchvision
from .dino import map_head, read_objective

MASK_TOKEN = "embeddings.mask_token"
LIBRARIES: dict[str, tuple[KeyMapping, WeightFormat]] = {
    "timm": (timm.ENCODER, timm.FORMAT),
    "torchvision": (torchvision.ENCODER, torchvision.FORMAT),
}

# Other parts of a Lightning module that holds a backbone.
AROUND_BACKBONE = {
    r"^(decoder|mask_token)(\.|$)": "Lightly's decoder; only the encoder is converted",
    r"^(projection_head|prediction_head|head|criterion)\.": "part of the objective",
}
OWN_CLASSIFIER = "the encoder's own classifier, which Lightly does not use"
UNUSED_HEADS = {r"^(student|teacher)_backbone\.(vit\.)?heads?\.": OWN_CLASSIFIER}
# In a new run the center starts at zero, too.
NEW_CENTER = {r"^loss\.center$": "the file has no center; it starts at zero, as in a new run"}


def _encoders() -> Iterator[tuple[str, str, KeyMapping, WeightFormat]]:
    """Yield (kind, prefix, key mapping, the library's format) of plain and masked encoders."""
    for library, (mapping, format) in LIBRARIES.items():
        yield f"{library} or facebookresearch/dino ViT", "", mapping, format
        masked = {**add_prefixes(mapping, "vit."), "mask_token": MASK_TOKEN}
        yield f"MaskedVisionTransformer of {library}", "vit.", masked, format


def _adapt_encoder(draft: Draft) -> None:
    draft.leave_out(r"(classifier|fc_norm)\.", OWN_CLASSIFIER)


def _formats() -> Iterator[WeightFormat]:
    for kind, prefix, mapping, library in _encoders():
        classifier = {
            prefix + theirs: ours
            for theirs, ours in library.key_mapping.items()
            if ours.startswith("classifier.")
        }
        masked = prefix == "vit."
        if masked:
            yield WeightFormat(
                name=f"Lightly {kind}",
                key_mapping={**add_prefixes(mapping, target="vit."), **classifier},
                required=(f"vit.{MASK_TOKEN}",),
                adapt=_adapt_encoder,
                position_layouts=library.position_layouts,
            )
        yield WeightFormat(
            name=f"Lightning module with a backbone: {kind}",
            key_mapping={
                **add_prefixes(mapping, "backbone.", "vit."),
                **add_prefixes(classifier, "backbone."),
            },
            extras=AROUND_BACKBONE,
            required=(f"vit.{MASK_TOKEN}",) if masked else (),
            adapt=_adapt_encoder,
            position_layouts=library.position_layouts,
        )
        yield WeightFormat(
            name=f"Lightly DINO module (student, teacher, heads): {kind}",
            key_mapping={
                **add_prefixes(mapping, "teacher_backbone.", "vit."),
                **add_prefixes(map_head("layers"), "teacher_head.", "head."),
                **add_prefixes(mapping, "student_backbone.", "student.vit."),
                **add_prefixes(map_head("layers"), "student_head.", "student.head."),
                "criterion.center": "loss.center",
                "criterion.center.center": "loss.center",
            },
            architecture="SelfViTForDINO",
            extras=UNUSED_HEADS,
            new=NEW_CENTER,
            adapt=read_objective,
            position_layouts=library.position_layouts,
        )


FORMATS = tuple(_formats())
