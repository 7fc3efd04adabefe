"""timm's `VisionTransformer`, and what shares its names: DINO's and MAE's encoders.

The three write the same names for an encoder without a head. Fixed sine-cosine positions tell MAE
apart; a headless file with learned positions is taken for DINO's, whose preprocessing differs from
timm's default. Registers, LayerScale or a head are timm's, or a fine-tuned MAE's.
"""

from __future__ import annotations

from typing import Any

from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD

from ..key_mapping import prefixed
from ..weight_format import BICUBIC, BILINEAR, Draft, Preprocessing, Source

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
    "blocks.#.mlp.fc2.*": "layers.#.mlp.fc2.*",
    "blocks.#.ls2.gamma": "layers.#.layer_scale2.lambda1",
    "norm.*": "layernorm.*",
}

# timm/models/vision_transformer.py, `_cfg`
TIMM_PREPROCESSING = Preprocessing(
    mean=IMAGENET_STANDARD_MEAN,
    std=IMAGENET_STANDARD_STD,
    crop_ratio=1 / 0.9,
    origin="convention: timm's default for ViT, mean and deviation 0.5, which is not every "
    "model's; --statistics imagenet gives the other usual one",
)
RESAMPLING = {"bicubic": BICUBIC, "bilinear": BILINEAR}


def pretrained_preprocessing(config: dict[str, Any]) -> Preprocessing | None:
    """Return what timm's `pretrained_cfg` in a config.json says, or None if there is none.

    Raises:
        ValueError: for an interpolation other than bicubic or bilinear.
    """
    stored = config.get("pretrained_cfg", config)
    if not isinstance(stored, dict) or "mean" not in stored or "std" not in stored:
        return None
    interpolation = stored.get("interpolation", "bicubic")
    if interpolation not in RESAMPLING:
        raise ValueError(
            f"interpolation ({interpolation!r}) in config.json must be bicubic or bilinear; "
            "correct the file to the nearer one."
        )
    return Preprocessing(
        mean=tuple(stored["mean"]),
        std=tuple(stored["std"]),
        resize="square" if stored.get("crop_mode") == "squash" else "shortest_edge",
        resample=RESAMPLING[interpolation],
        crop_ratio=1 / stored.get("crop_pct", 0.9),
        origin="config.json, pretrained_cfg",
    )


def read_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that timm's config.json holds; heads are not among them."""
    fields: dict[str, Any] = {}
    arguments = config.get("model_args") or {}
    if "num_heads" in arguments:
        fields["num_attention_heads"] = arguments["num_heads"]
    stored = config.get("pretrained_cfg") or {}
    if isinstance(arguments.get("img_size"), int):
        fields["image_size"] = arguments["img_size"]
    labels = stored.get("label_names")
    if labels:
        fields["id2label"] = dict(enumerate(labels))
    return fields


def adapt(draft: Draft) -> None:
    """Tell DINO's, MAE's and timm's files apart, and place the norm after the pooling."""
    config = draft.file.config
    # MAE's and DeiT's own files hold the network as `model`; a norm after the pooling is MAE's
    facebook = not config and (
        draft.file.wrappers == ["model"] or "fc_norm.weight" in draft.weights
    )
    if facebook:
        draft.kind = "facebookresearch fine-tuned ViT (MAE, DeiT; timm's names)"
        draft.license_note = (
            "fine-tuned weights published with MAE are CC BY-NC 4.0, with DeiT Apache-2.0; if "
            "these are, the result is too"
        )
    else:
        draft.kind = "timm VisionTransformer"
        draft.preprocessing = pretrained_preprocessing(config) or TIMM_PREPROCESSING
    if config.get("global_pool") == "avg":
        draft.pooling = "mean"
    elif config.get("global_pool") not in (None, "token"):
        raise ValueError(
            f"global_pool ({config['global_pool']!r}) in config.json must be 'token' or 'avg'; "
            "the encoder has no other of timm's poolings."
        )
    if any(name.startswith("classifier.") for name in draft.weights):
        draft.architecture = "SelfViTForImageClassification"
    _place_norm_after_pooling(draft)


def _place_norm_after_pooling(draft: Draft) -> None:
    """`fc_norm` stands in for `norm`, after the pooling: exact for a class token alone."""
    if "fc_norm.weight" not in draft.weights and "fc_norm.bias" not in draft.weights:
        return
    if "vit.embeddings.cls_token" not in draft.weights:
        raise ValueError("missing: cls_token, which the encoder always has.")
    if any(name.startswith("vit.layernorm.") for name in draft.weights):
        raise ValueError("fc_norm and norm cannot both be the last norm of an encoder.")
    for name in ("weight", "bias"):
        if f"fc_norm.{name}" in draft.weights:
            draft.weights[f"vit.layernorm.{name}"] = draft.weights.pop(f"fc_norm.{name}")
            draft.origins[f"vit.layernorm.{name}"] = draft.origins.pop(f"fc_norm.{name}")
    if draft.file.config.get("global_pool") == "token":
        return
    if draft.options.pooling is None:
        raise ValueError(
            "fc_norm normalizes after the mean over the patches, and selfvit before it: the "
            "embedding of this source cannot be had exactly. Give --pooling mean (or cls) to "
            "convert the encoder all the same: its blocks are exact, fc_norm is then applied to "
            "every token, and the head is left out."
        )
    draft.architecture = "SelfViTModel"
    draft.leave_out(r"classifier\.", "the head reads the mean before fc_norm, which selfvit lacks")
    draft.differences.append(
        "fc_norm is applied to every token, before the pooling; the source applies it after"
    )


SOURCE = Source(
    name="timm VisionTransformer",
    names={
        **prefixed(ENCODER, target="vit."),
        "fc_norm.*": "fc_norm.*",
        "head.*": "classifier.*",
    },
    extras={r"^head\.[01]\.": "a linear probe with batch norm, as MAE's main_linprobe.py writes"},
    adapt=adapt,
    read_config=read_config,
    positions=("class", "prefix", "patches"),
    difference="at other image sizes, timm smooths positions where it shrinks them (antialias)",
)
