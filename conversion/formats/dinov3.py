"""DINOv3: folders of transformers, timm's `vit_*_dinov3`, and the released backbones.

These encoders have rotary positions, which no tensor holds, and no key bias. The released files
have timm's older names, a mask of the key bias and the periods of the rotary positions. timm's
models without `_qkvb` in their name have no bias in query, key and value at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ...sharing.provenance import LICENSES
from ..key_mapping import add_prefixes
from ..weight_format import BICUBIC, BILINEAR, Draft, Preprocessing, WeightFormat
from . import timm, transformers

LICENSE_NOTE = (
    "DINOv3's published weights are under the DINOv3 License; if the source is one of them, so is "
    "the result, and every model that is made from it"
)
LICENSE_NAME = "dinov3-license"  # as in the cards of the published weights
LICENSE_LINK = "https://ai.meta.com/resources/models-and-libraries/dinov3-license"

# All published encoders (arXiv 2508.10104, Table 2 and Sec. 5).
SHARED: dict[str, Any] = {
    "rotary": True,
    "separate_biases": True,
    "layer_norm_eps": 1e-5,
    "num_heads_by_width": {4096: 32},  # ViT-7B, Table 2
    "license_note": LICENSE_NOTE,
    "license_id": "other",
    "license_name": LICENSE_NAME,
    "license_link": LICENSE_LINK,
}
TRAINED_BY_MASK = "the mask token, which only training uses"

TRANSFORMERS_BLOCK = {
    "norm1.*": "layernorm_before.*",
    "attention.q_proj.*": "attention.q_proj.*",
    "attention.k_proj.*": "attention.k_proj.*",
    "attention.v_proj.*": "attention.v_proj.*",
    "attention.o_proj.*": "attention.o_proj.*",
    "layer_scale1.lambda1": "layer_scale1.lambda1",
    "norm2.*": "layernorm_after.*",
    "mlp.gate_proj.*": "mlp.gate_proj.*",
    "mlp.up_proj.*": "mlp.fc1.*",
    "mlp.down_proj.*": "mlp.fc2.*",
    "layer_scale2.lambda1": "layer_scale2.lambda1",
}
TRANSFORMERS_ENCODER = {
    "embeddings.cls_token": "embeddings.cls_token",
    "embeddings.mask_token": "embeddings.mask_token",
    "embeddings.register_tokens": "embeddings.register_tokens",
    "embeddings.patch_embeddings.*": "embeddings.patch_embeddings.projection.*",
    **add_prefixes(TRANSFORMERS_BLOCK, "layer.#.", "layers.#."),
    **add_prefixes(TRANSFORMERS_BLOCK, "model.layer.#.", "layers.#."),  # names of the modules
    "norm.*": "layernorm.*",
}
TIMM_ENCODER = {
    "cls_token": "embeddings.cls_token",
    "reg_token": "embeddings.register_tokens",
    "patch_embed.proj.*": "embeddings.patch_embeddings.projection.*",
    "blocks.#.norm1.*": "layers.#.layernorm_before.*",
    "blocks.#.attn.qkv.weight": "layers.#.attention.{q,k,v}_proj.weight",
    "blocks.#.attn.q_bias": "layers.#.attention.q_proj.bias",
    "blocks.#.attn.v_bias": "layers.#.attention.v_proj.bias",
    "blocks.#.attn.proj.*": "layers.#.attention.o_proj.*",
    "blocks.#.gamma_1": "layers.#.layer_scale1.lambda1",
    "blocks.#.norm2.*": "layers.#.layernorm_after.*",
    "blocks.#.mlp.fc1.*": "layers.#.mlp.fc1.*",
    "blocks.#.mlp.fc1_g.*": "layers.#.mlp.gate_proj.*",
    "blocks.#.mlp.fc1_x.*": "layers.#.mlp.up_proj.*",
    "blocks.#.mlp.fc2.*": "layers.#.mlp.fc2.*",
    "blocks.#.gamma_2": "layers.#.layer_scale2.lambda1",
    "norm.*": "layernorm.*",
}
RELEASED_ENCODER = {
    "cls_token": "embeddings.cls_token",
    "storage_tokens": "embeddings.register_tokens",
    "patch_embed.proj.*": "embeddings.patch_embeddings.projection.*",
    "blocks.#.norm1.*": "layers.#.layernorm_before.*",
    "blocks.#.attn.qkv.*": "layers.#.attention.{q,k,v}_proj.*",
    "blocks.#.attn.proj.*": "layers.#.attention.o_proj.*",
    "blocks.#.ls1.gamma": "layers.#.layer_scale1.lambda1",
    "blocks.#.norm2.*": "layers.#.layernorm_after.*",
    "blocks.#.mlp.fc1.*": "layers.#.mlp.fc1.*",
    "blocks.#.mlp.fc2.*": "layers.#.mlp.fc2.*",
    "blocks.#.mlp.w1.*": "layers.#.mlp.gate_proj.*",
    "blocks.#.mlp.w2.*": "layers.#.mlp.up_proj.*",
    "blocks.#.mlp.w3.*": "layers.#.mlp.down_proj.*",
    "blocks.#.ls2.gamma": "layers.#.layer_scale2.lambda1",
    "norm.*": "layernorm.*",
}
PERIODS, BIAS_MASK = "rope_embed.periods", ".attn.qkv.bias_mask"
ROTARY_ARGUMENTS = {  # of timm, and the fields that they become
    "rope_temperature": "rope_theta",
    "rope_shift_coords": "pos_embed_shift",
    "rope_jitter_coords": "pos_embed_jitter",
    "rope_rescale_coords": "pos_embed_rescale",
}
PERIODS_TOLERANCE = 1e-2  # relative; periods of the largest models were stored in bfloat16


def read_transformers_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration fields that a config.json of `dinov3_vit` holds."""
    fields = transformers.read_config(config)
    names = (
        "rope_theta",
        "pos_embed_shift",
        "pos_embed_jitter",
        "pos_embed_rescale",
        "query_bias",
        "key_bias",
        "value_bias",
        "use_gated_mlp",
    )
    fields.update({name: config[name] for name in names if name in config})
    return fields


def adapt_transformers(draft: Draft) -> None:
    """Read the augmentation of positions in training, which not every config.json has."""
    config = draft.file.config
    architectures = config.get("architectures") or []
    draft.kind = f"transformers {architectures[0] if architectures else 'DINOv3ViT'}"
    for name in ("pos_embed_shift", "pos_embed_jitter"):
        if config.get(name) is not None:
            draft.set_field(name, config[name], "config.json")


def adapt_timm(draft: Draft) -> None:
    """Read the preprocessing of config.json, and check that the model is a DINOv3.

    Raises:
        ValueError: If config.json names another architecture, whose positions may be different.
    """
    config = draft.file.config
    architecture = str(config.get("architecture") or "dinov3")
    if "dinov3" not in architecture:
        raise ValueError(
            f"architecture ({architecture!r}) in config.json must be a DINOv3 of timm, because the "
            "encoder does not have the positions of timm's other models with these tensors."
        )
    draft.preprocessing = timm.pretrained_preprocessing(config) or draft.preprocessing
    stated = (config.get("pretrained_cfg") or {}).get("license")
    if stated not in (None, LICENSE_NAME):  # other weights of the same architecture
        draft.license_note = f"config.json of the source states the license {stated}"
        draft.license_id = stated if stated in LICENSES else None
    if config.get("global_pool") == "avg":
        draft.pooling, draft.pooling_origin = "mean", "config.json"
    elif config.get("global_pool") not in (None, "token"):
        raise ValueError(
            f"global_pool ({config['global_pool']!r}) in config.json must be 'token' or 'avg', "
            "because the encoder does not have timm's other poolings."
        )
    if draft.has_weights("classifier."):
        draft.architecture = "SelfViTForImageClassification"


def adapt_released(draft: Draft) -> None:
    """Leave out the masked key biases, and check the periods of the rotary positions.

    Raises:
        ValueError: If the file masks other biases than those of the keys, or has other periods.
    """
    tensors = draft.file.tensors
    masks = {name: mask for name, mask in tensors.items() if name.endswith(BIAS_MASK)}
    for name, mask in masks.items():
        query, key, value = mask.float().chunk(3)
        if not (bool((query == 1).all()) and not key.any() and bool((value == 1).all())):
            raise ValueError(
                f"{name} must mask the biases of the keys and no others (ones, zeros, ones)."
            )
    if masks:
        draft.leave_out(r"vit\.layers\.\d+\.attention\.k_proj\.bias$", "masked biases of the keys")
        draft.fields["key_bias"], draft.field_origins["key_bias"] = False, "weights"
    periods = tensors.get(PERIODS)
    if periods is not None:
        base, num_pairs = draft.fields["rope_theta"], len(periods)
        expected = base ** (torch.arange(num_pairs, dtype=torch.float32) / num_pairs)
        if not torch.allclose(periods.float(), expected, rtol=PERIODS_TOLERANCE):
            raise ValueError(
                f"{PERIODS} must be the periods of rotary positions with the base {base:g}, "
                f"{base:g}^(j / {num_pairs}), but it has other values."
            )


def read_timm_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration fields that timm's config.json holds, with its rotary positions."""
    fields, arguments = timm.read_config(config), config.get("model_args") or {}
    named = {name: field for name, field in ROTARY_ARGUMENTS.items() if name in arguments}
    return {**fields, **{field: arguments[name] for name, field in named.items()}}


def _has_storage_tokens(names: Iterable[str]) -> bool:
    return "storage_tokens" in names


TRANSFORMERS = WeightFormat(
    name="transformers DINOv3ViT",
    key_mapping=add_prefixes(TRANSFORMERS_ENCODER, target="vit."),
    adapt=adapt_transformers,
    read_config=read_transformers_config,
    preprocessing=Preprocessing(
        resize="square",
        resample=BILINEAR,
        origin="convention: defaults of DINOv3ViTImageProcessor, ImageNet mean and std; the models "
        "for satellite images need others (--image-mean, --image-std)",
    ),
    usual_image_size=224,
    **SHARED,
)

TIMM = WeightFormat(
    name="timm DINOv3",
    key_mapping={**add_prefixes(TIMM_ENCODER, target="vit."), "head.*": "classifier.*"},
    adapt=adapt_timm,
    read_config=read_timm_config,
    preprocessing=Preprocessing(
        resample=BICUBIC,
        crop_ratio=1.0,
        origin="convention of timm's DINOv3, ImageNet mean and std; models for satellite images "
        "need others (--image-mean, --image-std)",
    ),
    usual_image_size=256,
    **SHARED,
)

RELEASED = WeightFormat(
    name="facebookresearch/dinov3 backbone",
    key_mapping=add_prefixes(RELEASED_ENCODER, target="vit."),
    extras={
        r"^mask_token$": TRAINED_BY_MASK,
        r"\.attn\.qkv\.bias_mask$": "the mask of the biases, which leaves out the keys'",
        r"^rope_embed\.periods$": "the periods of the rotary positions, which follow from the base",
        r"^local_cls_norm\.": "the norm of class tokens of local crops, which only training uses",
    },
    adapt=adapt_released,
    preprocessing=Preprocessing(
        resize="square",
        resample=BICUBIC,
        origin="convention: ImageNet mean and std, as in DINOv3's evaluation; the models for "
        "satellite images need others (--image-mean, --image-std)",
    ),
    usual_image_size=224,
    applies=_has_storage_tokens,
    **SHARED,
)

FORMATS = (TRANSFORMERS, TIMM, RELEASED)

__all__ = ["FORMATS"]
