"""facebookresearch/mae: pre-training files that hold the decoder.

Its encoder files and fine-tuned files have timm's names; see `dino.py` and `timm.py`.
"""

from __future__ import annotations

from typing import Any

from ..draft import Draft, Source
from ..names import prefixed
from .timm import ENCODER

LICENCE = "MAE's published weights are CC BY-NC 4.0; if these are, the result is too"

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

DECODER_HEADS = 16  # models_mae.py, mae_vit_*_patch16_dec512d8b, whatever the encoder


def read_objective(draft: Draft) -> None:
    """Read the decoder's geometry off its weights; its heads and target are no tensors."""
    read_decoder(
        draft,
        num_heads=DECODER_HEADS,
        norm_pix_loss=draft.file.arguments.get("norm_pix_loss"),
    )


def read_decoder(draft: Draft, *, num_heads: int, norm_pix_loss: Any, origin: str = "") -> None:
    """Set `mae_config`.

    Args:
        draft: with the decoder's weights.
        num_heads: of the decoder, unless an option says otherwise.
        norm_pix_loss: of the decoder, unless an option says otherwise; None if unknown.
        origin: of the two; the convention if empty.

    Raises:
        ValueError: if a tensor that tells the geometry is missing or has another shape.
    """
    weights, options = draft.weights, draft.options
    embedding, hidden = "decoder.embedding.weight", "decoder.layers.0.mlp.fc1.weight"
    for name in (embedding, hidden):
        if name not in weights or weights[name].dim() != 2:
            shape = tuple(weights[name].shape) if name in weights else "missing"
            raise ValueError(f"{draft.called(name)} of MAE's decoder is {shape}.")
    width = len(weights[embedding])
    indices = [int(name.split(".")[2]) for name in weights if name.startswith("decoder.layers.")]
    if options.norm_pix_loss is not None:
        norm_pix_loss = options.norm_pix_loss
    objective = {
        "decoder_hidden_size": width,
        "decoder_num_layers": max(indices) + 1,
        "decoder_num_attention_heads": options.decoder_num_heads or num_heads,
        "decoder_mlp_ratio": len(weights[hidden]) / width,
        # main_pretrain.py: off unless asked for
        "norm_pix_loss": False if norm_pix_loss is None else bool(norm_pix_loss),
    }
    if width % objective["decoder_num_attention_heads"]:
        raise ValueError(
            f"the decoder's width ({width}) is no multiple of its "
            f"{objective['decoder_num_attention_heads']} heads; give --decoder-num-heads."
        )
    draft.set(
        "mae_config",
        objective,
        f"weights; heads and norm_pix_loss by {origin or 'convention (16, off) or option'}",
    )


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
    licence=LICENCE,
    licence_id="cc-by-nc-4.0",
)

__all__ = ["DECODER", "LICENCE", "SOURCE", "read_decoder"]
