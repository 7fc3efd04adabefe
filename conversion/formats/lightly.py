"""Lightly: `MaskedVisionTransformer`s, students and teachers, and Lightning modules around them.

An encoder may be facebookresearch/dino's, timm's or torchvision's, each by itself, or in one of
Lightly's `MaskedVisionTransformer`s, which call it `vit` and add a mask token. `MAEBackbone` has
torchvision's names; see `torchvision.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..key_mapping import Names, prefixed
from ..weight_format import Draft, Source
from . import timm, torchvision
from .dino import head_names, read_objective

MASK_TOKEN = "embeddings.mask_token"
LIBRARIES: dict[str, tuple[Names, Source]] = {
    "timm": (timm.ENCODER, timm.SOURCE),
    "torchvision": (torchvision.ENCODER, torchvision.SOURCE),
}

# What a Lightning module around a backbone holds besides.
AROUND_BACKBONE = {
    r"^(decoder|mask_token)(\.|$)": "Lightly's decoder, of which only the encoder is taken",
    r"^(projection_head|prediction_head|head|criterion)\.": "of the objective, not the encoder",
}
UNUSED_HEADS = {
    r"^(student|teacher)_backbone\.(vit\.)?heads?\.": "an encoder's own classifier, which Lightly "
    "does not use"
}
# Without one of its own, the loss starts at zero, as a run does.
NEW_CENTER = {r"^loss\.center$": "the file has no center; it starts at zero, as a run does"}


def _encoders() -> Iterator[tuple[str, str, Names, Source]]:
    """Yield (kind, prefix, names, library's source), plain encoders and masked ones."""
    for library, (names, source) in LIBRARIES.items():
        yield f"{library} or facebookresearch/dino ViT", "", names, source
        masked = {**prefixed(names, "vit."), "mask_token": MASK_TOKEN}
        yield f"MaskedVisionTransformer of {library}", "vit.", masked, source


def _adapt_encoder(draft: Draft) -> None:
    heads = "the encoder's own classifier, which Lightly does not use"
    draft.leave_out(r"(classifier|fc_norm)\.", heads)


def _sources() -> Iterator[Source]:
    for kind, prefix, names, library in _encoders():
        head = {
            prefix + theirs: ours
            for theirs, ours in library.names.items()
            if ours.startswith("classifier.")
        }
        masked = prefix == "vit."
        if masked:
            yield Source(
                name=f"Lightly {kind}",
                names={**prefixed(names, target="vit."), **head},
                needed=(f"vit.{MASK_TOKEN}",),
                adapt=_adapt_encoder,
                positions=library.positions,
                preprocessing=torchvision.Preprocessing(),
            )
        yield Source(
            name=f"Lightning module with a backbone: {kind}",
            names={**prefixed(names, "backbone.", "vit."), **prefixed(head, "backbone.")},
            extras=AROUND_BACKBONE,
            needed=(f"vit.{MASK_TOKEN}",) if masked else (),
            adapt=_adapt_encoder,
            positions=library.positions,
        )
        yield Source(
            name=f"Lightly DINO module (student, teacher, heads): {kind}",
            names={
                **prefixed(names, "teacher_backbone.", "vit."),
                **prefixed(head_names("layers"), "teacher_head.", "head."),
                **prefixed(names, "student_backbone.", "student.vit."),
                **prefixed(head_names("layers"), "student_head.", "student.head."),
                "criterion.center": "loss.center",
                "criterion.center.center": "loss.center",
            },
            architecture="SelfViTForDINO",
            extras=UNUSED_HEADS,
            new=NEW_CENTER,
            adapt=read_objective,
            positions=library.positions,
        )


SOURCES = tuple(_sources())
