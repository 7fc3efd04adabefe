"""Encoder for inference: fused projections, and only the tokens that the pooling needs.

It holds copies of a model's weights in another arrangement: q, k and v are one matrix, the scale
of the attention is part of q, and each LayerScale is part of the linear layer before it. The model
itself stays the reference.
"""

# B batch · C channels · H, W pixels · P patch size · N patches · T tokens · Q query tokens
# D hidden · A attention heads · E embedding

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ...modeling.layers import (
    SelfViTAttention,
    SelfViTGatedMLP,
    SelfViTLayer,
    SelfViTLayerScale,
)
from ...modeling.modeling_selfvit import SelfViTModel
from ...modeling.pooling import pool
from ...modeling.position_embeddings import (
    RotaryPositions,
    Rotation,
    interpolate_position_embeddings,
    rotate,
)


class PlainLinear(nn.Module):
    """Linear layer of PyTorch, with a residual connection or an activation after it.

    Args:
        weight: (out, in).
        bias: (out,), or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, in) -> (B, T, out)."""
        return F.linear(tokens, self.weight, self.bias)  # type: ignore[arg-type]

    def add_to(self, residual: Tensor, tokens: Tensor) -> Tensor:
        """Return residual (B, T, out) plus the result for tokens (B, T, in)."""
        return residual + self(tokens)

    def activated(self, tokens: Tensor, activation: nn.Module) -> Tensor:
        """Return the activation of the result, (B, T, in) -> (B, T, out)."""
        return activation(self(tokens))


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def fused_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return attention by one call; the scale is part of the query.

    Args:
        query: (B, A, Q, D/A).
        key: (B, A, T, D/A).
        value: (B, A, T, D/A).

    Returns:
        (B, A, Q, D/A).
    """
    return F.scaled_dot_product_attention(query, key, value, scale=1.0)


class FusedBlock(nn.Module):
    """Block of a `FusedEncoder`.

    Args:
        layer: Block of the model.
        dtype: Data type of the weights.
        linear: Class of the linear layers.
        attend: Function that computes attention.
        num_queries: Number of first tokens to compute; None for all.
    """

    def __init__(
        self,
        layer: SelfViTLayer,
        dtype: torch.dtype,
        linear: type[PlainLinear],
        attend: Attend,
        num_queries: int | None,
    ):
        super().__init__()
        attention = layer.attention
        self.head_dim = attention.head_dim
        self.attend = attend
        self.num_queries = num_queries
        self.norm1, self.norm2 = (
            _norm_of(norm, dtype) for norm in (layer.layernorm_before, layer.layernorm_after)
        )
        query, key, value = _projections(attention)
        if num_queries is None:
            self.qkv = linear(*_joined([query, key, value], dtype))
        else:  # the other tokens are keys and values only
            self.query = linear(*_joined([query], dtype))
            self.key_value = linear(*_joined([key, value], dtype))
        self.out = linear(*_scaled(attention.o_proj, layer.layer_scale1, dtype))
        *first, last = _mlp_layers(layer)
        self.is_gated = len(first) > 1
        self.fc1 = linear(*_joined([(part.weight, part.bias) for part in first], dtype))
        self.activation: Any = layer.mlp.activation
        self.fc2 = linear(*_scaled(last, layer.layer_scale2, dtype))

    def _split(self, tokens: Tensor, count: int) -> Tensor:
        """(B, T, count D) -> (count, B, A, T, D/A), a view."""
        return tokens.unflatten(-1, (count, -1, self.head_dim)).permute(2, 0, 3, 1, 4)

    def forward(self, hidden_states: Tensor, rotation: Rotation | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D), or (B, Q, D); `rotation` holds rotary positions."""
        normalized = self.norm1(hidden_states)
        if self.num_queries is None:
            query, key, value = self._split(self.qkv(normalized), 3).unbind()
        else:
            hidden_states = hidden_states[:, : self.num_queries]
            first = normalized[:, : self.num_queries].contiguous()
            query = self._split(self.query(first), 1)[0]
            key, value = self._split(self.key_value(normalized), 2).unbind()
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        attended = self.attend(query, key, value).transpose(1, 2).flatten(2)  # (B, Q, D)
        hidden_states = self.out.add_to(hidden_states, attended)
        normalized = self.norm2(hidden_states)
        if self.is_gated:
            gate, hidden = self.fc1(normalized).chunk(2, dim=-1)
            transformed = self.activation(gate) * hidden
        else:
            transformed = self.fc1.activated(normalized, self.activation)
        return self.fc2.add_to(hidden_states, transformed)


class FusedEncoder(nn.Module):
    """Function from pixel values to vectors, with the weights of a model.

    Args:
        model: Model; it is not changed, and later changes of it have no effect here.
        dtype: Data type of the weights and of the computation.
        linear: Class of the linear layers.
        attend: Function that computes attention.

    Raises:
        ValueError: If a linear layer is not a plain one, for example because it has an adapter.
    """

    def __init__(
        self,
        model: SelfViTModel,
        dtype: torch.dtype = torch.float32,
        linear: type[PlainLinear] = PlainLinear,
        attend: Attend = fused_attention,
    ):
        super().__init__()
        check_linear_layers(model)
        config = model.config
        self.pooling = config.pooling
        self.needs_patches = config.pooling in ("mean", "cls+mean", "gem")
        self.num_class_blocks = config.num_class_blocks
        self.num_prefix_tokens = config.num_prefix_tokens
        self.patch_size = config.patch_size
        self.grid_size = config.grid_size
        embeddings = model.embeddings
        projection = embeddings.patch_embeddings.projection
        self.register_buffer("patch_weight", _copy(projection.weight, dtype))
        self.register_buffer("patch_bias", _copy(projection.bias, dtype))
        self.interpolate_antialias = config.interpolate_antialias
        self.rotary_positions = None
        prefix: list[Tensor] = [embeddings.cls_token]
        stored = embeddings.position_embeddings
        if stored is None:
            self.rotary_positions = RotaryPositions(config).eval()
        else:
            prefix[0] = prefix[0] + stored[:, :1]
        if embeddings.register_tokens is not None:
            prefix.append(embeddings.register_tokens)
        self.register_buffer("prefix", _copy(torch.cat(prefix, dim=1), dtype))
        self.register_buffer("positions", _copy(stored, torch.float32))
        last = len(model.layers) - 1
        self.blocks = nn.ModuleList(
            FusedBlock(
                layer,  # type: ignore[arg-type]
                dtype,
                linear,
                attend,
                num_queries=1 if index == last and not self.needs_patches else None,
            )
            for index, layer in enumerate(model.layers)
        )
        self.norm = _norm_of(model.layernorm, dtype)

    def patch_positions(self, grid: tuple[int, int]) -> Tensor:
        """Return the position embeddings of the patches of a grid, (1, N, D), float32.

        Rotary positions are cosines and sines of all tokens, (2, T, D/A).
        """
        if self.rotary_positions is not None:
            cosines, sines = self.rotary_positions(torch.zeros(1), grid)
            return torch.cat([cosines[0], sines[0]])
        positions: Any = self.positions
        return interpolate_position_embeddings(
            positions, self.grid_size, grid, self.interpolate_antialias
        )[:, 1:]

    def forward(self, pixel_values: Tensor, positions: Tensor) -> Tensor:
        """Compute vectors.

        Args:
            pixel_values: (B, C, H, W), of the encoder's data type.
            positions: Result of `patch_positions`, of the same data type.

        Returns:
            (B, E), of the same data type.
        """
        patches = F.conv2d(
            pixel_values,
            self.patch_weight,  # type: ignore[arg-type]
            self.patch_bias,  # type: ignore[arg-type]
            stride=self.patch_size,
        )
        patches = patches.flatten(2).transpose(1, 2)  # (B, N, D)
        rotation = None
        if self.rotary_positions is None:
            patches = patches + positions
        else:
            rotation = positions[:1].unsqueeze(1), positions[1:].unsqueeze(1)
        prefix: Any = self.prefix
        hidden_states = torch.cat([prefix.expand(patches.shape[0], -1, -1), patches], dim=1)
        class_tokens = []
        first = len(self.blocks) - self.num_class_blocks
        for index, block in enumerate(self.blocks):
            hidden_states = block(hidden_states, rotation)
            if index >= first:
                class_tokens.append(self.norm(hidden_states[:, 0]))
        normalized = None
        if self.needs_patches:
            normalized = self.norm(hidden_states[:, self.num_prefix_tokens :])
        return pool(class_tokens, normalized, self.pooling)


def check_linear_layers(model: SelfViTModel) -> None:
    """Check that the weights of all linear layers are all that they compute with.

    Args:
        model: Model.

    Raises:
        ValueError: If a layer is of another class, as with adapters and quantized weights.
    """
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, SelfViTLayer)
        attention = layer.attention
        projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        for linear in (*projections, *_mlp_layers(layer)):
            if type(linear) is not nn.Linear:
                raise ValueError(
                    f"the engine needs plain linear layers, but block {index} has a "
                    f"{type(linear).__name__}; use engine torch with dtype float32, or merge the "
                    "adapters."
                )


def _mlp_layers(layer: SelfViTLayer) -> tuple[nn.Linear, ...]:
    """Return the layers of the MLP, the last one last; a gated MLP has two before it."""
    mlp = layer.mlp
    if isinstance(mlp, SelfViTGatedMLP):
        return mlp.gate_proj, mlp.up_proj, mlp.down_proj
    return mlp.fc1, mlp.fc2


def _copy(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.detach().to("cpu", dtype, copy=True)


def _norm_of(norm: nn.Module, dtype: torch.dtype) -> nn.LayerNorm:
    assert isinstance(norm, nn.LayerNorm)
    copied = nn.LayerNorm(norm.normalized_shape, eps=norm.eps, dtype=dtype)
    copied.load_state_dict(norm.state_dict())
    return copied.requires_grad_(False)


Weights = tuple[Tensor, Tensor | None]


def _projections(attention: SelfViTAttention) -> list[Weights]:
    """Return weight and bias of q, k and v; q contains the scale of the attention."""
    query, *others = (
        (layer.weight.float(), None if layer.bias is None else layer.bias.float())
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    weight, bias = query
    scale = attention.scaling
    return [(weight * scale, None if bias is None else bias * scale), *others]


def _joined(parts: list[Weights], dtype: torch.dtype) -> Weights:
    """Return several linear layers of one input as one; a missing bias is zero among others."""
    joined = _copy(torch.cat([weight for weight, _ in parts]), dtype)
    assert joined is not None
    if all(bias is None for _, bias in parts):
        return joined, None
    biases = [weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in parts]
    return joined, _copy(torch.cat(biases), dtype)


def _scaled(layer: nn.Linear, scale: nn.Module, dtype: torch.dtype) -> Weights:
    """Return a linear layer and the LayerScale after it as one linear layer."""
    weight, bias = layer.weight.float(), layer.bias.float()
    if isinstance(scale, SelfViTLayerScale):
        factors = scale.lambda1.float()
        weight, bias = weight * factors.unsqueeze(1), bias * factors
    return _joined([(weight, bias)], dtype)


__all__ = ["FusedBlock", "FusedEncoder", "PlainLinear", "check_linear_layers", "fused_attention"]
