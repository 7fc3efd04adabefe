"""Infer the configuration of an encoder from its tensors."""

# D hidden · N patches

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

from .infer_grid import GUESS, POSITIONS, REGISTERS, infer_grid
from .weight_format import Draft

PROJECTION = "embeddings.patch_embeddings.projection.weight"

GATED_MLP = "a gated MLP (SwiGLU)"
# Number of heads by hidden size, where a head does not have 64 channels.
NUM_HEADS_BY_WIDTH = {
    1152: 16,  # SoViT-400m, arXiv 2305.13035
    1280: 16,  # ViT-H, arXiv 2010.11929, Table 1
    1408: 16,  # ViT-g, arXiv 2106.04560, Table 2
    1664: 16,  # ViT-G, Table 2
}


def infer_config(draft: Draft) -> None:
    """Set the configuration fields of the encoder.

    Position embeddings are converted to selfvit's layout, (1, 1 + N, D).

    Raises:
        ValueError: If a tensor needed for this is missing or has an unexpected shape, or
            config.json contradicts the weights.
    """
    for prefix in draft.encoder_prefixes()[::-1]:  # the network to take features from comes last
        _infer_encoder(draft, prefix)
    stored = _read_config_json(draft)
    _set_fields_without_tensors(draft, stored)
    _check_config_json(draft, stored)


def _read_config_json(draft: Draft) -> dict[str, Any]:
    read_config = draft.format.read_config
    return {} if read_config is None else read_config(draft.file.config)


def _infer_encoder(draft: Draft, prefix: str) -> None:
    required = (
        "layers.0.layernorm_before.weight",
        "layers.0.mlp.fc1.weight",
        PROJECTION,
        POSITIONS,
    )
    draft.check_weights(prefix + name for name in required)
    weights = {
        name.removeprefix(prefix): tensor
        for name, tensor in draft.weights.items()
        if name.startswith(prefix)
    }
    num_layers = count_blocks(draft, prefix)
    norms = [tensor for name, tensor in weights.items() if name.endswith("layernorm_before.weight")]
    hidden = [tensor for name, tensor in weights.items() if name.endswith("mlp.fc1.weight")]
    _check_mlp(draft, prefix)
    projection = weights[PROJECTION]
    if projection.dim() != 4 or projection.shape[2] != projection.shape[3]:
        raise ValueError(
            f"{draft.source_name(prefix + PROJECTION)} must have the shape (hidden, channels, "
            f"patch, patch), because patches are square and flat; got {tuple(projection.shape)}."
        )
    width = most_common(len(tensor) for tensor in norms)
    mlp_ratio = exact_mlp_ratio(most_common(len(tensor) for tensor in hidden), width)
    has_bias = any(name.endswith("_proj.bias") and "o_proj" not in name for name in weights)
    num_registers = _count_registers(draft, prefix, width)
    for field, value in (
        ("hidden_size", width),
        ("num_hidden_layers", num_layers),
        ("mlp_ratio", mlp_ratio),
        ("patch_size", projection.shape[2]),
        ("num_channels", projection.shape[1]),
        ("qkv_bias", has_bias),
        ("num_register_tokens", num_registers),
        ("use_mask_token", "embeddings.mask_token" in weights),
    ):
        draft.set_field(field, value, "weights")
    if any("layer_scale" in name for name in weights):
        # The initial value of a training run; the trained values are in the weights.
        draft.set_field("layerscale_value", 1.0, "convention (the values are in the weights)")
    _infer_positions(draft, prefix, num_registers)


def _count_registers(draft: Draft, prefix: str, width: int) -> int:
    registers = draft.weights.get(prefix + REGISTERS)
    if registers is None:
        return 0
    if registers.dim() != 3 or registers.shape[::2] != (1, width):
        raise ValueError(
            f"{draft.source_name(prefix + REGISTERS)} must have the shape (1, registers, {width}), "
            f"got {tuple(registers.shape)}."
        )
    return registers.shape[1]


def count_blocks(draft: Draft, prefix: str) -> int:
    """Return the number of blocks below a prefix of target names.

    Raises:
        ValueError: If the indices of the blocks have a gap.
    """
    pattern = re.compile(re.escape(prefix) + r"layers\.(\d+)\.")
    indices = {int(match[1]) for name in draft.weights if (match := pattern.match(name))}
    absent = next((index for index in range(len(indices)) if index not in indices), None)
    if absent is not None:
        name = f"{prefix}layers.{absent}.layernorm_before.weight"
        raise ValueError(
            f"missing tensors: all of block {absent}, such as {draft.source_name(name)}, though "
            f"there is a block {max(indices)}."
        )
    return len(indices)


def _check_mlp(draft: Draft, prefix: str) -> None:
    """Check that the second layer of an MLP reads what the first one writes.

    The first layer of timm's packed SwiGLU also computes the gate, so it is twice as wide.
    """
    name = f"{prefix}layers.0.mlp.fc"
    first, second = draft.weights[f"{name}1.weight"], draft.weights.get(f"{name}2.weight")
    if second is None or first.dim() != 2 or second.dim() != 2:
        return
    if len(first) == 2 * second.shape[1]:
        raise ValueError(
            f"the encoder does not have {GATED_MLP}: {draft.source_name(f'{name}1.weight')} has "
            f"{len(first)} outputs, and {draft.source_name(f'{name}2.weight')} "
            f"{second.shape[1]} inputs."
        )


def most_common(sizes: Iterable[int]) -> int:
    """Return the most frequent size, so that a tensor of another size shows up as a mismatch."""
    return Counter(sizes).most_common(1)[0][0]


def exact_mlp_ratio(hidden: int, width: int) -> float:
    """Return a ratio for which the configuration's `int(width * ratio)` is exactly `hidden`."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _infer_positions(draft: Draft, prefix: str, num_registers: int) -> None:
    name = prefix + POSITIONS
    positions = draft.weights[name]
    width = draft.fields["hidden_size"]
    if positions.dim() != 3 or len(positions) != 1 or positions.shape[2] != width:
        raise ValueError(
            f"{draft.source_name(name)} must have the shape (1, positions, {width}), got "
            f"{tuple(positions.shape)}."
        )
    grid = infer_grid(draft, name, num_registers, _read_config_json(draft))
    if grid.layout == "patches":
        positions = F.pad(positions, (0, 0, 1, 0))  # zeros for the class token
    elif grid.layout == "prefix":
        register_positions = positions[:, 1 : 1 + num_registers]
        registers = prefix + REGISTERS
        draft.weights[registers] = draft.weights[registers] + register_positions
        positions = torch.cat([positions[:, :1], positions[:, 1 + num_registers :]], dim=1)
    draft.weights[name] = positions  # (1, 1 + N, D)
    height, width = (side * draft.fields["patch_size"] for side in (grid.rows, grid.columns))
    size: Any = height if height == width else [height, width]
    draft.set_field("image_size", size, grid.origin)
    kind = "sincos" if grid.is_sincos else "learned"
    draft.set_field("position_embedding_type", kind, "weights")


def _set_fields_without_tensors(draft: Draft, stored: dict[str, Any]) -> None:
    """Set the fields that no tensor determines, from options, config.json or conventions."""
    width = draft.fields["hidden_size"]
    num_heads, origin = _choose_num_heads(draft, stored, width)
    if width % num_heads:
        raise ValueError(
            f"num_heads ({num_heads}, from: {origin}) must divide the hidden size ({width}); give "
            "another number with --num-heads."
        )
    draft.set_field("num_attention_heads", num_heads, origin)
    eps = stored.get("layer_norm_eps")
    if eps is None:
        draft.set_field("layer_norm_eps", draft.format.layer_norm_eps, "convention")
    elif isinstance(eps, int | float):
        draft.set_field("layer_norm_eps", float(eps), "config.json")
    else:
        raise ValueError(f"layer_norm_eps ({eps!r}) in config.json must be a number. Correct it.")
    known_act = "hidden_act" in stored
    draft.set_field(
        "hidden_act", stored.get("hidden_act", "gelu"), "config.json" if known_act else "convention"
    )
    if "id2label" in stored:
        draft.set_field("id2label", stored["id2label"], "config.json")
    if "layerscale_value" in stored and "layerscale_value" in draft.fields:
        draft.set_field("layerscale_value", stored["layerscale_value"], "config.json")


def _choose_num_heads(draft: Draft, stored: dict[str, Any], width: int) -> tuple[int, str]:
    """Return the number of attention heads and the origin of this number."""
    if draft.options.num_heads is not None:
        return draft.options.num_heads, "option"
    if "num_attention_heads" in stored:
        return stored["num_attention_heads"], "config.json"
    found = NUM_HEADS_BY_WIDTH.get(width, width // 64)
    if width in NUM_HEADS_BY_WIDTH or width % 64 == 0:
        usual = "that are usual for this" if width in NUM_HEADS_BY_WIDTH else "of 64 channels for"
        draft.add_guess(
            "num_attention_heads",
            f"no tensor holds it; {found} are the heads {usual} width {width}. If the source has "
            "another number, give --num-heads",
        )
        rule = f"hidden size {width}" if width in NUM_HEADS_BY_WIDTH else "width / 64"
        return found, f"{GUESS} ({rule})"
    raise ValueError(
        "the number of attention heads is not stored in the weights, and the convention of 64 "
        f"channels per head does not fit the hidden size ({width}). Give --num-heads."
    )


def _check_config_json(draft: Draft, stored: dict[str, Any]) -> None:
    """Check that config.json does not contradict the weights."""
    for name in ("hidden_size", "num_hidden_layers", "patch_size", "num_register_tokens"):
        if name in stored and stored[name] != draft.fields[name]:
            raise ValueError(
                f"config.json must match the weights: it has {name} {stored[name]}, the weights "
                f"{draft.fields[name]}. Either they belong to different models, or tensors are "
                "missing."
            )


__all__ = ["GATED_MLP", "count_blocks", "exact_mlp_ratio", "infer_config", "most_common"]
