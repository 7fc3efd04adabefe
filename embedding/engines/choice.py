"""Choice of engine and precision by installed packages, CPU, and a check of the vectors."""

# B batch · C channels · H, W pixels · N patches · T tokens · D hidden · E embedding

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ...modeling.checkpoints.loading import DTYPES
from ...modeling.modeling_selfvit import SelfViTModel
from . import onnxruntime, openvino
from . import torch as pytorch
from .cpu import multiplies_bfloat16
from .encoder import check_linear_layers
from .interface import AUTO, Engine, Selection, name_of
from .quantization import Quantization

logger = logging.getLogger(__name__)

ENGINES = (AUTO, pytorch.NAME, openvino.NAME, onnxruntime.NAME)
# Packages of each engine besides torch, and the extra that has them.
PACKAGES = {
    openvino.NAME: (("openvino",), "openvino"),
    onnxruntime.NAME: (("onnx", "onnxscript", "onnxruntime"), "onnx"),
}
PRECISIONS = {
    pytorch.NAME: tuple(DTYPES.values()),
    openvino.NAME: (torch.float32, torch.bfloat16, torch.int8),
    onnxruntime.NAME: (torch.float32,),
}
MIN_COSINE = 0.999  # to the float32 vectors of torch, smallest of the first batch
CHECKED_IMAGES = 8
# Floating-point operations per thread from which OpenVINO repays its conversion, by precision. It
# takes 2 s for S/16, and saves 17 % in float32 and 10 % in bfloat16 (one core with AMX): 160 and
# 1,100 images. Three to four times as many are asked for.
LONG_RUN = {torch.float32: 5e12, torch.bfloat16: 4e13}


@dataclass(frozen=True)
class Request:
    """Engine and precision that a user asks for.

    Args:
        engine: Name of an engine, or "auto".
        dtype: Precision, "auto", or None for that of the model.
        quantization: Rounding in int8; None to calibrate it on images.
    """

    engine: str
    dtype: torch.dtype | str | None
    quantization: Quantization | None = None

    @classmethod
    def create(
        cls,
        engine: str | None,
        dtype: torch.dtype | str | None,
        quantization: Quantization | None = None,
    ) -> Request:
        """Create a request, where only one engine can meet it, for that one.

        Args:
            engine: Name of an engine; None for torch, or for OpenVINO in int8.
            dtype: Precision, also as "int8".
            quantization: Rounding in int8, if it is known.

        Raises:
            ValueError: If there is a rounding, but another precision.
        """
        if dtype in (torch.int8, "int8"):
            is_free = engine in (None, AUTO)
            return cls(openvino.NAME if is_free else str(engine), torch.int8, quantization)
        if quantization is not None:
            raise ValueError(f"quantization is for dtype int8, not {dtype}; leave it out.")
        return cls(pytorch.NAME if engine is None else engine, dtype)

    def check(self, model: SelfViTModel, tokens: str) -> None:
        """Check that the request can be met, and warn if its precision is emulated.

        Args:
            model: Model.
            tokens: "pooled" or "patches".

        Raises:
            ImportError: If a package of the engine is not installed.
            ValueError: If the engine is unknown, or does not have the device, the precision or the
                tokens.
        """
        if self.engine not in ENGINES:
            raise ValueError(f"engine ({self.engine!r}) must be one of {', '.join(ENGINES)}.")
        device, dtype = model.device, model.dtype if self.dtype is None else self.dtype
        if dtype == torch.bfloat16 and device.type == "cpu" and not multiplies_bfloat16():
            _warn_of_emulation()
        if dtype == torch.int8 and self.engine != openvino.NAME:
            raise ValueError(
                f"engine {self.engine} does not compute in int8; use engine openvino or auto."
            )
        if self.engine in (AUTO, pytorch.NAME):
            return
        packages, extra = PACKAGES[self.engine]
        missing = [name for name in packages if find_spec(name) is None]
        if missing:
            raise ImportError(
                f"engine {self.engine} needs {', '.join(missing)}. Install with pip install "
                f'"selfvit[{extra}]".'
            )
        if device.type != "cpu":
            raise ValueError(
                f"engine {self.engine} computes on the CPU, but the device is {device}; use device "
                "cpu or engine torch."
            )
        if tokens != "pooled":
            raise ValueError(
                f"engine {self.engine} computes pooled vectors only; use engine torch for the "
                "tokens of patches."
            )
        if isinstance(dtype, torch.dtype) and dtype not in PRECISIONS[self.engine]:
            possible = " or ".join(map(name_of, PRECISIONS[self.engine]))
            raise ValueError(
                f"engine {self.engine} computes in {possible}, not in {name_of(dtype)}; use "
                f"{possible}, or engine torch."
            )

    @property
    def is_open(self) -> bool:
        """Whether engine, precision or rounding is left to choose."""
        return AUTO in (self.engine, self.dtype) or self.needs_calibration

    @property
    def needs_calibration(self) -> bool:
        """Whether the rounding must be calibrated on images."""
        return self.dtype == torch.int8 and self.quantization is None

    def fixed(self, model: SelfViTModel) -> Selection:
        """Return the selection of a request that is not open."""
        dtype = model.dtype if self.dtype is None else self.dtype
        assert isinstance(dtype, torch.dtype)
        return Selection(self.engine, dtype, self.quantization)

    def like(self, earlier: Mapping[str, Any]) -> Request:
        """Return the request with engine and precision of earlier vectors where it is open.

        Args:
            earlier: Fingerprint of the earlier vectors, see `checkpoint_fingerprint`.

        Raises:
            ValueError: If it is for int8, and they have another precision.
        """
        engine = earlier.get("engine", pytorch.NAME) if self.engine == AUTO else self.engine
        if earlier["dtype"] == "int8" and self.dtype in (AUTO, torch.int8):
            return Request.create(engine, "int8", Quantization.from_dict(earlier["quantization"]))
        if self.dtype == torch.int8:
            raise ValueError(
                f"dtype (int8) must be that of the earlier vectors, {earlier['dtype']}; use dtype "
                f"{earlier['dtype']}, or write to a new folder."
            )
        return Request(engine, DTYPES[earlier["dtype"]] if self.dtype == AUTO else self.dtype)

    def candidates(
        self, model: SelfViTModel, num_images: int | None, tokens: str
    ) -> list[Selection]:
        """Return the selections that meet the request, the fastest first and the safest last.

        Args:
            model: Model.
            num_images: Number of images to embed; None if unknown, for a long run.
            tokens: "pooled" or "patches".
        """
        device = model.device
        if self.dtype == AUTO:
            dtypes = [torch.bfloat16, model.dtype] if multiplies(device) else [model.dtype]
        else:
            dtypes = [Request(pytorch.NAME, self.dtype).fixed(model).dtype]
        can_convert = (
            device.type == "cpu" and tokens == "pooled" and find_spec(openvino.NAME) is not None
        )
        found = []
        for dtype in dict.fromkeys(dtypes):
            if self.engine != AUTO:
                found.append(Selection(self.engine, dtype))
                continue
            if can_convert and is_long(model, dtype, num_images):
                found.append(Selection(openvino.NAME, dtype))
            found.append(Selection(pytorch.NAME, dtype))
        return [one for one in found if one.dtype in PRECISIONS[one.engine]]


def multiplies(device: torch.device) -> bool:
    """Return whether a device computes in bfloat16 without emulating it."""
    if device.type == "cpu":
        return multiplies_bfloat16()
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def is_long(model: SelfViTModel, dtype: torch.dtype, num_images: int | None) -> bool:
    """Return whether a run repays the conversion of the encoder.

    Args:
        model: Model.
        dtype: Precision; one that the CPU emulates, or that OpenVINO lacks, is never converted.
        num_images: Number of images; None if unknown, for a long run.
    """
    if dtype not in LONG_RUN or (dtype == torch.bfloat16 and not multiplies_bfloat16()):
        return False
    if num_images is None:
        return True
    return num_images * operations(model) > LONG_RUN[dtype] * torch.get_num_threads()


def operations(model: SelfViTModel) -> float:
    """Return the number of floating-point operations for an image of the model's own size."""
    config = model.config
    rows, columns = config.grid_size
    num_tokens, width = rows * columns + config.num_prefix_tokens, config.hidden_size
    linear = 2 * width * (4 * width + 2 * config.intermediate_size)
    attention = 4 * num_tokens * width
    return float(num_tokens * config.num_hidden_layers * (linear + attention))


def build(selection: Selection, model: SelfViTModel, tokens: str = "pooled") -> Engine:
    """Build an engine.

    Args:
        selection: Name and precision.
        model: Model, in evaluation mode.
        tokens: "pooled" or "patches".

    Raises:
        RuntimeError: If the encoder cannot be converted.
        ValueError: If the model has layers that the engine does not know.
    """
    with torch.inference_mode(False), torch.no_grad():
        if selection.engine == openvino.NAME:
            return openvino.OpenVINOEngine(model, selection)
        if selection.engine == onnxruntime.NAME:
            return onnxruntime.ONNXRuntimeEngine(model, selection)
        if tokens == "pooled" and selection.dtype == torch.bfloat16 and _can_pack(model):
            return pytorch.PackedEngine(model, selection)
        if model.dtype == selection.dtype:
            return pytorch.TorchEngine(model, selection)
        return pytorch.CastEngine(model, selection)


def choose(
    candidates: list[Selection], model: SelfViTModel, pixel_values: Tensor | None, tokens: str
) -> Engine:
    """Build the first candidate whose vectors agree with those of the model itself.

    Args:
        candidates: Selections in order of preference; the last one needs no check.
        model: Model, in evaluation mode.
        pixel_values: First images, (B, C, H, W); None takes the last candidate.
        tokens: "pooled" or "patches".
    """
    *preferred, last = candidates
    if not preferred or pixel_values is None:
        return build(last, model, tokens)
    images = pixel_values[:CHECKED_IMAGES]
    expected = pytorch.TorchEngine(model, Selection(pytorch.NAME, model.dtype))(images)
    reasons = []
    for selection in preferred:
        engine, reason = _try(selection, model, images, expected, tokens)
        if engine is not None:
            break
        reasons.append(f"{selection} {reason}")
    else:
        engine = build(last, model, tokens)
    if reasons:
        logger.warning("The engine is %s: %s.", engine.selection, "; ".join(reasons))
    return engine


def _try(
    selection: Selection, model: SelfViTModel, images: Tensor, expected: Tensor, tokens: str
) -> tuple[Engine | None, str]:
    """Return an engine if it can be built and is faithful; else None and the reason."""
    try:
        engine = build(selection, model, tokens)
        found = engine(images)
    except (ImportError, RuntimeError, ValueError) as error:
        return None, f"cannot be used ({str(error).splitlines()[0]})"
    cosine = smallest_cosine(found, expected)
    if cosine >= MIN_COSINE:
        return engine, ""
    return None, (
        f"has vectors whose smallest cosine to those of torch in {name_of(model.dtype)} is "
        f"{cosine:.4f}, below {MIN_COSINE}"
    )


def smallest_cosine(found: Tensor, expected: Tensor) -> float:
    """Return the smallest cosine between vectors of the same image, (B, E) each; NaN if one is."""
    cosines = F.cosine_similarity(found.double().cpu(), expected.double().cpu(), dim=-1)
    return cosines.min().item()


def _can_pack(model: SelfViTModel) -> bool:
    if model.device.type != "cpu" or not multiplies_bfloat16():
        return False
    try:
        check_linear_layers(model)
    except ValueError:
        return False
    return True


@functools.cache
def _warn_of_emulation() -> None:
    logger.warning(
        "This CPU has no instructions for bfloat16 and emulates it, which is slower than float32; "
        "use dtype float32 or auto."
    )


__all__ = [
    "CHECKED_IMAGES",
    "ENGINES",
    "MIN_COSINE",
    "Request",
    "build",
    "choose",
    "is_long",
    "multiplies",
    "operations",
    "smallest_cosine",
]
