"""facebookresearch/mae: pre-training files that hold the decoder.

Its encoder files and fine-tuned files have timm's names; see `dino.py` and `timm.py`.
"""

from __future__ import annotations

import re

from ..infer_config import exact_ratio, usual
from ..key_mapping import prefixed
from ..weight_format import Draft, Source
from .timm import ENCODER

LICENSE_NOTE = "MAE's published weights are CC BY-NC 4.0; if these are, the result is too"
LICENSE_ID = "cc-by-nc-4.0"

DECODER = {
    "mask_token": "decoder.mask_token",
    "decoder_pos_embed": "decoder.position_embeddings",
    "decoder_embed.*": "decoder.embedding.*",
    **{
        f"decoder_{theirs}": f"decoder.{ours}"
        for theirs, ours in ENCODER.items()
        if theirs.startswith("blocks.#.") and ".ls" not in theirs
    },
    "decoder_norm.*": "decoder.layernorm.*",
    "decoder_pred.*": "decoder.prediction.*",
}

# models_mae.py, mae_vit_*_patch16_dec512d8b: whatever the encoder
USUAL_WIDTH, USUAL_HEADS = 512, 16


def read_objective(draft: Draft) -> None:
    """Read the decoder's geometry off its weights; its heads and target are no tensors."""
    read_decoder(
        draft,
        norm_pix_loss=draft.file.arguments.get("norm_pix_loss"),
    )


def read_decoder(
    draft: Draft, *, num_heads: int | None = None, norm_pix_loss: bool | None = None
) -> None:
    """Set `mae_config`.

    Args:
        draft: with the decoder's weights.
        num_heads: of the decoder, as the source's own configuration says; None if it does not.
        norm_pix_loss: the same.

    Raises:
        ValueError: if a tensor that tells the geometry is missing or has another shape, or the
            number of heads is not known.
    """
    weights, options = draft.weights, draft.options

    def sizes(pattern: str) -> list[int]:
        return [len(t) for name, t in weights.items() if re.fullmatch(pattern, name) and t.dim()]

    embedding, hidden = r"decoder\.embedding\..*", r"decoder\.layers\.\d+\.mlp\.fc1\..*"
    if not sizes(embedding) or not sizes(hidden):
        raise ValueError("the decoder has no embedding, or no block with an MLP.")
    width = usual(sizes(embedding) + sizes(r"decoder\.layernorm\..*"))
    positions = weights.get("decoder.position_embeddings")
    if positions is not None and positions.dim() == 3 and positions[:, 0].any():
        raise ValueError(
            f"{draft.called('decoder.position_embeddings')} moves the class token, which has no "
            "position in selfvit's decoder; convert the encoder alone."
        )
    heads, heads_from = options.decoder_num_heads, "option"
    if heads is None:
        heads, heads_from = num_heads, "the source's configuration"
    if heads is None and width == USUAL_WIDTH:
        heads, heads_from = USUAL_HEADS, "convention"
    if heads is None or width % heads:
        raise ValueError(
            f"the number of the decoder's heads is in no tensor, and {heads or 'the usual 16'} "
            f"is not for a width of {width}; give --decoder-num-heads."
        )
    target_from = "option" if options.norm_pix_loss is not None else "the source's configuration"
    if options.norm_pix_loss is not None:
        norm_pix_loss = options.norm_pix_loss
    if norm_pix_loss is None:
        norm_pix_loss, target_from = False, "convention"  # main_pretrain.py: off unless asked for
    indices = [int(name.split(".")[2]) for name in weights if name.startswith("decoder.layers.")]
    objective = {
        "norm_pix_loss": norm_pix_loss,
        "decoder_num_attention_heads": heads,
        "decoder_hidden_size": width,
        "decoder_num_layers": max(indices) + 1,
        "decoder_mlp_ratio": exact_ratio(usual(sizes(hidden)), width),
    }
    origin = f"weights; heads by {heads_from}, norm_pix_loss by {target_from}"
    draft.set("mae_config", objective, origin)


SOURCE = Source(
    name="facebookresearch/mae pre-training (encoder and decoder)",
    names={
        **{
            theirs: ours
            for theirs, ours in prefixed(ENCODER, target="vit.").items()
            if "reg_token" not in theirs and ".ls" not in theirs
        },
        **DECODER,
    },
    architecture="SelfViTForMAE",
    adapt=read_objective,
    pooling="mean",
    license_note=LICENSE_NOTE,
    license_id=LICENSE_ID,
)

__all__ = ["DECODER", "LICENSE_NOTE", "LICENSE_ID", "SOURCE", "read_decoder"]
