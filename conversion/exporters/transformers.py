"""Export to a stock model of transformers: `dinov2`, `dinov2_with_registers` or `dinov3_vit`.

The last one is for rotary positions. The pooled output of these models is the normalized class
token, without a pooler. They can express everything else that an encoder has, too: LayerScale (ones
if there is none), biases (zeros), epsilon, positions.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModel,
    BaseImageProcessor,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedModel,
)

from ...configuration.configuration_selfvit import SelfViTConfig
from ...modeling.checkpoints.loading import quiet_loading
from ...modeling.modeling_selfvit import SelfViTModel
from .fidelity import Fidelity, measure_difference

REPLACEMENTS = (("layernorm_before.", "norm1."), ("layernorm_after.", "norm2."))  # selfvit, theirs
DINOV3_REPLACEMENTS = (
    *REPLACEMENTS,
    ("embeddings.patch_embeddings.projection.", "embeddings.patch_embeddings."),
    ("mlp.fc1.", "mlp.up_proj."),
    ("mlp.fc2.", "mlp.down_proj."),
)
SWIGLU_ACTIVATION = "silu"  # fixed in dinov2
EXACT_FORMATS = {  # options of `selfvit export` that can express a pooling
    "mean": "--to timm (transformers opens such a folder, too, if timm is installed)",
    "cls+mean": "--to sentence-transformers or --to onnx",
}


def write_transformers(
    encoder: SelfViTModel, processor: BaseImageProcessor, folder: Path
) -> Fidelity:
    """Write a folder that stock transformers opens, and compare the models.

    Args:
        encoder: Encoder in float32. Its `config.pooling` must be "cls".
        processor: Image processor of the checkpoint, a stock class.
        folder: Existing, empty folder.

    Raises:
        ValueError: If these models cannot express the encoder; the message names alternatives.
    """
    config = encoder.config
    check_transformers(config)
    model = _build_model(config)
    model.load_state_dict(_rename_weights(encoder), strict=True)
    with quiet_loading():
        model.eval().save_pretrained(folder)
        processor.save_pretrained(folder)
        stored = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    height, width = config.image_height_width
    sizes, notes = [(height, width)], []
    if _resizes_alike(config):
        sizes.append((height + config.patch_size, width))
    else:
        theirs, ours = ("with", "without") if config.num_register_tokens else ("without", "with")
        notes.append(
            f"vectors are the same at {height} x {width} pixels; at other sizes "
            f"{stored.config.model_type} interpolates positions {theirs} antialiasing, selfvit "
            f"{ours}."
        )
    difference = measure_difference(
        encoder, lambda pixel_values: stored(pixel_values).pooler_output, sizes=sizes
    )
    return Fidelity(difference, tuple(notes))


def _resizes_alike(config: SelfViTConfig) -> bool:
    """Return whether the stock model has the same positions at all image sizes."""
    if config.position_embedding_type == "rotary":
        return True
    # dinov2_with_registers resizes with antialiasing, dinov2 without
    return config.interpolate_antialias == bool(config.num_register_tokens)


def check_transformers(config: SelfViTConfig) -> None:
    """Check that a stock model can express an encoder and its pooling.

    Raises:
        ValueError: If it cannot; the message names alternatives.
    """
    if config.pooling != "cls":
        exact = EXACT_FORMATS.get(config.pooling, "--to onnx")
        raise ValueError(
            f"pooling ({config.pooling!r}) cannot be expressed: the pooled output of dinov2 and "
            "dinov3_vit is the class token. Use --pooling cls for the nearest result, or "
            f"{exact} for the exact one."
        )
    if config.position_embedding_type == "rotary":
        return
    height, width = config.image_height_width
    if height != width:
        raise ValueError(
            f"image_size ({height} x {width}) must be square, because dinov2 stores positions of a "
            "square. Use --to timm or --to onnx."
        )
    if config.use_gated_mlp and config.hidden_act != SWIGLU_ACTIVATION:
        raise ValueError(
            f"hidden_act ({config.hidden_act!r}) of a gated MLP must be {SWIGLU_ACTIVATION!r} for "
            "dinov2. Use --to timm or --to onnx."
        )
    if _dinov2_mlp_ratio(config) is None:
        rule = (
            f"give the MLP a width of 2/3 of a multiple of the hidden size, rounded up to a "
            f"multiple of 8, for dinov2, not {config.intermediate_size}"
            if config.use_gated_mlp
            else "be a whole number for dinov2"
        )
        raise ValueError(f"mlp_ratio ({config.mlp_ratio}) must {rule}. Use --to timm or --to onnx.")


def _dinov2_mlp_ratio(config: SelfViTConfig) -> int | None:
    """Return the whole number with which dinov2 gives the MLP its width, or None."""

    def width(ratio: int) -> int:
        width = config.hidden_size * ratio
        return (int(width * 2 / 3) + 7) // 8 * 8 if config.use_gated_mlp else width

    largest = 2 * config.intermediate_size // config.hidden_size + 2
    ratios = range(1, largest + 1)
    return next((ratio for ratio in ratios if width(ratio) == config.intermediate_size), None)


def _build_model(config: SelfViTConfig) -> PreTrainedModel:
    fields: dict[str, Any] = {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "hidden_act": config.hidden_act,
        "layer_norm_eps": config.layer_norm_eps,
        "initializer_range": float(config.initializer_range),
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": config.num_channels,
        "drop_path_rate": config.drop_path_rate,
        "layerscale_value": float(config.layerscale_value or 1.0),
    }
    if config.position_embedding_type == "rotary":
        return DINOv3ViTModel(DINOv3ViTConfig(**fields, **_dinov3_fields(config)))
    fields |= {
        "image_size": config.image_height_width[0],
        "mlp_ratio": _dinov2_mlp_ratio(config),
        "qkv_bias": any(config.projection_biases),
        "use_swiglu_ffn": config.use_gated_mlp,
    }
    if config.num_register_tokens:
        with_registers = {**fields, "num_register_tokens": config.num_register_tokens}
        return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**with_registers))
    return Dinov2Model(Dinov2Config(**fields))


def _dinov3_fields(config: SelfViTConfig) -> dict[str, Any]:
    query_bias, key_bias, value_bias = config.projection_biases
    augmentation = {
        name: None if getattr(config, name) is None else float(getattr(config, name))
        for name in ("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale")
    }
    return {
        "intermediate_size": config.intermediate_size,
        "use_gated_mlp": config.use_gated_mlp,
        "query_bias": query_bias,
        "key_bias": key_bias,
        "value_bias": value_bias,
        "num_register_tokens": config.num_register_tokens,
        "rope_theta": float(config.rope_theta),
        **augmentation,
    }


def _rename_weights(encoder: SelfViTModel) -> dict[str, Tensor]:
    """Return the encoder's weights with the names of the stock model's modules."""
    config = encoder.config
    is_rotary = config.position_embedding_type == "rotary"
    blocks = "model.layer." if is_rotary else "encoder.layer."
    weights = {}
    for name, tensor in encoder.state_dict().items():
        for ours, theirs in DINOV3_REPLACEMENTS if is_rotary else REPLACEMENTS:
            name = name.replace(ours, theirs)
        if name.startswith("layers."):
            name = f"{blocks}{name.removeprefix('layers.')}"
        elif is_rotary:
            name = re.sub(r"^layernorm\.", "norm.", name)
        weights[name] = tensor
    _fill_tokens(weights, config)
    for layer in range(config.num_hidden_layers):
        block = f"{blocks}{layer}."
        if config.layerscale_value is None:
            for scale in ("layer_scale1", "layer_scale2"):
                weights[f"{block}{scale}.lambda1"] = torch.ones(config.hidden_size)
        if not is_rotary and any(config.projection_biases):
            for part in "qkv":  # dinov2 has all three or none
                name = f"{block}attention.{part}_proj.bias"
                weights.setdefault(name, torch.zeros(config.hidden_size))
    return weights


def _fill_tokens(weights: dict[str, Tensor], config: SelfViTConfig) -> None:
    """Add the tokens that the stock models always have, in their shape."""
    stored = weights.get("embeddings.mask_token", torch.zeros(1, 1, config.hidden_size))
    if config.position_embedding_type == "rotary":
        weights["embeddings.mask_token"] = stored
        if not config.num_register_tokens:
            weights["embeddings.register_tokens"] = torch.zeros(1, 0, config.hidden_size)
    else:
        weights["embeddings.mask_token"] = stored.flatten(1)  # (1, D)


__all__ = ["check_transformers", "write_transformers"]
