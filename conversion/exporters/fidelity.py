"""Measure how closely an exported model reproduces its encoder."""

# B batch · C channels · H, W pixels · N images · E embedding

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ...modeling.modeling_selfvit import SelfViTModel

# Largest difference that rounding can explain, as a fraction of the largest value. It is ten times
# the difference of ViT-S/16 (1e-6 to 1e-5) and a hundredth of that of a wrong activation.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Fidelity:
    """Comparison of an export with its encoder.

    Args:
        max_difference: Largest absolute difference from the encoder's `pooler_output`. None if the
            library that opens the export is not installed, so that nothing was measured.
        notes: Known differences between the export and the encoder, one sentence each.
    """

    max_difference: float | None
    notes: tuple[str, ...] = ()


def measure_difference(
    encoder: SelfViTModel,
    embed: Callable[[Tensor], Tensor],
    *,
    sizes: Sequence[tuple[int, int]] = (),
    normalize: bool = False,
) -> float:
    """Return the largest difference between the encoder and its export on random images.

    Args:
        encoder: Encoder in float32.
        embed: Exported model, a function from (B, C, H, W) to (B, E).
        sizes: Image sizes to measure at, (height, width) in pixels. Default: the encoder's.
        normalize: Whether the export scales vectors to length 1.

    Raises:
        ValueError: If they differ by more than rounding can explain.
    """
    config = encoder.config
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for height, width in sizes or [config.image_height_width]:
        pixel_values = torch.randn(2, config.num_channels, height, width, generator=generator)
        # without cuDNN, whose convolutions round float32 to TF32
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=False):
            expected = encoder(pixel_values.to(encoder.device)).pooler_output.cpu()
            expected = F.normalize(expected, dim=-1) if normalize else expected
            difference = (embed(pixel_values) - expected).abs().max().item()
        limit = TOLERANCE * max(1.0, expected.abs().max().item())
        if not difference <= limit:
            raise ValueError(
                f"the exported model must match the encoder within {limit:.2g}, but it differs by "
                f"{difference:.2g} at {height} x {width} pixels, so nothing was written. The "
                "installed version of its library may be incompatible."
            )
        largest = max(largest, difference)
    return largest


__all__ = ["Fidelity", "measure_difference"]
