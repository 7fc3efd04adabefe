"""Engine that runs PyTorch: the model itself, or a copy with packed weights on a CPU."""

# B batch · T tokens · Q query tokens · A attention heads · D hidden

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers.activations import GELUActivation

from ...modeling.modeling_selfvit import SelfViTModel
from .cpu import cpu_flags
from .encoder import FusedEncoder, PlainLinear, fused_attention
from .interface import CopyingEngine, Engine, Selection

NAME = "torch"
TYPICAL_ROWS = 1024  # tokens of a batch, for which oneDNN chooses the layout of the weights


class TorchEngine(Engine):
    """Engine that runs the model itself, on any device.

    Args:
        model: Model that runs.
        selection: Precision, which is that of the model.
    """

    def __init__(self, model: SelfViTModel, selection: Selection):
        super().__init__(model, selection)
        self.model = model

    def __call__(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, E), float32, see `Engine`."""
        pixel_values = pixel_values.to(self.model.device, non_blocking=True)
        return self.model.embed(pixel_values).float()

    def is_current(self, model: SelfViTModel) -> bool:
        """Return whether it is the model that runs, in the same precision."""
        return model is self.model and model.dtype == self.selection.dtype


class CastEngine(CopyingEngine):
    """Engine that runs a copy of the model in another precision, on any device.

    Args:
        model: Model to copy.
        selection: Precision.
    """

    def __init__(self, model: SelfViTModel, selection: Selection):
        super().__init__(model, selection)
        copied: Any = copy.deepcopy(model)
        self.model: SelfViTModel = copied.to(selection.dtype)

    def __call__(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, E), float32, see `Engine`."""
        pixel_values = pixel_values.to(self.model.device, non_blocking=True)
        return self.model.embed(pixel_values).float()


class PackedEngine(CopyingEngine):
    """Engine that runs a copy of the model on a CPU, with weights in the layout of oneDNN.

    Args:
        model: Model on the CPU.
        selection: Precision.

    Raises:
        ValueError: If a linear layer is not a plain one.
    """

    def __init__(self, model: SelfViTModel, selection: Selection):
        super().__init__(model, selection)
        self._embeddings = model.embeddings.patch_embeddings
        # Measured in bfloat16: with AMX one call is faster (S/16: by 1.09 in all), without AMX two
        # products are (2.2 times the attention).
        attend = fused_attention if "amx_bf16" in cpu_flags() else unfused_attention
        self._encoder = FusedEncoder(model, selection.dtype, PackedLinear, attend).eval()
        self._positions: dict[tuple[int, int], Tensor] = {}

    def __call__(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, E), float32, see `Engine`."""
        grid = self._embeddings.grid_of(pixel_values)
        if grid not in self._positions:
            positions = self._encoder.patch_positions(grid)
            self._positions[grid] = positions.to(self.selection.dtype)
        pixel_values = pixel_values.to(self.selection.dtype)
        return self._encoder(pixel_values, self._positions[grid]).float()


class PackedLinear(PlainLinear):
    """Linear layer whose weight oneDNN reads without another copy.

    Args:
        weight: (out, in).
        bias: (out,), or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__(torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_ROWS), bias)

    def _run(self, tokens: Tensor, *after: Any) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(tokens, self.weight, self.bias, *after)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, in) -> (B, T, out)."""
        return self._run(tokens, "none", [], "")

    def add_to(self, residual: Tensor, tokens: Tensor) -> Tensor:
        """Return residual (B, T, out) plus the result for tokens (B, T, in)."""
        return torch.ops.mkldnn._linear_pointwise(tokens, residual, self.weight, self.bias, "add")

    def activated(self, tokens: Tensor, activation: nn.Module) -> Tensor:
        """Return the activation of the result, (B, T, in) -> (B, T, out)."""
        if type(activation) is GELUActivation and activation.act is F.gelu:
            return self._run(tokens, "gelu", [], "none")
        return activation(self(tokens))


def unfused_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return attention by two matrix products and a softmax; the scale is part of the query.

    Args:
        query: (B, A, Q, D/A).
        key: (B, A, T, D/A).
        value: (B, A, T, D/A).

    Returns:
        (B, A, Q, D/A).
    """
    return (query @ key.transpose(-2, -1)).softmax(dim=-1) @ value


__all__ = [
    "NAME",
    "CastEngine",
    "PackedEngine",
    "PackedLinear",
    "TorchEngine",
    "unfused_attention",
]
