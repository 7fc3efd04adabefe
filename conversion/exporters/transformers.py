"""Export to a stock model of transformers: `dinov2`, or `dinov2_with_registers`.

The pooled output of these models is the normalized class token, without a pooler. They can express
everything else that an encoder has, too: LayerScale (ones if there is none), epsilon, positions.
"""

from __future__ import annotations

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
)

from ...configuration.configuration_selfvit import SelfViTConfig
from ...modeling.checkpoints.loading import quiet_loading
from ...modeling.modeling_selfvit import SelfViTModel
from .fidelity import Fidelity, measure_difference

REPLACEMENTS = (("layernorm_before.", "norm1."), ("layernorm_after.", "norm2."))  # selfvit, dinov2
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
    check_transformers(encoder.config)
    model = _build_model(encoder.config)
    model.load_state_dict(_rename_weights(encoder), strict=True)
    with quiet_loading():
        model.eval().save_pretrained(folder)
        processor.save_pretrained(folder)
        stored = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    height, width = encoder.config.image_height_width
    sizes, notes = [(height, width)], []
    if encoder.config.num_register_tokens:
        notes.append(
            f"vectors are the same at {height} x {width} pixels; at other sizes "
            "dinov2_with_registers interpolates positions with antialiasing, selfvit without."
        )
    else:
        sizes.append((height + encoder.config.patch_size, width))
    difference = measure_difference(
        encoder, lambda pixel_values: stored(pixel_values).pooler_output, sizes=sizes
    )
    return Fidelity(difference, tuple(notes))


def check_transformers(config: SelfViTConfig) -> None:
    """Check that a stock model can express an encoder and its pooling.

    Raises:
        ValueError: If it cannot; the message names alternatives.
    """
    if config.pooling != "cls":
        exact = EXACT_FORMATS.get(config.pooling, "--to onnx")
        raise ValueError(
            f"pooling ({config.pooling!r}) cannot be expressed: the pooled output of dinov2 is the "
            f"class token. Use --pooling cls for the nearest result, or {exact} for the exact one."
        )
    height, width = config.image_height_width
    if height != width:
        raise ValueError(
            f"image_size ({height} x {width}) must be square, because dinov2 stores positions of a "
            "square. Use --to timm or --to onnx."
        )
    if config.mlp_ratio != int(config.mlp_ratio):
        raise ValueError(
            f"mlp_ratio ({config.mlp_ratio}) must be a whole number for dinov2. Use --to timm or "
            "--to onnx."
        )


def _build_model(config: SelfViTConfig) -> Dinov2Model | Dinov2WithRegistersModel:
    fields: dict[str, Any] = {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "mlp_ratio": int(config.mlp_ratio),
        "hidden_act": config.hidden_act,
        "layer_norm_eps": config.layer_norm_eps,
        "initializer_range": float(config.initializer_range),
        "image_size": config.image_height_width[0],
        "patch_size": config.patch_size,
        "num_channels": config.num_channels,
        "qkv_bias": config.qkv_bias,
        "drop_path_rate": config.drop_path_rate,
        "layerscale_value": float(config.layerscale_value or 1.0),
    }
    if config.num_register_tokens:
        with_registers = {**fields, "num_register_tokens": config.num_register_tokens}
        return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**with_registers))
    return Dinov2Model(Dinov2Config(**fields))


def _rename_weights(encoder: SelfViTModel) -> dict[str, Tensor]:
    """Return the encoder's weights with dinov2's names."""
    config = encoder.config
    weights = {}
    for name, tensor in encoder.state_dict().items():
        for ours, theirs in REPLACEMENTS:
            name = name.replace(ours, theirs)
        if name.startswith("layers."):
            name = f"encoder.layer.{name.removeprefix('layers.')}"
        weights[name] = tensor
    stored = weights.get("embeddings.mask_token")  # (1, 1, D); dinov2 stores (1, D)
    weights["embeddings.mask_token"] = (
        torch.zeros(1, config.hidden_size) if stored is None else stored.flatten(1)
    )
    if config.layerscale_value is None:
        for layer in range(config.num_hidden_layers):
            for scale in ("layer_scale1", "layer_scale2"):
                name = f"encoder.layer.{layer}.{scale}.lambda1"
                weights[name] = torch.ones(config.hidden_size)
    return weights


__all__ = ["check_transformers", "write_transformers"]
