"""Conversion of an encoder to an ONNX graph, for any batch and image size."""

# B batch · C channels · H, W pixels · E embedding

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ...configuration.configuration_selfvit import SelfViTConfig


def to_onnx(module: nn.Module, config: SelfViTConfig, device: torch.device | str = "cpu") -> Any:
    """Convert a module from `pixel_values` (B, C, H, W) to `embedding` (B, E).

    Args:
        module: Module that takes pixel values.
        config: Configuration of its encoder.
        device: Device of the module.

    Returns:
        `torch.onnx.ONNXProgram`, without the stack traces of its nodes, which contain local paths.
    """
    patch = config.patch_size
    # Unusual sizes, so that the exporter takes none of them for a constant of the model. The size
    # of its own grid would be one, because its positions are not resized.
    rows, columns = (5, 3) if tuple(config.grid_size) == (3, 5) else (3, 5)
    example = torch.zeros(2, config.num_channels, rows * patch, columns * patch, device=device)
    sizes = {
        0: torch.export.Dim("batch", min=1),
        2: patch * torch.export.Dim("rows", min=1),
        3: patch * torch.export.Dim("columns", min=1),
    }
    with silence_logging():
        program: Any = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            dynamic_shapes={"pixel_values": sizes},
            input_names=["pixel_values"],
            output_names=["embedding"],
            verbose=False,
        )
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
    return program


@contextmanager
def silence_logging() -> Iterator[None]:
    """Silence the exporter and the quantizer; a comparison of vectors detects failures."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


__all__ = ["silence_logging", "to_onnx"]
