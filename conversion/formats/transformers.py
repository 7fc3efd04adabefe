"""transformers: ViT, ViTMAE, ViTMSN, Dinov2 and Dinov2WithRegisters, names of v4 and of v5.

transformers 5 renamed the modules, and still writes the older names to a file, some of them new
ones; so every part may be spelled in each of its ways.
"""

from __future__ import annotations

from typing import Any

from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD

from ..key_mapping import Names, prefixed
from ..weight_format import BILINEAR, Draft, Preprocessing, Source
from . import mae, msn
from .mae import read_decoder

BLOCK = {
    "layernorm_before.*": "layernorm_before.*",
    "norm1.*": "layernorm_before.*",  # Dinov2
    "attention.attention.query.*": "attention.q_proj.*",
    "attention.attention.key.*": "attention.k_proj.*",
    "attention.attention.value.*": "attention.v_proj.*",
    "attention.output.dense.*": "attention.o_proj.*",
    "attention.q_proj.*": "attention.q_proj.*",
    "attention.k_proj.*": "attention.k_proj.*",
    "attention.v_proj.*": "attention.v_proj.*",
    "attention.o_proj.*": "attention.o_proj.*",
    "layer_scale1.lambda1": "layer_scale1.lambda1",
    "layernorm_after.*": "layernorm_after.*",
    "norm2.*": "layernorm_after.*",  # Dinov2
    "intermediate.dense.*": "mlp.fc1.*",
    "output.dense.*": "mlp.fc2.*",
    "mlp.fc1.*": "mlp.fc1.*",
    "mlp.fc2.*": "mlp.fc2.*",
    "layer_scale2.lambda1": "layer_scale2.lambda1",
}


def _blocks(paths: tuple[str, ...], target: str) -> Names:
    names: dict[str, str] = {}
    for path in paths:
        names.update(prefixed(BLOCK, f"{path}.#.", f"{target}layers.#."))
    return names


ENCODER: Names = {
    **{
        name: name
        for name in (
            "embeddings.cls_token",
            "embeddings.mask_token",
            "embeddings.register_tokens",
            "embeddings.position_embeddings",
            "embeddings.patch_embeddings.projection.*",
        )
    },
    **_blocks(("encoder.layer", "layers"), ""),
    "layernorm.*": "layernorm.*",
}
DECODER: Names = {
    "decoder.mask_token": "decoder.mask_token",
    "decoder.decoder_pos_embed": "decoder.position_embeddings",
    "decoder.decoder_embed.*": "decoder.embedding.*",
    **_blocks(("decoder.decoder_layers", "decoder.decoder_encoder.layer"), "decoder."),
    "decoder.decoder_norm.*": "decoder.layernorm.*",
    "decoder.decoder_pred.*": "decoder.prediction.*",
}

# Where the models with a head keep their encoder.
PREFIXES = ("", "vit.", "dinov2.", "dinov2_with_registers.")

# ViTImageProcessor's defaults
VIT_PREPROCESSING = Preprocessing(
    mean=IMAGENET_STANDARD_MEAN,
    std=IMAGENET_STANDARD_STD,
    resize="square",
    resample=BILINEAR,
    origin="convention: ViTImageProcessor's defaults, mean and deviation 0.5, which is not every "
    "model's; --statistics imagenet gives the other usual one",
)


def read_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that a transformers config.json holds."""
    same = ("num_attention_heads", "layer_norm_eps", "hidden_act", "image_size", "layerscale_value")
    fields = {name: config[name] for name in same if config.get(name) is not None}
    checked = ("hidden_size", "num_hidden_layers", "patch_size", "num_register_tokens")
    fields.update({name: config[name] for name in checked if config.get(name) is not None})
    if config.get("id2label"):
        fields["id2label"] = {int(index): label for index, label in config["id2label"].items()}
    return fields


def adapt(draft: Draft) -> None:
    """Name the model, take a classifier along, choose pooling and preprocessing."""
    config, weights = draft.file.config, draft.weights
    model_type = config.get("model_type")
    architectures = config.get("architectures") or []
    draft.kind = "transformers " + (architectures[0] if architectures else "ViT or Dinov2")
    for prefix in draft.encoders():
        mask_token = f"{prefix}embeddings.mask_token"
        if mask_token in weights and weights[mask_token].dim() == 2:  # Dinov2: (1, D)
            weights[mask_token] = weights[mask_token].unsqueeze(0)
    is_mae = model_type == "vit_mae" or draft.fields.get("position_embedding_type") == "sincos"
    if is_mae:
        draft.pooling = "mean"
        draft.license_note, draft.license_id = mae.LICENSE_NOTE, mae.LICENSE_ID
    elif model_type == "vit_msn":
        draft.license_note, draft.license_id = msn.LICENSE_NOTE, msn.LICENSE_ID
    # LayerScale and registers are Dinov2's
    plain = "vit.layers.0.layer_scale1.lambda1" not in weights
    if model_type == "vit" or (model_type is None and plain and not is_mae):
        draft.preprocessing = VIT_PREPROCESSING
    if "vit.embeddings.register_tokens" in weights:
        draft.differences.append(
            "at other image sizes, Dinov2WithRegisters smooths positions where it shrinks them"
        )
    if any(why == POOLER for why in draft.left_out.values()):
        draft.differences.append("pooler_output is the class token itself, without a pooler")
    classifier = weights.get("classifier.weight")
    if classifier is not None or "classifier.bias" in weights:
        draft.architecture = "SelfViTForImageClassification"
        if classifier is not None and classifier.shape[-1] == 2 * draft.fields["hidden_size"]:
            draft.pooling = "cls+mean"  # Dinov2ForImageClassification


def adapt_mae(draft: Draft) -> None:
    """Read the decoder, heads and target from config.json where there is one."""
    config = draft.file.config
    read_decoder(
        draft,
        num_heads=config.get("decoder_num_attention_heads"),
        norm_pix_loss=config.get("norm_pix_loss"),
    )
    if "mask_ratio" in config:
        draft.fields["mae_config"]["mask_ratio"] = config["mask_ratio"]


POOLER = "a pooler, random in most self-supervised checkpoints; the embedding is the class token"

SOURCE = Source(
    name="transformers ViT, ViTMSN or Dinov2",
    names={
        **{
            theirs: ours
            for prefix in PREFIXES
            for theirs, ours in prefixed(ENCODER, prefix, "vit.").items()
        },
        "classifier.*": "classifier.*",
    },
    extras={
        r"^((vit|dinov2)\.)?pooler\.dense\.": POOLER,
        r"^decoder\.0\.": "the decoder of masked image modeling, a convolution",
    },
    adapt=adapt,
    read_config=read_config,
)

MAE = Source(
    name="transformers ViTMAEForPreTraining",
    names={**prefixed(ENCODER, "vit.", "vit."), **DECODER},
    architecture="SelfViTForMAE",
    adapt=adapt_mae,
    read_config=read_config,
    pooling="mean",
    license_note=mae.LICENSE_NOTE,
    license_id=mae.LICENSE_ID,
)
