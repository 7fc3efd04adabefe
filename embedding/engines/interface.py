"""Interface of the engines: pixel values in, vectors out."""

# B batch · C channels · H, W pixels · E embedding

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ...modeling.modeling_selfvit import SelfViTModel
from .quantization import Quantization

AUTO = "auto"


@dataclass(frozen=True)
class Selection:
    """Engine by name, and the precision that it computes in.

    Args:
        engine: "torch", "openvino" or "onnxruntime".
        dtype: Precision; int8 for linear layers in 8 bits.
        quantization: Rounding in int8; None in other precisions.
    """

    engine: str
    dtype: torch.dtype
    quantization: Quantization | None = None

    @property
    def dtype_name(self) -> str:
        """Name of the precision: "float32"."""
        return name_of(self.dtype)

    def __str__(self) -> str:
        return f"{self.engine} in {self.dtype_name}"


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a precision: "float32"."""
    return str(dtype).removeprefix("torch.")


class Engine(ABC):
    """Function from pixel values to vectors.

    Args:
        model: Model that the engine runs, or whose weights it copies.
        selection: Name and precision of the engine.
    """

    def __init__(self, model: SelfViTModel, selection: Selection):
        self.selection = selection

    @abstractmethod
    def __call__(self, pixel_values: Tensor) -> Tensor:
        """Compute vectors.

        Args:
            pixel_values: Normalized pixels, (B, C, H, W).

        Returns:
            (B, E), float32.

        Raises:
            ValueError: If the shape of the pixels does not match the model.
        """

    @abstractmethod
    def is_current(self, model: SelfViTModel) -> bool:
        """Return whether the engine computes with the weights that a model has now."""


class CopyingEngine(Engine):
    """Engine with copies of the weights, which a change of the model makes obsolete.

    Args:
        model: Model on the CPU.
        selection: Name and precision of the engine.
    """

    def __init__(self, model: SelfViTModel, selection: Selection):
        super().__init__(model, selection)
        self._copied = _state_of(model)

    def is_current(self, model: SelfViTModel) -> bool:
        """Return whether a model has the weights that were copied."""
        return self._copied == _state_of(model)


def _state_of(model: SelfViTModel) -> list[tuple[int, int]]:
    """Return places and versions of the weights, which change with them."""
    return [
        (tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
        for tensor in model.parameters()
    ]


__all__ = ["AUTO", "CopyingEngine", "Engine", "Selection", "name_of"]
