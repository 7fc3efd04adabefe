"""How close an exported model is to its encoder: measured, before it is handed out."""

# B batch · C channels · H, W pixels · N images · E embedding

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ...modeling.modeling_selfvit import SelfViTModel

# Largest difference that rounding in another order of operations explains, as a fraction of the
# largest value: an order above what ViT-S/16 shows (1e-6 to 1e-5), two below a wrong activation.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Fidelity:
    """What is known of an export.

    Args:
        max_difference: largest absolute difference from the encoder's `pooler_output`; None if the
            library that opens the export is not installed, so that nothing was measured.
        notes: where the export and the encoder differ, a sentence each.
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
        encoder: in float32.
        embed: the export, from (B, C, H, W) to (B, E).
        sizes: (height, width) in pixels to measure at; the encoder's own by default.
        normalize: whether the export scales vectors to length 1.

    Raises:
        ValueError: if they differ by more than rounding explains.
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
                f"the exported model differs from the encoder by {difference:.2g} at {height} x "
                f"{width} pixels, more than rounding does ({limit:.2g}), so nothing was written; "
                "the installed version of its library may compute something else."
            )
        largest = max(largest, difference)
    return largest


def centered_cosines(reference: Tensor, other: Tensor) -> Tensor:
    """Return the cosine of each image's two vectors, with the mean of the reference subtracted.

    Vectors of an encoder share a large mean, so that plain cosines are close to 1 whatever happens.

    Args:
        reference: (N, E).
        other: (N, E).

    Returns:
        (N,).

    Raises:
        ValueError: for fewer than two images, of which nothing is left beside the mean.
    """
    if len(reference) < 2:
        raise ValueError(
            f"images ({len(reference)}) must be at least 2 to be told from their mean."
        )
    mean = reference.mean(dim=0)
    return F.cosine_similarity(reference - mean, other - mean, dim=-1)


__all__ = ["Fidelity", "centered_cosines", "measure_difference"]
