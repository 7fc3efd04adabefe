"""timm's DINOv3, for encoders with rotary positions: architecture, arguments and tensor names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ...configuration.configuration_selfvit import SelfViTConfig
from ...modeling.modeling_selfvit import SelfViTModel

# Name of a timm architecture by hidden_size; `model_args` override all of its settings.
ARCHITECTURES = {
    192: "vit_tiny_patch16_dinov3",
    384: "vit_small_patch16_dinov3",
    768: "vit_base_patch16_dinov3",
    1024: "vit_large_patch16_dinov3",
    1280: "vit_huge_plus_patch16_dinov3",
}
WITH_BIAS = "_qkvb"  # suffix of the architectures with biases of query and value
LAYER_NORM_EPS = 1e-5  # fixed in timm; its config.json cannot change it
REPLACEMENTS = (  # selfvit, timm
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.register_tokens", "reg_token"),
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("layernorm_before.", "norm1."),
    ("layernorm_after.", "norm2."),
    ("layernorm.", "norm."),
    ("attention.q_proj.bias", "attn.q_bias"),
    ("attention.v_proj.bias", "attn.v_bias"),
    ("attention.o_proj.", "attn.proj."),
    ("layer_scale1.lambda1", "gamma_1"),
    ("layer_scale2.lambda1", "gamma_2"),
    ("mlp.gate_proj.", "mlp.fc1_g."),
    ("mlp.up_proj.", "mlp.fc1_x."),
    ("mlp.down_proj.", "mlp.fc2."),
    ("layers.", "blocks."),
)


def check_dinov3(config: SelfViTConfig) -> None:
    """Check that timm can express an encoder with rotary positions.

    Raises:
        ValueError: If it cannot; the message names alternatives.
    """
    other = "Use --to transformers or --to onnx."
    if config.layer_norm_eps != LAYER_NORM_EPS:
        raise ValueError(
            f"layer_norm_eps ({config.layer_norm_eps}) must be {LAYER_NORM_EPS}, which timm's "
            f"DINOv3 has fixed. {other}"
        )
    activation = "silu" if config.use_gated_mlp else "gelu"
    if config.hidden_act != activation:
        raise ValueError(
            f"hidden_act ({config.hidden_act!r}) must be {activation!r}, the fixed activation of "
            f"timm's DINOv3 {'with' if config.use_gated_mlp else 'without'} a gate. {other}"
        )
    if config.projection_biases[1]:
        raise ValueError(
            "the bias of the keys (key_bias) cannot be expressed: timm's DINOv3 has none. " + other
        )


def architecture_of(config: SelfViTConfig) -> str:
    """Return the name of the timm architecture that is nearest to an encoder."""
    has_bias = any(config.projection_biases)
    if config.hidden_size == 192 or config.hidden_size not in ARCHITECTURES:
        return ARCHITECTURES[192] + WITH_BIAS  # the tiny one exists with biases only
    return ARCHITECTURES[config.hidden_size] + (WITH_BIAS if has_bias else "")


def dinov3_arguments(config: SelfViTConfig) -> dict[str, Any]:
    """Return the arguments that only timm's DINOv3 has, in addition to those of every ViT."""
    return {
        "mlp_ratio": config.mlp_ratio,
        "swiglu_mlp": config.use_gated_mlp,
        "swiglu_align_to": 1 if config.use_gated_mlp else 0,  # two tensors, and the exact width
        "qkv_bias": any(config.projection_biases),
        "num_reg_tokens": config.num_register_tokens,
        "rope_temperature": config.rope_theta,
        "rope_shift_coords": config.pos_embed_shift,
        "rope_jitter_coords": config.pos_embed_jitter,
        "rope_rescale_coords": config.pos_embed_rescale,
    }


def rename_dinov3_weights(encoder: SelfViTModel) -> dict[str, Tensor]:
    """Return the weights of an encoder with rotary positions with timm's names."""
    config = encoder.config
    weights = {}
    for name, tensor in encoder.state_dict().items():
        if name == "embeddings.mask_token":
            continue  # used in training only; timm has none
        for ours, theirs in REPLACEMENTS:
            name = name.replace(ours, theirs)
        weights[name] = tensor
    for block in [f"blocks.{index}." for index in range(config.num_hidden_layers)]:
        fuse(weights, block, "attention.{}_proj.weight", "qkv", "attn.qkv.weight")
        if any(config.projection_biases):
            for part in "qv":  # timm has both biases or none
                weights.setdefault(f"{block}attn.{part}_bias", torch.zeros(config.hidden_size))
    return {name: tensor.contiguous() for name, tensor in weights.items()}


def fuse(
    weights: dict[str, Tensor], block: str, template: str, parts: Iterable[str], fused: str
) -> None:
    """Stack some tensors of a block along their first dimension, in place.

    Args:
        weights: Tensors by name.
        block: Prefix of the block's names.
        template: Name of a part below the prefix, with `{}` for the name of the part.
        parts: Names of the parts, in their order.
        fused: Name of the result below the prefix.
    """
    stacked = [weights.pop(f"{block}{template.format(part)}") for part in parts]
    weights[f"{block}{fused}"] = torch.cat(stacked)


__all__ = [
    "architecture_of",
    "check_dinov3",
    "dinov3_arguments",
    "fuse",
    "rename_dinov3_weights",
]
