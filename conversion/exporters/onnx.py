"""A checkpoint as an ONNX graph, checked with ONNX Runtime, in 8 bits too if asked."""

# B batch · C channels · H, W pixels · P patch size · N images · E embedding

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import BaseImageProcessor

from ...modeling.modeling_selfvit import SelfViTModel
from .fidelity import Fidelity, centered_cosines, measure_difference

MODEL, INT8_MODEL = "model.onnx", "model_int8.onnx"
REQUIRED = ("onnx", "onnxscript", "onnxruntime")
NUM_RANDOM_IMAGES = 16  # enough to tell images from their mean
# A protobuf message ends at 2 GiB: larger weights go to a file beside it.
LARGEST_GRAPH = 1.9 * 2**30  # bytes


@dataclass(frozen=True)
class Int8:
    """How to make and to judge the graph in 8 bits.

    Args:
        min_cosine: smallest mean cosine, with the mean subtracted, at which it is kept; -1 keeps it
            whatever it is.
        pixel_values: (N, C, H, W), preprocessed images to measure it on; None for random ones.
    """

    min_cosine: float
    pixel_values: Tensor | None = None


class _Embedding(nn.Module):
    """`pixel_values` to one tensor, which a graph can return."""

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
        encoder: in float32.
        processor: of the checkpoint; its file lies beside the graph.
        folder: exists, and is empty.
        normalize: whether the graph scales vectors to length 1.
        int8: write `model_int8.onnx`, too: linear layers in 8 bits, quantized dynamically.

    Raises:
        ImportError: if one of the packages of the extra `onnx` is missing.
        ValueError: if ONNX Runtime computes something else, or the cosine of the 8-bit graph is
            below the smallest allowed.
    """
    check_onnx()
    config = encoder.config
    _write_graph(encoder, folder / MODEL, normalize)
    processor.save_pretrained(folder)
    height, width = config.image_height_width
    other = (height + config.patch_size, width + 2 * config.patch_size)
    difference = measure_difference(
        encoder, _session(folder / MODEL), sizes=[(height, width), other], normalize=normalize
    )
    if int8 is None:
        return Fidelity(difference)
    return Fidelity(difference, (_write_int8(encoder, folder, int8),))


def check_onnx() -> None:
    """Check that everything is installed.

    Raises:
        ImportError: if not; the message says what to install.
    """
    missing = [name for name in REQUIRED if find_spec(name) is None]
    if missing:
        raise ImportError(
            f'--to onnx needs {", ".join(missing)}: pip install "selfvit[onnx]" installs it.'
        )


def _write_graph(encoder: SelfViTModel, path: Path, normalize: bool) -> None:
    config = encoder.config
    patch = config.patch_size
    # Sizes that occur nowhere else, so that none of them is taken for a constant.
    example = torch.zeros(2, config.num_channels, 3 * patch, 5 * patch, device=encoder.device)
    sizes = {
        0: torch.export.Dim("batch", min=1),
        2: patch * torch.export.Dim("rows", min=1),
        3: patch * torch.export.Dim("columns", min=1),
    }
    num_bytes = sum(weight.numel() * 4 for weight in encoder.state_dict().values())
    with _quiet():
        program: Any = torch.onnx.export(
            _Embedding(encoder, normalize).eval(),
            (example,),
            dynamo=True,
            dynamic_shapes={"pixel_values": sizes},
            input_names=["pixel_values"],
            output_names=["embedding"],
            verbose=False,
        )
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # stack traces, with the folders of who exported it
        program.save(path, external_data=num_bytes > LARGEST_GRAPH)


def _write_int8(encoder: SelfViTModel, folder: Path, int8: Int8) -> str:
    """Write the 8-bit graph, and return what it was measured to be."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            folder / MODEL,
            folder / INT8_MODEL,
            op_types_to_quantize=["MatMul", "Gemm"],  # patch projection and norms stay as they are
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
    images, on = int8.pixel_values, "the given images"
    if images is None:
        height, width = encoder.config.image_height_width
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(
            NUM_RANDOM_IMAGES, encoder.config.num_channels, height, width, generator=generator
        )
        on = "random pixels, no photographs: give --data to measure on yours"
    full, quantized = _session(folder / MODEL), _session(folder / INT8_MODEL)
    batches = images.split(NUM_RANDOM_IMAGES)
    cosines = centered_cosines(
        torch.cat([full(batch) for batch in batches]),
        torch.cat([quantized(batch) for batch in batches]),
    )
    mean, smallest = cosines.mean().item(), cosines.min().item()
    sizes = [(folder / name).stat().st_size / 2**20 for name in (MODEL, INT8_MODEL)]
    measured = (
        f"{INT8_MODEL} ({sizes[1]:.1f} MiB for {sizes[0]:.1f}): centered cosine with the float32 "
        f"vectors {mean:.4f} on average, {smallest:.4f} at least, over {len(images)} images ({on})"
    )
    if not mean >= int8.min_cosine:
        raise ValueError(
            f"{measured}; the average must be at least {int8.min_cosine}, so nothing was written. "
            "Leave out --int8, or lower --min-cosine to take it."
        )
    return measured + "."


def _session(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(pixel_values: Tensor) -> Tensor:
        (embedding,) = session.run(None, {"pixel_values": pixel_values.numpy()})
        return torch.from_numpy(embedding)

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what exporter and quantizer log of themselves: the check says whether it worked."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


__all__ = ["INT8_MODEL", "MODEL", "Int8", "check_onnx", "write_onnx"]
