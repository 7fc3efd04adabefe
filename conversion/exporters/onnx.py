"""Export to an ONNX graph, checked with ONNX Runtime, and optionally to an 8-bit graph."""

# B batch · C channels · H, W pixels · P patch size · N images · E embedding

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import BaseImageProcessor

from ...embedding.engines.fidelity import centered_cosines
from ...embedding.engines.onnx_graph import silence_logging, to_onnx
from ...modeling.modeling_selfvit import SelfViTModel
from .fidelity import Fidelity, measure_difference

MODEL, INT8_MODEL = "model.onnx", "model_int8.onnx"
REQUIRED = ("onnx", "onnxscript", "onnxruntime")
NUM_RANDOM_IMAGES = 16  # enough for a meaningful mean
# A protobuf message is limited to 2 GiB; larger weights go to a separate file.
LARGEST_GRAPH = 1.9 * 2**30  # bytes


@dataclass(frozen=True)
class Int8:
    """Settings of the 8-bit graph.

    Args:
        min_cosine: Smallest mean centered cosine with the float32 vectors; the export fails below
            it. -1 accepts any graph.
        pixel_values: Preprocessed images to measure the cosine on, (N, C, H, W). Default: random
            images.
    """

    min_cosine: float
    pixel_values: Tensor | None = None


class _EmbeddingModule(nn.Module):
    """Encoder that returns only the embedding, as a graph needs it."""

    def __init__(self, encoder: SelfViTModel, normalize: bool):
        super().__init__()
        self.encoder = encoder
        self.normalize = normalize

    def forward(self, pixel_values: Tensor) -> Tensor:
        vectors = self.encoder(pixel_values).pooler_output
        return F.normalize(vectors, dim=-1) if self.normalize else vectors


def write_onnx(
    encoder: SelfViTModel,
    processor: BaseImageProcessor,
    folder: Path,
    *,
    normalize: bool = False,
    int8: Int8 | None = None,
) -> Fidelity:
    """Write `model.onnx`, from `pixel_values` (B, C, H, W) to `embedding` (B, E), any B, H and W.

    Args:
        encoder: Encoder in float32.
        processor: Image processor of the checkpoint, saved next to the graph.
        folder: Existing, empty folder.
        normalize: Whether the graph scales vectors to length 1.
        int8: Settings of `model_int8.onnx`, whose linear layers are dynamically quantized to 8
            bits; None to leave it out.

    Raises:
        ImportError: If a package of the extra `onnx` is missing.
        ValueError: If ONNX Runtime gives different vectors, or the cosine of the 8-bit graph is
            too low.
    """
    check_onnx()
    config = encoder.config
    _write_graph(encoder, folder / MODEL, normalize)
    processor.save_pretrained(folder)
    height, width = config.image_height_width
    other = (height + config.patch_size, width + 2 * config.patch_size)
    difference = measure_difference(
        encoder, _open_graph(folder / MODEL), sizes=[(height, width), other], normalize=normalize
    )
    if int8 is None:
        return Fidelity(difference)
    return Fidelity(difference, (_write_int8(encoder, folder, int8),))


def check_onnx() -> None:
    """Check that the packages of the extra `onnx` are installed.

    Raises:
        ImportError: If one is missing; the message contains the install command.
    """
    missing = [name for name in REQUIRED if find_spec(name) is None]
    if missing:
        raise ImportError(
            f'--to onnx needs {", ".join(missing)}. Install with pip install "selfvit[onnx]".'
        )


def _write_graph(encoder: SelfViTModel, path: Path, normalize: bool) -> None:
    num_bytes = sum(weight.numel() * 4 for weight in encoder.state_dict().values())
    program = to_onnx(_EmbeddingModule(encoder, normalize), encoder.config, encoder.device)
    with silence_logging():
        program.save(path, external_data=num_bytes > LARGEST_GRAPH)


def _write_int8(encoder: SelfViTModel, folder: Path, int8: Int8) -> str:
    """Write the 8-bit graph and return a note with its measured quality."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with silence_logging():
        quantize_dynamic(
            folder / MODEL,
            folder / INT8_MODEL,
            op_types_to_quantize=["MatMul", "Gemm"],  # patch projection and norms stay float32
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
    images, description = int8.pixel_values, "the given images"
    if images is None:
        height, width = encoder.config.image_height_width
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(
            NUM_RANDOM_IMAGES, encoder.config.num_channels, height, width, generator=generator
        )
        description = "random pixels; give --data to measure on your images"
    full, quantized = _open_graph(folder / MODEL), _open_graph(folder / INT8_MODEL)
    batches = images.split(NUM_RANDOM_IMAGES)
    cosines = centered_cosines(
        torch.cat([full(batch) for batch in batches]),
        torch.cat([quantized(batch) for batch in batches]),
    )
    mean, smallest = cosines.mean().item(), cosines.min().item()
    sizes = [(folder / name).stat().st_size / 2**20 for name in (MODEL, INT8_MODEL)]
    measured = (
        f"{INT8_MODEL} ({sizes[1]:.1f} MiB instead of {sizes[0]:.1f}): centered cosine with the "
        f"float32 vectors {mean:.4f} on average, {smallest:.4f} at least, over {len(images)} "
        f"images ({description})"
    )
    if not mean >= int8.min_cosine:
        raise ValueError(
            f"{measured}; the average must be at least {int8.min_cosine}, so nothing was written. "
            "Leave --int8 out, or lower --min-cosine to accept this graph."
        )
    return measured + "."


def _open_graph(path: Path) -> Callable[[Tensor], Tensor]:
    """Return a function that runs a graph in ONNX Runtime, from (B, C, H, W) to (B, E)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(pixel_values: Tensor) -> Tensor:
        (embedding,) = session.run(None, {"pixel_values": pixel_values.numpy()})
        return torch.from_numpy(embedding)

    return run


__all__ = ["INT8_MODEL", "MODEL", "Int8", "check_onnx", "write_onnx"]
