"""facebookresearch/mae: pretraining files that hold the decoder.

Its encoder files and fine-tuned files have timm's names; see `dino.py` and `timm.py`.
"""

from __future__ import annotations

import re

from ..infer_config import count_blocks, exact_mlp_ratio, most_common
from ..key_mapping import add_prefixes
from ..weight_format import Draft, WeightFormat
from .timm import PLAIN_ENCODER

LICENSE_ID = "cc-by-nc-4.0"
LICENSE_NOTE = (
    "MAE's published weights are CC BY-NC 4.0; if the source is one of them, so is the result"
)

DECODER = {
    "mask_token": "decoder.mask_token",
    "decoder_pos_embed": "decoder.position_embeddings",
    "decoder_embed.*": "decoder.embedding.*",
    **{
        f"decoder_{theirs}": f"decoder.{ours}"
        for theirs, ours in PLAIN_ENCODER.items()
        if theirs.startswith("blocks.#.")
    },
    "decoder_norm.*": "decoder.layernorm.*",
    "decoder_pred.*": "decoder.prediction.*",
}

# models_mae.py, mae_vit_*_patch16_dec512d8b: the same decoder for every encoder.
USUAL_WIDTH, USUAL_NUM_HEADS = 512, 16


def read_objective(draft: Draft) -> None:
    """Infer the size of the decoder; no tensor determines its heads and its target."""
    read_decoder(draft, norm_pix_loss=draft.file.arguments.get("norm_pix_loss"))


def read_decoder(
    draft: Draft, *, num_heads: int | None = None, norm_pix_loss: bool | None = None
) -> None:
    """Set `mae_config`.

    Args:
        draft: Draft with the weights of the decoder.
        num_heads: Number of attention heads of the decoder in the source's own configuration, or
            None.
        norm_pix_loss: Value of `norm_pix_loss` in the source's own configuration, or None.

    Raises:
        ValueError: If a tensor needed for this is missing or has an unexpected shape, or the number
            of attention heads is unknown.
    """
    weights = draft.weights

    def sizes(pattern: str) -> list[int]:
        return [len(t) for name, t in weights.items() if re.fullmatch(pattern, name) and t.dim()]

    embedding, hidden = r"decoder\.embedding\..*", r"decoder\.layers\.\d+\.mlp\.fc1\..*"
    if not sizes(embedding) or not sizes(hidden):
        raise ValueError("the decoder must have an embedding and a block with an MLP.")
    width = most_common(sizes(embedding) + sizes(r"decoder\.layernorm\..*"))
    positions = weights.get("decoder.position_embeddings")
    if positions is not None and positions.dim() == 3 and positions[:, 0].any():
        raise ValueError(
            f"{draft.source_name('decoder.position_embeddings')} must be zero for the class token, "
            "which has no position in selfvit's decoder. Remove the decoder from the file to "
            "convert only the encoder."
        )
    num_heads, heads_origin = _choose_num_heads(draft, num_heads, width)
    norm_pix_loss, target_origin = _choose_target(draft, norm_pix_loss)
    objective = {
        "norm_pix_loss": norm_pix_loss,
        "decoder_num_attention_heads": num_heads,
        "decoder_hidden_size": width,
        "decoder_num_layers": count_blocks(draft, "decoder."),
        "decoder_mlp_ratio": exact_mlp_ratio(most_common(sizes(hidden)), width),
    }
    origin = f"weights; heads by {heads_origin}, norm_pix_loss by {target_origin}"
    draft.set_field("mae_config", objective, origin)


def _choose_num_heads(draft: Draft, stored: int | None, width: int) -> tuple[int, str]:
    """Return the number of attention heads of the decoder and the origin of this number."""
    if draft.options.decoder_num_heads is not None:
        num_heads, origin = draft.options.decoder_num_heads, "option"
    elif stored is not None:
        num_heads, origin = stored, "the source's configuration"
    elif width == USUAL_WIDTH:
        num_heads, origin = USUAL_NUM_HEADS, "convention"
    else:
        raise ValueError(
            "the number of attention heads of the decoder is not stored in the weights, and the "
            f"convention ({USUAL_NUM_HEADS} for width {USUAL_WIDTH}) does not cover width {width}. "
            "Give --decoder-num-heads."
        )
    if width % num_heads:
        raise ValueError(
            f"decoder_num_heads ({num_heads}, from: {origin}) must divide the width of the decoder "
            f"({width}). Give another number with --decoder-num-heads."
        )
    return num_heads, origin


def _choose_target(draft: Draft, stored: bool | None) -> tuple[bool, str]:
    """Return `norm_pix_loss` and the origin of this value."""
    if draft.options.norm_pix_loss is not None:
        return draft.options.norm_pix_loss, "option"
    if stored is not None:
        return stored, "the source's configuration"
    return False, "convention"  # the default of main_pretrain.py


FORMAT = WeightFormat(
    name="facebookresearch/mae pretraining (encoder and decoder)",
    key_mapping={**add_prefixes(PLAIN_ENCODER, target="vit."), **DECODER},
    architecture="SelfViTForMAE",
    adapt=read_objective,
    pooling="mean",
    license_note=LICENSE_NOTE,
    license_id=LICENSE_ID,
)

__all__ = ["DECODER", "FORMAT", "LICENSE_ID", "LICENSE_NOTE", "read_decoder"]
