"""Layers of the encoder: patch embedding, attention, MLP and block.

Pre-norm ViT (arXiv 2010.11929) with the semantics of timm and DINO. Modules are named as in
transformers, so that PEFT targets, quantizers and the weights of its ViT can be used unchanged.
"""

# B batch · C channels · H, W pixels · P patch size · N patches · K patches kept
# T tokens (class, registers, patches) · Q query tokens · D hidden · A attention heads

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from ..configuration.configuration_selfvit import SelfViTConfig
from .attention_functions import attention_function
from .masking import gather_patches
from .position_embeddings import (
    Rotation,
    interpolate_position_embeddings,
    rotate,
    sincos_position_embeddings,
)


class SelfViTPatchProjection(nn.Conv2d):
    """Convolution over non-overlapping patches that can skip patches.

    Both ways of computing it are in `forward`, because Accelerate's offloading and FSDP load the
    weights when a module is called.
    """

    def forward(self, pixel_values: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, N, D), or (B, K, D) for the patches `ids_keep` (B, K)."""
        if ids_keep is None:
            return super().forward(pixel_values).flatten(2).transpose(1, 2)
        rows, columns = self.kernel_size
        cells = pixel_values.unflatten(3, (-1, columns)).unflatten(2, (-1, rows))
        cells = cells.permute(0, 2, 4, 1, 3, 5)  # (B, H/P, W/P, C, P, P), a view
        images = torch.arange(len(ids_keep), device=ids_keep.device).unsqueeze(1)
        num_columns = cells.shape[2]
        # copies the kept patches only
        patches = cells[images, ids_keep // num_columns, ids_keep % num_columns]
        return F.linear(patches.flatten(2), self.weight.flatten(1), self.bias)  # (B, K, C*P*P)


class SelfViTPatchEmbeddings(nn.Module):
    """Project each patch of P x P pixels to a token."""

    def __init__(self, config: SelfViTConfig):
        super().__init__()
        self.num_channels = config.num_channels
        self.patch_size = config.patch_size
        self.projection = SelfViTPatchProjection(
            config.num_channels,
            config.hidden_size,
            kernel_size=config.patch_size,
            stride=config.patch_size,
        )

    def grid_of(self, pixel_values: Tensor) -> tuple[int, int]:
        """Return the grid size (rows, columns) in patches.

        Raises:
            ValueError: If the shape is not (B, C, H, W) with H and W multiples of the patch size.
        """
        if pixel_values.dim() != 4 or pixel_values.shape[1] != self.num_channels:
            raise ValueError(
                f"pixel_values must be (batch, {self.num_channels}, height, width), "
                f"got {tuple(pixel_values.shape)}; the image processor converts gray images "
                "(do_convert_rgb=True)."
            )
        for name, size in (("height", pixel_values.shape[2]), ("width", pixel_values.shape[3])):
            if size < 1 or size % self.patch_size:
                below = size // self.patch_size * self.patch_size
                choices = [str(choice) for choice in (below, below + self.patch_size) if choice > 0]
                raise ValueError(
                    f"{name} ({size}) must be a multiple of patch_size ({self.patch_size}); "
                    f"resize the image to {' or '.join(choices)} pixels."
                )
        return pixel_values.shape[2] // self.patch_size, pixel_values.shape[3] // self.patch_size

    def forward(self, pixel_values: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Return (B, N, D), or (B, K, D) for the patches `ids_keep` (B, K) only."""
        return self.projection(pixel_values, ids_keep)


class SelfViTEmbeddings(nn.Module):
    """Class token, register tokens, and patches with position embeddings.

    Rotary positions are not added to the tokens, so there are no embeddings for them here.
    """

    position_embeddings: Tensor | None

    def __init__(self, config: SelfViTConfig):
        super().__init__()
        self.grid_size = config.grid_size
        self.position_embedding_type = config.position_embedding_type
        self.interpolate_antialias = config.interpolate_antialias
        rows, columns = config.grid_size
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.register_tokens = (
            nn.Parameter(torch.empty(1, config.num_register_tokens, config.hidden_size))
            if config.num_register_tokens
            else None
        )
        self.mask_token = (
            nn.Parameter(torch.empty(1, 1, config.hidden_size)) if config.use_mask_token else None
        )
        self.patch_embeddings = SelfViTPatchEmbeddings(config)
        if config.position_embedding_type == "learned":
            self.position_embeddings = nn.Parameter(
                torch.empty(1, 1 + rows * columns, config.hidden_size)
            )
        elif config.position_embedding_type == "sincos":
            fixed = sincos_position_embeddings(config.hidden_size, config.grid_size)
            self.register_buffer("position_embeddings", fixed)
        else:
            self.position_embeddings = None

    def forward(
        self,
        pixel_values: Tensor,
        ids_keep: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
    ) -> Tensor:
        """Return (B, T, D)."""
        grid = self.patch_embeddings.grid_of(pixel_values)
        batch_size = pixel_values.shape[0]
        patches = self.patch_embeddings(pixel_values, ids_keep)  # (B, N or K, D)
        if bool_masked_pos is not None:
            if self.mask_token is None:
                raise ValueError(
                    "bool_masked_pos needs a mask token, which the model does not have; set "
                    "use_mask_token=True in the configuration."
                )
            masked = bool_masked_pos.bool()
            if ids_keep is not None:
                masked = masked.gather(1, ids_keep)
            patches = torch.where(masked.unsqueeze(-1), self.mask_token.to(patches.dtype), patches)
        class_token: Tensor = self.cls_token
        if self.position_embeddings is not None:
            positions = interpolate_position_embeddings(
                self.position_embeddings, self.grid_size, grid, self.interpolate_antialias
            )
            class_position, patch_positions = positions[:, :1], positions[:, 1:]
            if ids_keep is not None:
                patch_positions = gather_patches(
                    patch_positions.expand(batch_size, -1, -1), ids_keep
                )
            class_token, patches = class_token + class_position, patches + patch_positions
        prefix = [class_token.expand(batch_size, -1, -1)]
        if self.register_tokens is not None:
            # registers have no position embedding
            prefix.append(self.register_tokens.expand(batch_size, -1, -1))
        return torch.cat([*prefix, patches], dim=1)


class SelfViTAttention(nn.Module):
    """Multi-head self-attention through transformers' attention interface."""

    def __init__(self, config: SelfViTConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False  # read by the attention interface
        query_bias, key_bias, value_bias = config.projection_biases
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=query_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=key_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=value_bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: Tensor,
        num_queries: int | None = None,
        rotation: Rotation | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor, Tensor | None]:
        """Return the tokens (B, Q, D) and, with eager attention, the weights (B, A, Q, T).

        Only the first Q = `num_queries` tokens are queries; all T if None. `rotation` holds the
        rotary positions of the T tokens, if the encoder has them.
        """
        device = hidden_states.device.type
        if hidden_states.dtype == torch.float32 and torch.is_autocast_enabled(device):
            # once, because autocast would cast and save them for each projection
            hidden_states = hidden_states.to(torch.get_autocast_dtype(device))
        queries = hidden_states[:, :num_queries]

        def split_heads(tokens: Tensor) -> Tensor:
            return tokens.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, A, T, D/A)

        query, key = split_heads(self.q_proj(queries)), split_heads(self.k_proj(hidden_states))
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        attend = attention_function(self.config._attn_implementation, query)
        attended, weights = attend(
            self,
            query,
            key,
            split_heads(self.v_proj(hidden_states)),
            None,
            scaling=self.scaling,
            dropout=0.0,
            **kwargs,
        )
        return self.o_proj(attended.reshape(queries.shape)), weights


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Call elementwise operations and a linear layer; save only their inputs for backpropagation.

    The backward pass repeats the elementwise operations, and stops before the product. Results and
    gradients are the same bit for bit.
    """
    if not (torch.is_grad_enabled() and inputs[0].requires_grad):
        return function(*inputs)
    result: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return result


class SelfViTMLP(nn.Module):
    """Two linear layers with an activation in between."""

    def __init__(self, config: SelfViTConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return recomputed(self._project, self.fc1(hidden_states))

    def _project(self, hidden: Tensor) -> Tensor:
        return self.fc2(self.activation(hidden))


class SelfViTGatedMLP(nn.Module):
    """MLP whose hidden layer is multiplied by a gate (arXiv 2002.05202, Sec. 2).

    down(activation(gate(x)) * up(x)); with SiLU as the activation this is SwiGLU.
    """

    def __init__(self, config: SelfViTConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return recomputed(self._project, self.gate_proj(hidden_states), self.up_proj(hidden_states))

    def _project(self, gate: Tensor, values: Tensor) -> Tensor:
        return self.down_proj(self.activation(gate) * values)


class SelfViTLayerScale(nn.Module):
    """Learned scale per channel of a residual branch (arXiv 2103.17239, Sec. 2)."""

    def __init__(self, config: SelfViTConfig):
        super().__init__()
        self.lambda1 = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return hidden_states * self.lambda1


class SelfViTDropPath(nn.Module):
    """Stochastic depth: drop the residual branch of some images in training (arXiv 1603.09382)."""

    def __init__(self, drop_probability: float):
        super().__init__()
        self.drop_probability = drop_probability

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        if self.drop_probability == 0 or not self.training:
            return hidden_states
        keep_probability = 1 - self.drop_probability
        keep = hidden_states.new_empty(hidden_states.shape[0], 1, 1).bernoulli_(keep_probability)
        return hidden_states * keep / keep_probability

    def extra_repr(self) -> str:
        """Return the probability, for printing the model."""
        return f"drop_probability={self.drop_probability:.3f}"


class SelfViTLayer(GradientCheckpointingLayer):
    """Pre-norm block: attention and MLP, each on a residual branch."""

    def __init__(self, config: SelfViTConfig, drop_path_rate: float = 0.0):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = SelfViTAttention(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = SelfViTGatedMLP(config) if config.use_gated_mlp else SelfViTMLP(config)
        has_scale = config.layerscale_value is not None
        self.layer_scale1 = SelfViTLayerScale(config) if has_scale else nn.Identity()
        self.layer_scale2 = SelfViTLayerScale(config) if has_scale else nn.Identity()
        self.drop_path = SelfViTDropPath(drop_path_rate)

    def forward(
        self,
        hidden_states: Tensor,
        num_queries: int | None = None,
        rotation: Rotation | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Tensor:
        """(B, T, D) -> (B, T, D), or (B, Q, D) for the first `num_queries` tokens."""
        attended, _ = self.attention(
            self.layernorm_before(hidden_states), num_queries, rotation, **kwargs
        )
        hidden_states = hidden_states[:, :num_queries] + self.drop_path(self.layer_scale1(attended))
        transformed = self.mlp(self.layernorm_after(hidden_states))
        return hidden_states + self.drop_path(self.layer_scale2(transformed))


__all__ = [
    "SelfViTAttention",
    "SelfViTDropPath",
    "SelfViTEmbeddings",
    "SelfViTLayer",
    "SelfViTLayerScale",
]
