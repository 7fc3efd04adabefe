"""timm's `VisionTransformer`, and the DINO and MAE encoders, which share its names.

All three use the same names for an encoder without a head. Fixed sine-cosine positions identify
MAE. A file without a head and with learned positions is converted as a DINO backbone, whose
preprocessing differs from timm's default. Registers, LayerScale or a head mean timm, or a
fine-tuned MAE.
"""

from __future__ import annotations

import math
from typing import Any

from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD

from ..infer_grid import read_size
from ..key_mapping import add_prefixes
from ..weight_format import BICUBIC, BILINEAR, Draft, Preprocessing, WeightFormat

ENCODER = {
    "cls_token": "embeddings.cls_token",
    "reg_token": "embeddings.register_tokens",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.*": "embeddings.patch_embeddings.projection.*",
    "blocks.#.norm1.*": "layers.#.layernorm_before.*",
    "blocks.#.attn.qkv.*": "layers.#.attention.{q,k,v}_proj.*",
    "blocks.#.attn.proj.*": "layers.#.attention.o_proj.*",
    "blocks.#.ls1.gamma": "layers.#.layer_scale1.lambda1",
    "blocks.#.norm2.*": "layers.#.layernorm_after.*",
    "blocks.#.mlp.fc1.*": "layers.#.mlp.fc1.*",
    "blocks.#.mlp.fc1_g.*": "layers.#.mlp.gate_proj.*",
    "blocks.#.mlp.fc1_x.*": "layers.#.mlp.up_proj.*",
    "blocks.#.mlp.fc2.*": "layers.#.mlp.fc2.*",
    "blocks.#.ls2.gamma": "layers.#.layer_scale2.lambda1",
    "norm.*": "layernorm.*",
}
# The encoder of DINO and MAE: no registers, no LayerScale, no gate.
PLAIN_ENCODER = {
    theirs: ours
    for theirs, ours in ENCODER.items()
    if not any(part in theirs for part in ("reg_token", ".ls", ".fc1_"))
}

CROP_PCT = 0.9  # timm/models/vision_transformer.py, `_cfg`, as the following
TIMM_PREPROCESSING = Preprocessing(
    mean=IMAGENET_STANDARD_MEAN,
    std=IMAGENET_STANDARD_STD,
    crop_ratio=math.floor(224 / CROP_PCT) / 224,
    origin="convention: timm's default for ViT, mean and std 0.5; some models need the ImageNet "
    "values (--statistics imagenet)",
)
ACTIVATIONS = {  # timm, transformers
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
}
RESAMPLING = {"bicubic": BICUBIC, "bilinear": BILINEAR}


def pretrained_preprocessing(config: dict[str, Any]) -> Preprocessing | None:
    """Return the preprocessing in the `pretrained_cfg` of timm's config.json, or None.

    Raises:
        ValueError: If no processor of transformers gives the same pixels.
    """
    stored = config.get("pretrained_cfg", config)
    if not isinstance(stored, dict) or "mean" not in stored or "std" not in stored:
        return None
    crop_mode, crop_pct = stored.get("crop_mode") or "center", stored.get("crop_pct", CROP_PCT)
    height, width = list(stored.get("input_size") or (3, 224, 224))[-2:]
    is_center = crop_mode == "center" and height == width
    if not is_center and (crop_mode, crop_pct) != ("squash", 1):
        raise ValueError(
            f"crop_mode ({crop_mode!r}) with crop_pct ({crop_pct}) at {height} x {width} pixels in "
            "config.json cannot be expressed by an image processor of transformers: it must be "
            "'center' at a square size, or 'squash' with crop_pct 1. Edit the file to use one of "
            "them; the vectors are then those of that preprocessing."
        )
    interpolation = stored.get("interpolation", "bicubic")
    if interpolation not in RESAMPLING:
        raise ValueError(
            f"interpolation ({interpolation!r}) in config.json must be bicubic or bilinear. Edit "
            "the file to use one of them."
        )
    return Preprocessing(
        mean=tuple(stored["mean"]),
        std=tuple(stored["std"]),
        resize="square" if crop_mode == "squash" else "shortest_edge",
        resample=RESAMPLING[interpolation],
        crop_ratio=math.floor(height / crop_pct) / height,  # timm rounds down
        origin="config.json, pretrained_cfg",
    )


def read_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration fields that timm's config.json holds."""
    fields: dict[str, Any] = {}
    arguments = config.get("model_args") or {}
    stored = config.get("pretrained_cfg") or {}
    for name, value in (("model_args", arguments), ("pretrained_cfg", stored)):
        if not isinstance(value, dict):
            raise ValueError(f"{name} in config.json must be an object, got {value!r}.")
    if "num_heads" in arguments:
        fields["num_attention_heads"] = arguments["num_heads"]
    for name, plain in (("block_fn", "block"), ("norm_layer", "layernorm")):
        if str(arguments.get(name) or plain).lower() != plain:
            raise ValueError(
                f"{name} ({arguments[name]!r}) in config.json must be {plain!r}, because the "
                "encoder has no other blocks and norms."
            )
    if arguments.get("pool_include_prefix"):
        raise ValueError(
            "pool_include_prefix in config.json must be false: timm's mean then includes class "
            "token and registers, which no pooling of the encoder does."
        )
    if read_size(arguments.get("img_size")) is not None:
        fields["image_size"] = arguments["img_size"]
    if arguments.get("act_layer") is not None:
        if arguments["act_layer"] not in ACTIVATIONS:
            raise ValueError(
                f"act_layer ({arguments['act_layer']!r}) in config.json must be one of "
                f"{', '.join(ACTIVATIONS)}, the activations that the encoder can have."
            )
        fields["hidden_act"] = ACTIVATIONS[arguments["act_layer"]]
    if stored.get("input_size") is not None:
        fields["input_size"] = stored["input_size"]
    labels = stored.get("label_names")
    if labels:
        fields["id2label"] = dict(enumerate(labels))
    return fields


def adapt(draft: Draft) -> None:
    """Distinguish facebookresearch's files from timm's, and place the norm after the pooling."""
    config = draft.file.config
    # The files of MAE and DeiT hold the network as `model`; MAE's have a norm after the pooling.
    is_facebook = not config and (
        draft.file.wrappers == ["model"] or "fc_norm.weight" in draft.weights
    )
    if is_facebook:
        draft.kind = "facebookresearch fine-tuned ViT (MAE, DeiT; timm's names)"
        draft.license_note = (
            "MAE's published fine-tuned weights are CC BY-NC 4.0, DeiT's are Apache-2.0; if the "
            "source is one of them, so is the result"
        )
    else:
        draft.kind = "timm VisionTransformer"
        draft.preprocessing = pretrained_preprocessing(config) or TIMM_PREPROCESSING
    if config.get("global_pool") in ("avg", "token"):
        draft.pooling_origin = "config.json"
    if config.get("global_pool") == "avg":
        draft.pooling = "mean"
    elif config.get("global_pool") not in (None, "token"):
        raise ValueError(
            f"global_pool ({config['global_pool']!r}) in config.json must be 'token' or 'avg', "
            "because the encoder does not have timm's other poolings."
        )
    if draft.has_weights("classifier."):
        draft.architecture = "SelfViTForImageClassification"
    _move_fc_norm(draft)


def _move_fc_norm(draft: Draft) -> None:
    """Use `fc_norm`, the norm after the pooling, as the last norm of the encoder.

    This is exact if the pooling is the class token.
    """
    if not draft.has_weights("fc_norm."):
        return
    if "vit.embeddings.cls_token" not in draft.weights:
        raise ValueError("missing tensors: cls_token. The encoder always has a class token.")
    if draft.has_weights("vit.layernorm."):
        raise ValueError("the source must have either norm or fc_norm as its last norm, not both.")
    for name in ("weight", "bias"):
        if f"fc_norm.{name}" in draft.weights:
            target = f"vit.layernorm.{name}"
            draft.weights[target] = draft.weights.pop(f"fc_norm.{name}")
            draft.source_names[target] = draft.source_names.pop(f"fc_norm.{name}")
    if draft.file.config.get("global_pool") == "token":
        return
    if draft.options.pooling is None:
        raise ValueError(
            "the embedding of this source cannot be reproduced exactly: it applies fc_norm after "
            "the mean over the patches, and selfvit normalizes before it. Give --pooling mean (or "
            "cls) to convert the encoder anyway: its blocks are exact, fc_norm is applied to every "
            "token, and the classifier is left out."
        )
    draft.architecture = "SelfViTModel"
    reason = "the classifier reads the mean before fc_norm, which selfvit does not compute"
    draft.leave_out(r"classifier\.", reason)
    draft.differences.append(
        "fc_norm is applied to every token before the pooling; the source applies it after"
    )


FORMAT = WeightFormat(
    name="timm VisionTransformer",
    key_mapping={
        **add_prefixes(ENCODER, target="vit."),
        "fc_norm.*": "fc_norm.*",
        "head.*": "classifier.*",
    },
    extras={r"^head\.[01]\.": "a linear probe with batch norm, as in MAE's main_linprobe.py"},
    adapt=adapt,
    read_config=read_config,
    position_layouts=("class", "prefix", "patches"),
    difference="at smaller image sizes, timm interpolates positions with antialiasing, selfvit "
    "without",
)
