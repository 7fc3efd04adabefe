"""facebookresearch/dinov2: released backbones and checkpoints of its training.

A released file holds the backbone with timm's names and a mask token. `teacher_checkpoint.pth`
holds the teacher with the prefix `backbone.`, and its heads. The blocks of a training checkpoint
are in chunks, `blocks.0.3.`, which are removed where files are read.
"""

from __future__ import annotations

from ..key_mapping import add_prefixes
from ..weight_format import Draft, Preprocessing, WeightFormat
from . import dino, mae
from .timm import ENCODER as TIMM_ENCODER

ENCODER = {
    **TIMM_ENCODER,
    "register_tokens": "embeddings.register_tokens",
    "blocks.#.mlp.w12.*": "layers.#.mlp.{gate,up}_proj.*",
    "blocks.#.mlp.w3.*": "layers.#.mlp.down_proj.*",
}

MASK_TOKEN = "the mask token, which only training uses"
HEADS = "heads of the objective; only the encoder is converted"
STUDENT = "the student; the teacher is converted, which computes the embeddings"
LOSSES = "state of the losses, not part of an encoder"
RESAMPLING = (
    "at other image sizes, DINOv2 interpolates positions by a scale factor with an offset of 0.1 "
    "patches; selfvit interpolates them to the exact size"
)
LICENSE_NOTE = (
    "DINOv2's published weights are Apache-2.0; if the source is one of them, so is the result"
)
# All released backbones were trained at last on images of 518 pixels (arXiv 2304.07193, Sec. 4).
IMAGE_SIZE = 518
PREPROCESSING = Preprocessing(
    crop_ratio=1.0,
    origin="convention: ImageNet mean and std, as in DINOv2's evaluation",
)


def adapt_backbone(draft: Draft) -> None:
    """Recognize an encoder of MAE, which has these names if only its decoder was removed."""
    if draft.fields.get("position_embedding_type") == "sincos":
        draft.kind = "facebookresearch/mae encoder (timm's names, sine-cosine positions)"
        draft.pooling, draft.differences = "mean", []
        draft.license_note, draft.license_id = mae.LICENSE_NOTE, mae.LICENSE_ID
    _resize_with_antialiasing(draft)


def _resize_with_antialiasing(draft: Draft) -> None:
    """Resize positions as DINOv2's models with registers do: by size, with antialiasing."""
    if "vit.embeddings.register_tokens" in draft.weights:
        draft.set_field("interpolate_antialias", True, "convention of DINOv2 with registers")
        draft.differences = [text for text in draft.differences if text != RESAMPLING]


def adapt_teacher(draft: Draft) -> None:
    """Recognize a teacher of DINO, which has no LayerScale."""
    if not any("layer_scale" in name for name in draft.weights):
        draft.kind = "facebookresearch/dino or dinov2 teacher, without LayerScale"
        draft.differences = [dino.INTERPOLATION]
        draft.license_note = ""
    _resize_with_antialiasing(draft)


BACKBONE = WeightFormat(
    name="facebookresearch/dinov2 backbone",
    key_mapping=add_prefixes(ENCODER, target="vit."),
    extras={r"^mask_token$": MASK_TOKEN},
    adapt=adapt_backbone,
    preprocessing=PREPROCESSING,
    license_note=LICENSE_NOTE,
    difference=RESAMPLING,
    usual_image_size=IMAGE_SIZE,
    # timm has these names, too, except for these
    applies=lambda names: not {"mask_token", "register_tokens"}.isdisjoint(names),
)

TEACHER = WeightFormat(
    name="facebookresearch/dinov2 teacher",
    key_mapping={
        **add_prefixes(ENCODER, "teacher.backbone.", "vit."),
        **add_prefixes(ENCODER, "backbone.", "vit."),
    },
    extras={
        r"^(teacher\.)?backbone\.mask_token$": MASK_TOKEN,
        r"^(teacher\.)?(dino_head|ibot_head|head)\.": HEADS,
        r"^student\.": STUDENT,
        r"^(dino_loss|ibot_patch_loss|koleo_loss)\.": LOSSES,
    },
    adapt=adapt_teacher,
    preprocessing=PREPROCESSING,
    license_note=LICENSE_NOTE,
    difference=RESAMPLING,
    usual_image_size=IMAGE_SIZE,
    applies=dino.is_teacher,
)

__all__ = ["BACKBONE", "TEACHER"]
