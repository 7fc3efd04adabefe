"""Engine that runs the encoder in OpenVINO, on a CPU (extra `openvino`)."""

# B batch · N patches · D hidden · E embedding

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from ...modeling.modeling_selfvit import SelfViTModel
from .encoder import FusedEncoder
from .interface import CopyingEngine, Selection
from .onnx_graph import silence_logging
from .quantization import max_weight_here, round_layers

NAME = "openvino"
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVINOEngine(CopyingEngine):
    """Engine that converts the encoder in memory, for any batch and image size.

    Args:
        model: Model on the CPU.
        selection: Precision: float32, bfloat16, or int8 with its quantization.

    Raises:
        ImportError: If OpenVINO is not installed.
        ValueError: If this CPU does not multiply the rounded weights exactly.
    """

    def __init__(self, model: SelfViTModel, selection: Selection):
        super().__init__(model, selection)
        rounding = selection.quantization
        if rounding is not None and rounding.max_weight > max_weight_here():
            raise ValueError(
                f"int8 was calibrated with rounded weights up to {rounding.max_weight}, but sums "
                f"overflow on this CPU above {max_weight_here()}; use a CPU with VNNI or AMX, or "
                "write to a new folder."
            )
        self._embeddings = model.embeddings.patch_embeddings
        self._encoder = FusedEncoder(model).eval()
        self._positions: dict[tuple[int, int], Any] = {}
        other_dtype = selection.dtype_name
        if rounding is not None:
            round_layers(self._encoder, rounding.ranges, rounding.max_weight)
            other_dtype = rounding.other_dtype
        self._compiled = _compile(self._encoder, model, PRECISIONS[other_dtype])

    def __call__(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, E), float32, see `Engine`."""
        grid = self._embeddings.grid_of(pixel_values)
        if grid not in self._positions:
            self._positions[grid] = self._encoder.patch_positions(grid).contiguous().numpy()
        inputs = [pixel_values.float().contiguous().numpy(), self._positions[grid]]
        (vectors,) = self._compiled(inputs, share_inputs=True).values()
        return torch.from_numpy(vectors)


def _compile(encoder: FusedEncoder, model: SelfViTModel, precision: str) -> Any:
    """Convert an encoder, and compile it for this CPU."""
    import openvino

    config = model.config
    rows, columns = 2, 3
    size = (rows * config.patch_size, columns * config.patch_size)
    positions = encoder.patch_positions((rows, columns))
    example = (torch.zeros(2, config.num_channels, *size), positions)
    shapes = [[-1, config.num_channels, -1, -1], [len(positions), -1, positions.shape[2]]]
    with silence_logging():  # torch warns of the tracing that OpenVINO does
        converted = openvino.convert_model(encoder, example_input=example, input=shapes)
    options = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        # processes of one machine would all be pinned to its first cores
        "ENABLE_CPU_PINNING": False,
    }
    return _core().compile_model(converted, "CPU", options)


@cache
def _core() -> Any:
    """Return the core of this process, which is never freed.

    Its CPU plugin sets an alternate stack for the signals of the thread that creates it. If another
    thread freed the plugin, as garbage collection may, the memory of that stack would be unmapped,
    and the next signal would crash the process.
    """
    import openvino

    return openvino.Core()


__all__ = ["NAME", "PRECISIONS", "OpenVINOEngine"]
