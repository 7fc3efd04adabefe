"""Linear layers in 8 bits: the ranges of their inputs, and their rounding.

Weights are rounded per output channel, symmetrically; inputs per layer, between the smallest and
the largest value of the calibration images. OpenVINO computes such layers with 8-bit instructions.
"""

# B batch · T tokens · D hidden · C channels · H, W pixels

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .cpu import cpu_flags
from .encoder import FusedBlock, FusedEncoder, PlainLinear
from .fidelity import Fidelity

INPUT_LEVELS = 256
# Instructions that add products of 8 bits in 32 bits. Others add two products in 16 bits first,
# which overflows unless the weights have 7 bits.
EXACT_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"})
MAX_WEIGHT, MAX_WEIGHT_OF_PAIRS = 127, 63
Range = tuple[float, float]


@dataclass(frozen=True)
class Quantization:
    """Rounding of the linear layers of an encoder, and how faithful it was measured to be.

    Args:
        ranges: Smallest and largest input of each layer in 8 bits, by name ("blocks.0.qkv"); the
            other layers stay in float.
        max_weight: Largest rounded weight, 127 or 63.
        other_dtype: Precision of everything else, "float32" or "bfloat16".
        num_layers: Number of linear layers in the blocks.
        num_calibration: Number of images that the ranges were measured on.
        fidelity: Agreement with float32 on other images; None before it is measured.
    """

    ranges: Mapping[str, Range]
    max_weight: int
    other_dtype: str
    num_layers: int
    num_calibration: int
    fidelity: Fidelity | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return all values as JSON can represent them, without rounding."""
        ranges = {name: list(limits) for name, limits in self.ranges.items()}
        return {**asdict(self), "ranges": ranges}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Quantization:
        """Create it from the result of `to_dict`, possibly read from JSON."""
        ranges = {name: (low, high) for name, (low, high) in values["ranges"].items()}
        return cls(**{**values, "ranges": ranges, "fidelity": Fidelity(**values["fidelity"])})

    def summary(self) -> dict[str, Any]:
        """Return what a reader of the vectors needs to know, for `metadata.json`."""
        assert self.fidelity is not None
        return {
            **asdict(self.fidelity),
            "num_calibration_images": self.num_calibration,
            "num_layers": self.num_layers,
            "num_float_layers": self.num_layers - len(self.ranges),
        }

    def __str__(self) -> str:
        return (
            f"{self.fidelity}, with {len(self.ranges)} of {self.num_layers} linear layers in 8 bits"
        )


class QuantizedLinear(PlainLinear):
    """Linear layer whose weight and input are rounded to 8 bits, in float32.

    Args:
        linear: Layer to round.
        limits: Smallest and largest input.
        max_weight: Largest rounded weight.
    """

    def __init__(self, linear: PlainLinear, limits: Range, max_weight: int):
        weight: Any = linear.weight
        bias: Any = linear.bias
        steps = weight.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / max_weight
        rounded = (weight / steps.unsqueeze(1)).round() * steps.unsqueeze(1)
        super().__init__(rounded, bias)
        self.register_buffer("steps", steps)
        self.register_buffer("zeros", torch.zeros(len(steps), dtype=torch.int32))
        low, high = min(limits[0], 0.0), max(limits[1], 0.0)  # 0 stays 0
        self.step = max(high - low, 1e-12) / (INPUT_LEVELS - 1)
        self.zero = round(-low / self.step)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, in) -> (B, T, out)."""
        tokens = torch.fake_quantize_per_tensor_affine(
            tokens, self.step, self.zero, 0, INPUT_LEVELS - 1
        )
        weight = torch.fake_quantize_per_channel_affine(
            self.weight,  # type: ignore[arg-type]
            self.steps,  # type: ignore[arg-type]
            self.zeros,  # type: ignore[arg-type]
            0,
            -128,
            127,
        )
        return F.linear(tokens, weight, self.bias)  # type: ignore[arg-type]


def max_weight_here() -> int:
    """Return the largest rounded weight that this CPU multiplies without overflow."""
    return MAX_WEIGHT if cpu_flags() & EXACT_FLAGS else MAX_WEIGHT_OF_PAIRS


def linear_layers(encoder: FusedEncoder) -> dict[str, PlainLinear]:
    """Return the linear layers of the blocks by name, in the order of the computation."""
    return {
        name: module for name, module in encoder.named_modules() if isinstance(module, PlainLinear)
    }


def round_layers(
    encoder: FusedEncoder, ranges: Mapping[str, Range], max_weight: int
) -> FusedEncoder:
    """Replace linear layers of an encoder by rounded ones, and return it.

    Args:
        encoder: Encoder in float32, which is changed.
        ranges: Smallest and largest input of the layers to round, by name.
        max_weight: Largest rounded weight.

    Raises:
        ValueError: If the encoder has no such layer.
    """
    layers = linear_layers(encoder)
    for name, limits in ranges.items():
        if name not in layers:
            raise ValueError(
                f"the 8-bit layer {name!r} must be one of the encoder's, which are "
                f"{', '.join(list(layers)[:5])} and so on; write the vectors to a new folder."
            )
        encoder.set_submodule(name, QuantizedLinear(layers[name], limits, max_weight))
    return encoder


def input_ranges(encoder: FusedEncoder, batches: Iterable[Tensor]) -> dict[str, Range]:
    """Return the smallest and the largest input of each linear layer, by name.

    Args:
        encoder: Encoder in float32.
        batches: Pixels of the calibration images, (B, C, H, W) each.
    """
    found: dict[str, Range] = {}

    def observe(name: str, tokens: Tensor) -> None:
        low, high = (value.item() for value in tokens.aminmax())
        before = found.get(name, (low, high))
        found[name] = min(low, before[0]), max(high, before[1])

    handles = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: observe(name, inputs[0]))
        for name, layer in linear_layers(encoder).items()
    ]
    try:
        for pixel_values in batches:
            embed_float(encoder, pixel_values)
    finally:
        for handle in handles:
            handle.remove()
    return found


def harm_of_layers(
    encoder: FusedEncoder, pixel_values: Tensor, ranges: Mapping[str, Range], max_weight: int
) -> dict[str, float]:
    """Return how much rounding each layer alone changes the output of its block.

    Args:
        encoder: Encoder in float32.
        pixel_values: Images to measure it on, (B, C, H, W).
        ranges: Smallest and largest input of each layer, by name.
        max_weight: Largest rounded weight.

    Returns:
        Mean squared change, as a fraction of the variance of the block's output over the images and
        tokens.
    """
    inputs: dict[str, tuple[Any, ...]] = {}
    handles = [
        block.register_forward_pre_hook(lambda _, given, name=name: inputs.__setitem__(name, given))
        for name, block in encoder.named_modules()
        if isinstance(block, FusedBlock)
    ]
    try:
        embed_float(encoder, pixel_values)
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: _harm(encoder, name, inputs[name.rpartition(".")[0]], limits, max_weight)
        for name, limits in ranges.items()
    }


def _harm(
    encoder: FusedEncoder, name: str, inputs: tuple[Any, ...], limits: Range, max_weight: int
) -> float:
    parent, _, _ = name.rpartition(".")
    block, layer = encoder.get_submodule(parent), encoder.get_submodule(name)
    assert isinstance(layer, PlainLinear)
    expected = block(*inputs)
    encoder.set_submodule(name, QuantizedLinear(layer, limits, max_weight))
    try:
        change = block(*inputs) - expected
    finally:
        encoder.set_submodule(name, layer)
    spread = expected - expected.mean(dim=(0, 1))
    return (change.square().mean() / spread.square().mean()).item()


def embed_float(encoder: FusedEncoder, pixel_values: Tensor) -> Tensor:
    """Return the vectors of an encoder that computes in float32, (B, C, H, W) -> (B, E)."""
    patch_size = encoder.patch_size
    grid = (pixel_values.shape[2] // patch_size, pixel_values.shape[3] // patch_size)
    return encoder(pixel_values.float(), encoder.patch_positions(grid))


__all__ = [
    "Quantization",
    "QuantizedLinear",
    "embed_float",
    "harm_of_layers",
    "input_ranges",
    "linear_layers",
    "max_weight_here",
    "round_layers",
]
