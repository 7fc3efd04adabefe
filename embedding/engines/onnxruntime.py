"""Engine that runs the encoder in ONNX Runtime, on a CPU (extra `onnx`)."""

# B batch · C channels · H, W pixels · E embedding

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...modeling.modeling_selfvit import SelfViTModel
from .encoder import FusedEncoder
from .interface import CopyingEngine, Selection
from .onnx_graph import to_onnx

NAME = "onnxruntime"


class ONNXRuntimeEngine(CopyingEngine):
    """Engine that converts the encoder to an ONNX graph, for any batch and image size.

    Args:
        model: Model on the CPU.
        selection: Precision: float32.

    Raises:
        ImportError: If a package of the extra is not installed.
    """

    def __init__(self, model: SelfViTModel, selection: Selection):
        super().__init__(model, selection)
        self._embeddings = model.embeddings.patch_embeddings
        self._session = _open_session(model)

    def __call__(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, E), float32, see `Engine`."""
        self._embeddings.grid_of(pixel_values)  # checks the shape
        inputs = {"pixel_values": pixel_values.float().contiguous().numpy()}
        (vectors,) = self._session.run(None, inputs)
        return torch.from_numpy(vectors)


class _WithPositions(nn.Module):
    """Encoder that computes the position embeddings of its grid in the graph."""

    def __init__(self, encoder: FusedEncoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, pixel_values: Tensor) -> Tensor:
        patch_size = self.encoder.patch_size
        grid = (pixel_values.shape[2] // patch_size, pixel_values.shape[3] // patch_size)
        return self.encoder(pixel_values, self.encoder.patch_positions(grid))


def _open_session(model: SelfViTModel) -> Any:
    """Convert the encoder through a temporary file, which a graph above 2 GB needs."""
    import onnxruntime

    program = to_onnx(_WithPositions(FusedEncoder(model)), model.config)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="selfvit-onnx-") as folder:
        path = Path(folder) / "model.onnx"
        program.save(path, external_data=True)
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


__all__ = ["NAME", "ONNXRuntimeEngine"]
