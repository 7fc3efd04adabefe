"""Precision of training steps, chosen by what the device computes natively."""

from __future__ import annotations

import torch

from ...embedding.engines.cpu import multiplies_bfloat16
from ..config.training_config import RuntimeConfig

AUTO = "auto"


def has_bfloat16(runtime: RuntimeConfig) -> bool:
    """Return whether the device of a run has instructions for bfloat16."""
    device = None if runtime.cpu else torch.accelerator.current_accelerator(check_available=True)
    if device is None or device.type == "cpu":
        return multiplies_bfloat16()
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "xpu"


def mixed_precision_of(runtime: RuntimeConfig) -> str | None:
    """Return the precision for Accelerate: "no", "bf16", "fp16", or None for its own setting."""
    if runtime.mixed_precision != AUTO:
        return runtime.mixed_precision
    return "bf16" if has_bfloat16(runtime) else "no"


def precision_line(runtime: RuntimeConfig, precision: str) -> str | None:
    """Return a line about the precision of a run to print, or None.

    Args:
        runtime: Options of the run.
        precision: Precision that Accelerate has: "no", "bf16" or "fp16".
    """
    if runtime.mixed_precision == AUTO:
        name = "float32" if precision == "no" else precision
        reason = "has" if precision == "bf16" else "has no"
        return f"precision: {name}, because the device {reason} instructions for bfloat16"
    if precision == "bf16" and not has_bfloat16(runtime):
        return (
            "warning: the device has no instructions for bfloat16 and emulates it, which is slower "
            "than float32; use --mixed-precision auto."
        )
    return None


__all__ = ["has_bfloat16", "mixed_precision_of", "precision_line"]
