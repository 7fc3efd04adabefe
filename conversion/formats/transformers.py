"""transformers: ViT, ViTMAE, ViTMSN, Dinov2 and Dinov2WithRegisters, with names of v4 and v5.

transformers 5 renamed the modules, but writes most tensors with the old names. A file can mix old
and new names, so the key mapping has both.
"""

from __future__ import annotations

from typing import Any

from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD

from ..gated_mlp import ACTIVATION
from ..key_mapping import KeyMapping, add_prefixes
from ..weight_format import BILINEAR, Draft, Preprocessing, WeightFormat
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
    "mlp.weights_in.*": "mlp.{gate,up}_proj.*",  # SwiGLU of Dinov2
    "mlp.weights_out.*": "mlp.down_proj.*",
    "mlp.gate_proj.*": "mlp.gate_proj.*",
    "mlp.up_proj.*": "mlp.up_proj.*",
    "mlp.down_proj.*": "mlp.down_proj.*",
    "layer_scale2.lambda1": "layer_scale2.lambda1",
}


def _map_blocks(paths: tuple[str, ...], target: str) -> KeyMapping:
    mapping: dict[str, str] = {}
    for path in paths:
        mapping.update(add_prefixes(BLOCK, f"{path}.#.", f"{target}layers.#."))
    return mapping


ENCODER: KeyMapping = {
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
    **_map_blocks(("encoder.layer", "layers"), ""),
    "layernorm.*": "layernorm.*",
}
DECODER: KeyMapping = {
    "decoder.mask_token": "decoder.mask_token",
    "decoder.decoder_pos_embed": "decoder.position_embeddings",
    "decoder.decoder_embed.*": "decoder.embedding.*",
    **_map_blocks(("decoder.decoder_layers", "decoder.decoder_encoder.layer"), "decoder."),
    "decoder.decoder_norm.*": "decoder.layernorm.*",
    "decoder.decoder_pred.*": "decoder.prediction.*",
}

# Prefixes of the encoder, by itself and in the models with a head.
PREFIXES = ("", "vit.", "dinov2.", "dinov2_with_registers.")
DINOV2_TYPES = ("dinov2", "dinov2_with_registers")

# Defaults of ViTImageProcessor.
VIT_PREPROCESSING = Preprocessing(
    mean=IMAGENET_STANDARD_MEAN,
    std=IMAGENET_STANDARD_STD,
    resize="square",
    resample=BILINEAR,
    origin="convention: defaults of ViTImageProcessor, mean and std 0.5; some models need the "
    "ImageNet values (--statistics imagenet)",
)


def read_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration fields that a config.json of transformers holds."""
    same = ("num_attention_heads", "layer_norm_eps", "hidden_act", "image_size", "layerscale_value")
    fields = {name: config[name] for name in same if config.get(name) is not None}
    checked = ("hidden_size", "num_hidden_layers", "patch_size", "num_register_tokens")
    fields.update({name: config[name] for name in checked if config.get(name) is not None})
    if config.get("model_type") in DINOV2_TYPES:
        fields["use_gated_mlp"] = bool(config.get("use_swiglu_ffn"))
        if fields["use_gated_mlp"]:
            fields["hidden_act"] = ACTIVATION  # whatever hidden_act says
    if config.get("problem_type"):
        fields["problem_type"] = config["problem_type"]  # sigmoid or softmax
    if config.get("id2label"):
        fields["id2label"] = {int(index): label for index, label in config["id2label"].items()}
    return fields


def adapt(draft: Draft) -> None:
    """Identify the model, keep its classifier, and choose pooling and preprocessing."""
    config, weights = draft.file.config, draft.weights
    model_type = config.get("model_type")
    architectures = config.get("architectures") or []
    draft.kind = "transformers " + (architectures[0] if architectures else "ViT or Dinov2")
    for prefix in draft.encoder_prefixes():
        mask_token = f"{prefix}embeddings.mask_token"
        if mask_token in weights and weights[mask_token].dim() == 2:  # Dinov2: (1, D)
            weights[mask_token] = weights[mask_token].unsqueeze(0)
    is_mae = model_type == "vit_mae" or draft.fields.get("position_embedding_type") == "sincos"
    if is_mae:
        draft.pooling = "mean"
        draft.license_note, draft.license_id = mae.LICENSE_NOTE, mae.LICENSE_ID
    elif model_type == "vit_msn":
        draft.license_note, draft.license_id = msn.LICENSE_NOTE, msn.LICENSE_ID
    is_dinov2 = "vit.layers.0.layer_scale1.lambda1" in weights  # only Dinov2 has LayerScale
    if model_type == "vit" or (model_type is None and not is_dinov2 and not is_mae):
        draft.preprocessing = VIT_PREPROCESSING
    if "vit.embeddings.register_tokens" in weights:
        draft.set_field("interpolate_antialias", True, "convention of Dinov2WithRegisters")
    if any(why == POOLER for why in draft.left_out.values()):
        draft.differences.append("pooler_output is the class token, without a pooler")
    classifier = weights.get("classifier.weight")
    if classifier is not None or "classifier.bias" in weights:
        draft.architecture = "SelfViTForImageClassification"
        if classifier is not None and classifier.shape[-1] == 2 * draft.fields["hidden_size"]:
            draft.pooling_origin = "weights"
            draft.pooling = "cls+mean"  # Dinov2ForImageClassification


def adapt_mae(draft: Draft) -> None:
    """Infer the decoder, and read its heads and its target from config.json, if there is one."""
    config = draft.file.config
    read_decoder(
        draft,
        num_heads=config.get("decoder_num_attention_heads"),
        norm_pix_loss=config.get("norm_pix_loss"),
    )
    if "mask_ratio" in config:
        draft.fields["mae_config"]["mask_ratio"] = config["mask_ratio"]


POOLER = "a pooler, random in most self-supervised checkpoints; the embedding is the class token"

FORMAT = WeightFormat(
    name="transformers ViT, ViTMSN or Dinov2",
    key_mapping={
        **{
            theirs: ours
            for prefix in PREFIXES
            for theirs, ours in add_prefixes(ENCODER, prefix, "vit.").items()
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

MAE = WeightFormat(
    name="transformers ViTMAEForPreTraining",
    key_mapping={**add_prefixes(ENCODER, "vit.", "vit."), **DECODER},
    architecture="SelfViTForMAE",
    adapt=adapt_mae,
    read_config=read_config,
    pooling="mean",
    license_note=mae.LICENSE_NOTE,
    license_id=mae.LICENSE_ID,
)
