"""A checkpoint as a folder of timm: `VisionTransformer`, as its hub folders are."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import BaseImageProcessor

from ...configuration.configuration_selfvit import SelfViTConfig
from ...modeling.modeling_selfvit import SelfViTModel
from .fidelity import Fidelity, measure_difference

# By hidden_size: the name of a timm architecture; its own numbers are all overridden.
ARCHITECTURES = {
    192: "vit_tiny_patch16_224",
    384: "vit_small_patch16_224",
    768: "vit_base_patch16_224",
    1024: "vit_large_patch16_224",
}
POOLINGS = {"cls": "token", "mean": "avg"}
LAYER_NORM_EPS = 1e-6  # timm's LayerNorm; no string in a config.json names another
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
}
RESAMPLING = {2: "bilinear", 3: "bicubic"}  # PIL's numbers
RENAMED = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.register_tokens", "reg_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("layernorm_before.", "norm1."),
    ("layernorm_after.", "norm2."),
    ("layernorm.", "norm."),
    ("attention.o_proj.", "attn.proj."),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
)


def write_timm(encoder: SelfViTModel, processor: BaseImageProcessor, folder: Path) -> Fidelity:
    """Write a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` opens.

    Args:
        encoder: in float32; its `config.pooling` is "cls" or "mean".
        processor: of the checkpoint.
        folder: exists, and is empty.

    Raises:
        ValueError: if timm cannot express the encoder, its pooling or its preprocessing.
    """
    check_timm(encoder.config)
    config: dict[str, Any] = {
        "architecture": ARCHITECTURES.get(encoder.config.hidden_size, "vit_base_patch16_224"),
        "num_classes": 0,
        "num_features": encoder.config.hidden_size,
        "global_pool": POOLINGS[encoder.config.pooling],
        "model_args": _model_args(encoder.config),
        "pretrained_cfg": _preprocessing(encoder.config, processor),
    }
    save_file(_renamed(encoder), folder / "model.safetensors", metadata={"format": "pt"})
    text = json.dumps(config, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    height, width = encoder.config.image_height_width
    notes = [
        f"vectors are the same at {height} x {width} pixels; at other sizes timm interpolates "
        "positions with antialiasing, selfvit without."
    ]
    try:
        import timm
    except ImportError:
        notes.append("timm is not installed, so the export was not opened with it.")
        return Fidelity(None, tuple(notes))
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return Fidelity(measure_difference(encoder, model), tuple(notes))


def check_timm(config: SelfViTConfig) -> None:
    """Check that timm can express an encoder and its pooling.

    Raises:
        ValueError: if not.
    """
    if config.pooling not in POOLINGS:
        nearest = "mean" if config.pooling == "gem" else "cls"
        raise ValueError(
            f"pooling ({config.pooling!r}) cannot be expressed: timm's vision transformer pools by "
            f"cls or mean. Use --pooling {nearest} for the nearest, or --to onnx for exactly this."
        )
    if config.layer_norm_eps != LAYER_NORM_EPS:
        raise ValueError(
            f"layer_norm_eps ({config.layer_norm_eps}) must be {LAYER_NORM_EPS}, timm's own, which "
            "its config.json cannot change. Use --to transformers or --to onnx."
        )
    if config.hidden_act not in ACTIVATIONS:
        raise ValueError(
            f"hidden_act ({config.hidden_act!r}) must be one of {', '.join(ACTIVATIONS)}, which "
            "timm has. Use --to transformers or --to onnx."
        )


def _model_args(config: SelfViTConfig) -> dict[str, Any]:
    return {
        "img_size": list(config.image_height_width),
        "patch_size": config.patch_size,
        "in_chans": config.num_channels,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": config.mlp_ratio,
        "qkv_bias": config.qkv_bias,
        "init_values": config.layerscale_value,
        "reg_tokens": config.num_register_tokens,
        "act_layer": ACTIVATIONS[config.hidden_act],
        "global_pool": POOLINGS[config.pooling],
        "fc_norm": False,  # the norm comes before the mean, as here
        "dynamic_img_size": True,
    }


def _renamed(encoder: SelfViTModel) -> dict[str, Tensor]:
    """Return the encoder's weights in timm's names: query, key and value in one tensor."""
    weights = {}
    for name, tensor in encoder.state_dict().items():
        if name == "embeddings.mask_token":
            continue  # timm has none; it takes part in training only
        for ours, theirs in RENAMED:
            name = name.replace(ours, theirs)
        weights[name.replace("layers.", "blocks.")] = tensor
    for query in [name for name in weights if ".q_proj." in name]:
        names = [query.replace("q_proj", part) for part in ("q_proj", "k_proj", "v_proj")]
        fused = torch.cat([weights.pop(name) for name in names])
        weights[query.replace("attention.q_proj", "attn.qkv")] = fused
    num_registers = encoder.config.num_register_tokens
    if num_registers:  # timm's positions are of every token; registers have none
        class_position, patches = weights["pos_embed"][:, :1], weights["pos_embed"][:, 1:]
        none = class_position.new_zeros(1, num_registers, class_position.shape[-1])
        weights["pos_embed"] = torch.cat([class_position, none, patches], dim=1)
    return {name: tensor.contiguous() for name, tensor in weights.items()}


def _preprocessing(config: SelfViTConfig, processor: Any) -> dict[str, Any]:
    """Return what timm's `create_transform` needs for the pixels of the processor.

    Where the margins of a crop are odd, timm's lies a pixel beside transformers'.

    Raises:
        ValueError: if the processor does what timm's transforms don't.
    """
    height, width = config.image_height_width
    size, resample = dict(processor.size), int(processor.resample)
    if resample not in RESAMPLING:
        raise ValueError(
            f"the image processor resamples by {processor.resample}; timm takes "
            f"{' or '.join(RESAMPLING.values())}. Set resample in preprocessor_config.json."
        )
    crops = processor.do_center_crop
    last = dict(processor.crop_size) if crops else size
    fits = (last.get("height"), last.get("width")) == (height, width)
    if fits and crops and size.get("shortest_edge"):
        ratio = height / size["shortest_edge"]
        if int(height / ratio) < size["shortest_edge"]:  # as timm computes the edge from the ratio
            ratio = math.nextafter(ratio, 0)
        crop = {"crop_pct": ratio, "crop_mode": "center"}
    elif fits and not crops:
        crop = {"crop_pct": 1.0, "crop_mode": "squash"}
    else:
        raise ValueError(
            f"the image processor's size ({size}) must be the shortest edge, before a center crop "
            f"of {height} x {width}, or that itself without a crop; timm's transforms do no other."
        )
    return {
        "input_size": [config.num_channels, height, width],
        "fixed_input_size": False,
        "interpolation": RESAMPLING[resample],
        **crop,
        "mean": list(processor.image_mean),
        "std": list(processor.image_std),
        "num_classes": 0,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }


__all__ = ["check_timm", "write_timm"]
