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

from .gated_mlp import ACTIVATION, GATE
from .infer_grid import GUESS, POSITIONS, REGISTERS, infer_grid, state_image_size
from .weight_format import Draft

PROJECTION = "embeddings.patch_embeddings.projection.weight"
# DINOv3's values (arXiv 2508.10104, Sec. 3.2); the rescaling is used in training only.
ROTARY_FIELDS = {"rope_theta": 100.0, "pos_embed_rescale": 2.0}

# Fields that config.json may hold, too, and that must be those of the weights.
CHECKED = (
    "hidden_size",
    "num_hidden_layers",
    "patch_size",
    "num_register_tokens",
    "use_gated_mlp",
)


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
    weights = {
        name.removeprefix(prefix): tensor
        for name, tensor in draft.weights.items()
        if name.startswith(prefix)
    }
    is_gated = any(GATE in name for name in weights)
    first_layer = "mlp.up_proj.weight" if is_gated else "mlp.fc1.weight"
    required = ["layers.0.layernorm_before.weight", f"layers.0.{first_layer}", PROJECTION]
    required += [] if draft.format.rotary else [POSITIONS]
    draft.check_weights(prefix + name for name in required)
    num_layers = count_blocks(draft, prefix)
    norms = [tensor for name, tensor in weights.items() if name.endswith("layernorm_before.weight")]
    hidden = [tensor for name, tensor in weights.items() if name.endswith(first_layer)]
    projection = weights[PROJECTION]
    if projection.dim() != 4 or projection.shape[2] != projection.shape[3]:
        raise ValueError(
            f"{draft.source_name(prefix + PROJECTION)} must have the shape (hidden, channels, "
            f"patch, patch), because patches are square and flat; got {tuple(projection.shape)}."
        )
    width = most_common(len(tensor) for tensor in norms)
    mlp_ratio = exact_mlp_ratio(most_common(len(tensor) for tensor in hidden), width)
    num_registers = _count_registers(draft, prefix, width)
    for field, value in (
        ("hidden_size", width),
        ("num_hidden_layers", num_layers),
        ("mlp_ratio", mlp_ratio),
        ("patch_size", projection.shape[2]),
        ("num_channels", projection.shape[1]),
        ("use_gated_mlp", is_gated),
        ("num_register_tokens", num_registers),
        ("use_mask_token", "embeddings.mask_token" in weights),
    ):
        draft.set_field(field, value, "weights")
    _infer_biases(draft, weights)
    if any("layer_scale" in name for name in weights):
        # The initial value of a training run; the trained values are in the weights.
        draft.set_field("layerscale_value", 1.0, "convention (the values are in the weights)")
    if draft.format.rotary:
        _set_rotary_positions(draft)
    else:
        _infer_positions(draft, prefix, num_registers)


def _infer_biases(draft: Draft, weights: Iterable[str]) -> None:
    """Set which of query, key and value have a bias; most formats have all three or none."""
    found = [
        any(name.endswith(f".attention.{part}_proj.bias") for name in weights) for part in "qkv"
    ]
    if not draft.format.separate_biases:
        found = [any(found)] * 3
    draft.set_field("qkv_bias", found[0], "weights")
    for name, has_bias in zip(("key_bias", "value_bias"), found[1:], strict=True):
        if has_bias != found[0]:
            draft.set_field(name, has_bias, "weights")


def _set_rotary_positions(draft: Draft) -> None:
    """Set the fields of rotary positions, which fit images of any size."""
    stored = _read_config_json(draft)
    draft.set_field("position_embedding_type", "rotary", f"convention of {draft.format.name}")
    (height, width), origin = state_image_size(draft, stored)
    draft.set_field("image_size", height if height == width else [height, width], origin)
    for name, usual in ROTARY_FIELDS.items():
        if name in stored:
            draft.set_field(name, stored[name], "config.json")
        else:
            draft.set_field(name, usual, "convention")
    for name in ("pos_embed_shift", "pos_embed_jitter"):  # only if they are used
        if stored.get(name) is not None:
            draft.set_field(name, stored[name], "config.json")


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
    usual_act = ACTIVATION if draft.fields["use_gated_mlp"] else "gelu"
    known_act = "hidden_act" in stored
    draft.set_field(
        "hidden_act",
        stored.get("hidden_act", usual_act),
        "config.json" if known_act else "convention",
    )
    if "problem_type" in stored:
        draft.set_field("problem_type", stored["problem_type"], "config.json")
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
    by_width = draft.format.num_heads_by_width
    found = by_width.get(width, width // 64)
    if width in by_width or width % 64 == 0:
        usual = "that are usual for this" if width in by_width else "of 64 channels for"
        draft.add_guess(
            "num_attention_heads",
            f"no tensor holds it; {found} are the heads {usual} width {width}. If the source has "
            "another number, give --num-heads",
        )
        rule = f"hidden size {width}" if width in by_width else "width / 64"
        return found, f"{GUESS} ({rule})"
    raise ValueError(
        "the number of attention heads is not stored in the weights, and the convention of 64 "
        f"channels per head does not fit the hidden size ({width}). Give --num-heads."
    )


def _check_config_json(draft: Draft, stored: dict[str, Any]) -> None:
    """Check that config.json does not contradict the weights."""
    fields = draft.fields
    own = {
        **{name: fields[name] for name in CHECKED},
        "query_bias": fields["qkv_bias"],
        "key_bias": fields.get("key_bias", fields["qkv_bias"]),
        "value_bias": fields.get("value_bias", fields["qkv_bias"]),
    }
    for name, found in own.items():
        if name in stored and stored[name] != found:
            raise ValueError(
                f"config.json must match the weights: it has {name} {stored[name]}, the weights "
                f"{found}. Either they belong to different models, or tensors are "
                "missing."
            )


__all__ = ["count_blocks", "exact_mlp_ratio", "infer_config", "most_common"]
