"""Calibrate an encoder in 8 bits on images, and accept it only if other images keep their vectors.

All linear layers of the blocks are rounded first. If that is not faithful enough, those whose
rounding changes the output of their block most stay in float, more of them in every try.
"""

# N images · C channels · H, W pixels · E embedding

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...modeling.modeling_selfvit import SelfViTModel
from .cpu import multiplies_bfloat16
from .encoder import FusedEncoder
from .fidelity import Fidelity
from .interface import Selection
from .openvino import NAME, OpenVINOEngine
from .quantization import (
    Quantization,
    embed_float,
    harm_of_layers,
    input_ranges,
    max_weight_here,
)

NUM_IMAGES, MIN_IMAGES = 192, 64  # of both kinds together
BATCH_SIZE = 8
MIN_MEAN_COSINE, MIN_NEIGHBORS_KEPT = 0.995, 0.9
# Fractions of the layers that stay in float. With more than half of them, bfloat16 is as fast.
FLOAT_LAYERS = (0.0, 1 / 12, 1 / 6, 1 / 3, 1 / 2)


def calibrate(
    model: SelfViTModel, pixel_values: Tensor, on_batch: Callable[[int], Any] = lambda count: None
) -> OpenVINOEngine:
    """Return an engine that computes in 8 bits; its selection has the quantization.

    Every third image is for the calibration, the other ones are held out.

    Args:
        model: Model on the CPU, in evaluation mode.
        pixel_values: Images to calibrate and to measure with, (N, C, H, W).
        on_batch: Function that is called with the number of images that were computed.

    Raises:
        ImportError: If OpenVINO is not installed.
        ValueError: If there are too few images, or the vectors are not faithful enough.
    """
    if len(pixel_values) < MIN_IMAGES:
        raise ValueError(
            f"dtype int8 needs at least {MIN_IMAGES} readable images, to calibrate on one third of "
            f"them and to measure on the others, but there are {len(pixel_values)}; use dtype auto "
            "or float32."
        )
    is_held_out = torch.arange(len(pixel_values)) % 3 > 0
    calibration, held_out = pixel_values[~is_held_out], pixel_values[is_held_out]
    encoder = FusedEncoder(model).eval()
    ranges = input_ranges(encoder, _batches(calibration, on_batch))
    expected = torch.cat([embed_float(encoder, batch) for batch in _batches(held_out, on_batch)])
    rounding = Quantization(
        ranges=ranges,
        max_weight=max_weight_here(),
        other_dtype="bfloat16" if multiplies_bfloat16() else "float32",
        num_layers=len(ranges),
        num_calibration=len(calibration),
    )
    most_harmful: list[str] = []
    for fraction in FLOAT_LAYERS:
        if fraction and not most_harmful:
            harm = harm_of_layers(encoder, calibration[:BATCH_SIZE], ranges, rounding.max_weight)
            most_harmful = sorted(harm, key=lambda name: -harm[name])
        in_float = set(most_harmful[: round(fraction * len(ranges))])
        kept = {name: limits for name, limits in ranges.items() if name not in in_float}
        rounding = replace(rounding, ranges=kept)
        engine = OpenVINOEngine(model, Selection(NAME, torch.int8, rounding))
        found = torch.cat([engine(batch) for batch in _batches(held_out, on_batch)])
        rounding = replace(rounding, fidelity=Fidelity.measure(expected, found))
        if is_faithful(rounding.fidelity):
            engine.selection = replace(engine.selection, quantization=rounding)
            return engine
    raise ValueError(
        f"dtype int8 needs a mean centered cosine of at least {MIN_MEAN_COSINE} to float32 and "
        f"{MIN_NEIGHBORS_KEPT:.0%} of the nearest neighbors kept, but these images have a "
        f"{rounding}; use dtype auto or float32."
    )


def is_faithful(fidelity: Fidelity | None) -> bool:
    """Return whether vectors in 8 bits may be written."""
    return (
        fidelity is not None
        and fidelity.mean_centered_cosine >= MIN_MEAN_COSINE
        and fidelity.neighbors_kept >= MIN_NEIGHBORS_KEPT
    )


def _batches(pixel_values: Tensor, on_batch: Callable[[int], Any]) -> Iterator[Tensor]:
    for batch in pixel_values.split(BATCH_SIZE):
        yield batch
        on_batch(len(batch))


__all__ = ["MIN_IMAGES", "NUM_IMAGES", "calibrate", "is_faithful"]
