"""Export to a folder of timm, in the layout of its Hub repositories.

The model is a `VisionTransformer`, or for rotary positions timm's DINOv3 (`timm_dinov3.py`).
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import BaseImageProcessor
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

from ...configuration.configuration_selfvit import SelfViTConfig
from ...embedding.preprocessing import output_size
from ...modeling.checkpoints.weight_files import WEIGHTS
from ...modeling.modeling_selfvit import SelfViTModel
from ...modeling.position_embeddings import resize_positions
from ..infer_config import exact_mlp_ratio
from ..weight_format import BICUBIC, BILINEAR
from .fidelity import Fidelity, measure_difference
from .timm_dinov3 import (
    architecture_of,
    check_dinov3,
    dinov3_arguments,
    fuse,
    rename_dinov3_weights,
)

# Name of a timm architecture by hidden_size; `model_args` override all of its settings.
ARCHITECTURES = {
    192: "vit_tiny_patch16_224",
    384: "vit_small_patch16_224",
    768: "vit_base_patch16_224",
    1024: "vit_large_patch16_224",
}
GATED_ARCHITECTURE = "vit_giant_patch14_dinov2"  # has SwiGLUPacked
POOLINGS = {"cls": "token", "mean": "avg"}
LAYER_NORM_EPS = 1e-6  # fixed in timm; its config.json cannot change it
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
}
RESAMPLING = {BILINEAR: "bilinear", BICUBIC: "bicubic"}
REPLACEMENTS = (  # selfvit, timm
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

    The model has the image size of the processor. If this is not the encoder's, as for DINOv2, its
    position embeddings are resized as in the forward pass.

    Args:
        encoder: Encoder in float32. Its `config.pooling` must be "cls" or "mean".
        processor: Image processor of the checkpoint.
        folder: Existing, empty folder.

    Raises:
        ValueError: If timm cannot express the encoder, its pooling or its preprocessing.
    """
    check_timm(encoder.config)
    is_rotary = encoder.config.position_embedding_type == "rotary"
    fitted = _fit_to_processor(encoder.config, processor)
    config: dict[str, Any] = {
        "architecture": _architecture(fitted),
        "num_classes": 0,
        "num_features": fitted.hidden_size,
        "global_pool": POOLINGS[fitted.pooling],
        "model_args": _model_args(fitted),
        "pretrained_cfg": _preprocessing(fitted, processor),
    }
    weights = rename_dinov3_weights(encoder) if is_rotary else _rename_weights(encoder, fitted)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(config, indent=2) + "\n"
    (folder / CONFIG_NAME).write_text(text, encoding="utf-8")
    height, width = fitted.image_height_width
    sizes, notes = [(height, width)], []
    if not is_rotary and fitted.grid_size != encoder.config.grid_size:
        stored_height, stored_width = encoder.config.image_height_width
        notes.append(
            f"position embeddings were resized from {stored_height} x {stored_width} pixels to "
            f"{height} x {width}, the size of the image processor; vectors are the same at this "
            "size only."
        )
    elif is_rotary or fitted.interpolate_antialias:
        sizes.append((height + encoder.config.patch_size, width))
    else:
        notes.append(
            f"vectors are the same at {height} x {width} pixels; at other sizes timm interpolates "
            "positions with antialiasing, selfvit without."
        )
    if config["pretrained_cfg"]["crop_mode"] == "center":
        notes.append(
            "where the center crop removes an odd number of pixels, timm may crop one pixel "
            "further to the right or below; the vector of such an image differs slightly."
        )
    try:
        import timm
    except ImportError:
        notes.append("timm is not installed, so the export was not checked.")
        return Fidelity(None, tuple(notes))
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return Fidelity(measure_difference(encoder, model, sizes=sizes), tuple(notes))


def check_timm(config: SelfViTConfig) -> None:
    """Check that timm can express an encoder and its pooling.

    Raises:
        ValueError: If it cannot; the message names alternatives.
    """
    if config.pooling not in POOLINGS:
        nearest = "mean" if config.pooling == "gem" else "cls"
        raise ValueError(
            f"pooling ({config.pooling!r}) cannot be expressed: timm's vision transformer pools by "
            f"cls or mean. Use --pooling {nearest} for the nearest result, or --to onnx for the "
            "exact one."
        )
    if config.position_embedding_type == "rotary":
        check_dinov3(config)
        return
    if config.layer_norm_eps != LAYER_NORM_EPS:
        raise ValueError(
            f"layer_norm_eps ({config.layer_norm_eps}) must be {LAYER_NORM_EPS}, timm's fixed "
            "value. Use --to transformers or --to onnx."
        )
    if config.hidden_act not in ACTIVATIONS:
        raise ValueError(
            f"hidden_act ({config.hidden_act!r}) must be one of {', '.join(ACTIVATIONS)}, the "
            "activations of timm. Use --to transformers or --to onnx."
        )


def _fit_to_processor(config: SelfViTConfig, processor: Any) -> SelfViTConfig:
    """Return the configuration for the size that a processor gives, if patches can divide it."""
    size = output_size(processor)
    if size is None or any(side % config.patch_size for side in size):
        return config  # `_preprocessing` raises the error
    fitted = copy.deepcopy(config)
    fitted.image_size = list(size)
    return fitted


def _architecture(config: SelfViTConfig) -> str:
    if config.position_embedding_type == "rotary":
        return architecture_of(config)
    if config.use_gated_mlp:
        return GATED_ARCHITECTURE
    return ARCHITECTURES.get(config.hidden_size, "vit_base_patch16_224")


def _model_args(config: SelfViTConfig) -> dict[str, Any]:
    shared = {
        "img_size": list(config.image_height_width),
        "patch_size": config.patch_size,
        "in_chans": config.num_channels,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "init_values": config.layerscale_value,
        "global_pool": POOLINGS[config.pooling],
        "dynamic_img_size": True,
    }
    if config.position_embedding_type == "rotary":
        return {**shared, **dinov3_arguments(config)}
    packed = 2 * config.intermediate_size  # gate and hidden layer in one
    return {
        **shared,
        "mlp_ratio": (
            exact_mlp_ratio(packed, config.hidden_size)
            if config.use_gated_mlp
            else config.mlp_ratio
        ),
        "qkv_bias": any(config.projection_biases),
        "reg_tokens": config.num_register_tokens,
        "act_layer": ACTIVATIONS[config.hidden_act],
        "fc_norm": False,  # the norm is applied before the mean, as in selfvit
    }


def _rename_weights(encoder: SelfViTModel, config: SelfViTConfig) -> dict[str, Tensor]:
    """Return the encoder's weights with timm's names, and positions for the size of `config`.

    Query, key and value are one tensor, and so are the gate and the hidden layer of a gated MLP.
    """
    weights = {}
    resized = resize_positions(
        encoder.state_dict(),
        encoder.config.grid_size,
        config.grid_size,
        config.interpolate_antialias,
    )
    for name, tensor in resized.items():
        if name == "embeddings.mask_token":
            continue  # used in training only; timm has none
        for ours, theirs in REPLACEMENTS:
            name = name.replace(ours, theirs)
        weights[name.replace("layers.", "blocks.")] = tensor
    for block in [f"blocks.{index}." for index in range(config.num_hidden_layers)]:
        fuse(weights, block, "attention.{}_proj.weight", "qkv", "attn.qkv.weight")
        if any(config.projection_biases):
            for part in "qkv":  # timm has all three biases or none
                name = f"{block}attention.{part}_proj.bias"
                weights.setdefault(name, torch.zeros(config.hidden_size))
            fuse(weights, block, "attention.{}_proj.bias", "qkv", "attn.qkv.bias")
        if config.use_gated_mlp:
            for kind in ("weight", "bias"):
                fuse(weights, block, f"mlp.{{}}_proj.{kind}", ("gate", "up"), f"mlp.fc1.{kind}")
                weights[f"{block}mlp.fc2.{kind}"] = weights.pop(f"{block}mlp.down_proj.{kind}")
    num_registers = config.num_register_tokens
    if num_registers:  # timm's positions cover all tokens; those of the registers are zero
        class_position, patches = weights["pos_embed"][:, :1], weights["pos_embed"][:, 1:]
        zeros = class_position.new_zeros(1, num_registers, class_position.shape[-1])
        weights["pos_embed"] = torch.cat([class_position, zeros, patches], dim=1)
    return {name: tensor.contiguous() for name, tensor in weights.items()}


def _preprocessing(config: SelfViTConfig, processor: Any) -> dict[str, Any]:
    """Return the settings with which timm's `create_transform` gives the processor's pixels.

    If an odd number of pixels is cropped away, timm's crop may be shifted by one pixel.

    Raises:
        ValueError: If timm's transforms cannot express the processor.
    """
    height, width = config.image_height_width
    if not processor.do_resize:
        raise ValueError(
            "do_resize of the image processor must be true, because timm's transforms always "
            f"resize. Change it in {IMAGE_PROCESSOR_NAME}."
        )
    resample = BICUBIC if processor.resample is None else int(processor.resample)
    size = dict(processor.size)
    if resample not in RESAMPLING:
        raise ValueError(
            f"resample ({processor.resample}) of the image processor must be "
            f"{' or '.join(RESAMPLING.values())} for timm. Change it in {IMAGE_PROCESSOR_NAME}."
        )
    crops = processor.do_center_crop
    last = dict(processor.crop_size) if crops else size
    fits = (last.get("height"), last.get("width")) == (height, width)
    keeps_ratio = size.get("shortest_edge") and not size.get("longest_edge")
    if fits and crops and keeps_ratio and height == width:  # for others, timm resizes differently
        ratio = height / size["shortest_edge"]
        if int(height / ratio) < size["shortest_edge"]:  # timm rounds down
            ratio = math.nextafter(ratio, 0)
        crop = {"crop_pct": ratio, "crop_mode": "center"}
    elif fits and not crops:
        crop = {"crop_pct": 1.0, "crop_mode": "squash"}
    else:
        raise ValueError(
            f"size ({size}) of the image processor must be a shortest edge, followed by a square "
            "center crop, or a height and a width without a crop, with an output size "
            f"({last.get('height')} x {last.get('width')}) that the patch size "
            f"({config.patch_size}) divides; timm's transforms have no other mode. Change it in "
            f"{IMAGE_PROCESSOR_NAME}."
        )
    return {
        "input_size": [config.num_channels, height, width],
        "fixed_input_size": False,
        "interpolation": RESAMPLING[resample],
        **crop,
        **_statistics(config, processor),
        "num_classes": 0,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }


def _statistics(config: SelfViTConfig, processor: Any) -> dict[str, list[float]]:
    """Return mean and std for pixels in 0 to 1, where the processor may scale them otherwise."""
    mean, std = [0.0] * config.num_channels, [1.0] * config.num_channels
    if processor.do_normalize:
        mean, std = list(processor.image_mean), list(processor.image_std)
    scale = 255 * processor.rescale_factor if processor.do_rescale else 255.0
    scale = 1.0 if math.isclose(scale, 1) else scale  # 255 * (1 / 255) may be rounded
    return {"mean": [value / scale for value in mean], "std": [value / scale for value in std]}


__all__ = ["check_timm", "write_timm"]
