"""Geometry, read off an encoder's weights by our names."""

# D hidden · N patches · R registers · n positions stored

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ..modeling.position_embeddings import sincos_position_embeddings
from .weight_format import Draft

# Widths whose heads are not of 64.
USUAL_HEADS = {
    1152: 16,  # SoViT-400m, arXiv 2305.13035
    1280: 16,  # ViT-H, arXiv 2010.11929, Table 1
    1408: 16,  # ViT-g, arXiv 2106.04560, Table 2
    1664: 16,  # ViT-G, Table 2
}
# By how much stored sines and cosines may differ from ours, in each precision.
SINCOS_TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3}


def read_geometry(draft: Draft) -> None:
    """Set the fields of the configuration that describe the encoder.

    Positions are brought to the form of ours, (1, 1 + N, D), on the way.

    Raises:
        ValueError: if a tensor that tells the geometry is missing or not as it should be, or
            config.json says otherwise than the weights.
    """
    for prefix in draft.encoders()[::-1]:  # the network to take features from comes last
        _read_encoder(draft, prefix)
    stored = draft.source.read_config(draft.file.config) if draft.source.read_config else {}
    _read_what_no_tensor_tells(draft, stored)
    _compare(draft, stored)


def _read_encoder(draft: Draft, prefix: str) -> None:
    weights = {
        name.removeprefix(prefix): tensor
        for name, tensor in draft.weights.items()
        if name.startswith(prefix)
    }
    layers = [int(match[1]) for name in weights if (match := re.match(r"layers\.(\d+)\.", name))]
    norms = [tensor for name, tensor in weights.items() if name.endswith("layernorm_before.weight")]
    hidden = [tensor for name, tensor in weights.items() if name.endswith("mlp.fc1.weight")]
    projection = weights.get("embeddings.patch_embeddings.projection.weight")
    for name, found in (
        ("layers.0.layernorm_before.weight", bool(norms)),
        ("layers.0.mlp.fc1.weight", bool(hidden)),
        ("embeddings.patch_embeddings.projection.weight", projection is not None),
        ("embeddings.position_embeddings", "embeddings.position_embeddings" in weights),
    ):
        if not found:
            raise ValueError(f"missing: {draft.called(prefix + name)}.")
    assert projection is not None
    if projection.dim() != 4 or projection.shape[2] != projection.shape[3]:
        raise ValueError(
            f"{draft.called(prefix + 'embeddings.patch_embeddings.projection.weight')} should be "
            f"(hidden, channels, patch, patch), got {tuple(projection.shape)}."
        )
    width = usual(len(tensor) for tensor in norms)
    draft.set("hidden_size", width, "weights")
    draft.set("num_hidden_layers", max(layers) + 1, "weights")
    draft.set("mlp_ratio", exact_ratio(usual(len(tensor) for tensor in hidden), width), "weights")
    draft.set("patch_size", projection.shape[2], "weights")
    draft.set("num_channels", projection.shape[1], "weights")
    has_bias = any(name.endswith("_proj.bias") and "o_proj" not in name for name in weights)
    draft.set("qkv_bias", has_bias, "weights")
    registers = weights.get("embeddings.register_tokens")
    if registers is not None and (registers.dim() != 3 or registers.shape[::2] != (1, width)):
        raise ValueError(
            f"{draft.called(prefix + 'embeddings.register_tokens')} should be (1, registers, "
            f"{width}), got {tuple(registers.shape)}."
        )
    num_registers = 0 if registers is None else registers.shape[1]
    draft.set("num_register_tokens", num_registers, "weights")
    draft.set("use_mask_token", "embeddings.mask_token" in weights, "weights")
    if any("layer_scale" in name for name in weights):
        # where training starts; the values themselves are in the weights
        draft.set("layerscale_value", 1.0, "convention (the values are in the weights)")
    _read_positions(draft, prefix, num_registers)


def usual(values: Iterable[int]) -> int:
    """Return the most frequent size, so that a tensor of another one is found out by its shape."""
    return Counter(values).most_common(1)[0][0]


def exact_ratio(hidden: int, width: int) -> float:
    """Return a ratio for which the configuration's `int(width * ratio)` is `hidden`."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _read_positions(draft: Draft, prefix: str, num_registers: int) -> None:
    name = f"{prefix}embeddings.position_embeddings"
    positions = draft.weights[name]
    width = draft.fields["hidden_size"]
    if positions.dim() != 3 or len(positions) != 1 or positions.shape[2] != width:
        raise ValueError(
            f"{draft.called(name)} should be (1, positions, {width}), got {tuple(positions.shape)}."
        )
    grid, cover = _grid(draft, name, positions.shape[1], num_registers)
    if cover == "patches":
        positions = F.pad(positions, (0, 0, 1, 0))  # the class token has none
    elif cover == "prefix":
        registers = f"{prefix}embeddings.register_tokens"
        of_registers = positions[:, 1 : 1 + num_registers]
        draft.weights[registers] = draft.weights[registers] + of_registers
        positions = torch.cat([positions[:, :1], positions[:, 1 + num_registers :]], dim=1)
    draft.weights[name] = positions  # (1, 1 + N, D)
    patch_size = draft.fields["patch_size"]
    height, width_pixels = grid[0] * patch_size, grid[1] * patch_size
    size: Any = height if height == width_pixels else [height, width_pixels]
    draft.set("image_size", size, "weights")
    kind = "sincos" if _are_sincos(positions, grid) else "learned"
    draft.set("position_embedding_type", kind, "weights")


def _grid(
    draft: Draft, name: str, num_positions: int, num_registers: int
) -> tuple[tuple[int, int], str]:
    """Return (rows, columns) of the stored positions, and what they cover."""
    patch_size = draft.fields["patch_size"]
    before = {"class": 1, "prefix": 1 + num_registers, "patches": 0}
    covers = [cover for cover in draft.source.positions if cover != "prefix" or num_registers]
    size = draft.options.image_size or _stored_size(draft)
    if size is not None:
        grid = (size[0] // patch_size, size[1] // patch_size)
        for cover in covers:
            if num_positions - before[cover] == math.prod(grid):
                return grid, cover
        raise ValueError(
            f"{draft.called(name)} holds {num_positions} positions, which are not those of the "
            f"{grid[0]} x {grid[1]} patches of an image of {size[0]} x {size[1]} pixels."
        )
    square = {
        cover: math.isqrt(num_positions - before[cover])
        for cover in covers
        if num_positions > before[cover]
        and math.isqrt(num_positions - before[cover]) ** 2 == num_positions - before[cover]
    }
    if len(square) != 1:
        registers = f"{name.rpartition('.')[0]}.register_tokens"
        found = " or ".join(f"{side} x {side}" for side in square.values())
        prefix_tokens = f"a class token and {num_registers} registers"
        raise ValueError(
            f"{draft.called(name)} holds {num_positions} positions, "
            + (f"of {found} patches; " if found else f"with {prefix_tokens} no square of patches; ")
            + "give --image-size HEIGHT WIDTH, unless "
            f"{draft.called(registers)} is missing in the source."
        )
    ((cover, side),) = square.items()
    return (side, side), cover


def _stored_size(draft: Draft) -> tuple[int, int] | None:
    stored = draft.source.read_config(draft.file.config) if draft.source.read_config else {}
    size = stored.get("image_size")
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _are_sincos(positions: Tensor, grid: tuple[int, int]) -> bool:
    width = positions.shape[2]
    if width % 4:
        return False
    expected = sincos_position_embeddings(width, grid)
    tolerance = SINCOS_TOLERANCE.get(positions.dtype, 1e-5)
    return torch.allclose(positions.float(), expected, rtol=0, atol=tolerance)


def _read_what_no_tensor_tells(draft: Draft, stored: dict[str, Any]) -> None:
    width = draft.fields["hidden_size"]
    if draft.options.num_heads is not None:
        draft.set("num_attention_heads", draft.options.num_heads, "option")
    elif "num_attention_heads" in stored:
        draft.set("num_attention_heads", stored["num_attention_heads"], "config.json")
    elif width in USUAL_HEADS:
        draft.set("num_attention_heads", USUAL_HEADS[width], "convention (of this width)")
    elif width % 64 == 0:
        draft.set("num_attention_heads", width // 64, "convention (width / 64)")
    else:
        raise ValueError(
            f"the number of heads is in no tensor, and by convention a head has 64 channels, "
            f"which the width ({width}) is no multiple of; give --num-heads."
        )
    if width % draft.fields["num_attention_heads"]:
        raise ValueError(
            f"num_heads ({draft.fields['num_attention_heads']}) must divide the width ({width})."
        )
    eps = stored.get("layer_norm_eps")
    if eps is None:
        draft.set("layer_norm_eps", draft.source.layer_norm_eps, "convention")
    else:
        draft.set("layer_norm_eps", float(eps), "config.json")
    for name in ("hidden_act", "id2label"):
        if name in stored:
            draft.set(name, stored[name], "config.json")
    if "layerscale_value" in stored and "layerscale_value" in draft.fields:
        draft.set("layerscale_value", stored["layerscale_value"], "config.json")


def _compare(draft: Draft, stored: dict[str, Any]) -> None:
    """Raise if config.json contradicts the weights."""
    for name in ("hidden_size", "num_hidden_layers", "patch_size", "num_register_tokens"):
        if name in stored and stored[name] != draft.fields[name]:
            raise ValueError(
                f"config.json says {name} {stored[name]}, the weights {draft.fields[name]}: "
                "they are not of the same model, or tensors are missing."
            )


__all__ = ["exact_ratio", "read_geometry", "usual"]
