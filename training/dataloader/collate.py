"""Stack samples into batches and move them to the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..augmentations.base import Augmentation
from ..config.training_config import PreprocessingConfig


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack the inputs of one name.

    Views (uint8): (V, C, h, w) to (V, B, C, h, w), and (C, h, w) to (B, C, h, w). Numbers of their
    patches (float32): (V, N) to (V, B, N), and (N,) to (B, N).
    """
    batch: dict[str, Any] = {
        "skipped": [entry for sample in samples for entry in sample["skipped"]]
    }
    if "reader" in samples[-1]:  # of a stream: where it stands behind the last sample
        batch["reader"] = samples[-1]["reader"]
    for name in samples[0].keys() - {"skipped", "draw", "reader"}:
        values = [sample[name] for sample in samples]
        if name == "labels":
            batch[name] = torch.tensor(values)
        else:
            arrays = [torch.from_numpy(value) for value in values]
            own_axes = 3 if arrays[0].dtype == torch.uint8 else 1
            batch[name] = torch.stack(arrays, dim=arrays[0].dim() - own_axes)
    return batch


@dataclass(frozen=True)
class BatchMaker:
    """Makes a batch of samples in the worker: stacks them, and lets the augmentation mix them.

    Args:
        augmentation: mixes labeled batches, or leaves them.
        seed: of the run.
        num_classes: of the data; None for batches without labels, which are not mixed.
    """

    augmentation: Augmentation
    seed: int
    num_classes: int | None

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch; the number of its first draw seeds the mixing."""
        batch = collate(samples)
        if self.num_classes is None:
            return batch
        # 2: apart from the views of the same draw
        rng = np.random.default_rng([self.seed, samples[0]["draw"], 2])
        return self.augmentation.mix(batch, rng, self.num_classes)


def normalize(views: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """uint8 (*, C, h, w) -> float32, scaled to 0 to 1, then by the channels' mean and deviation."""
    shape = (-1, 1, 1)
    scale = torch.tensor(std, device=views.device).view(shape) * 255
    shift = torch.tensor(mean, device=views.device).view(shape) * 255
    return (views.float() - shift) / scale


def to_model_inputs(
    batch: dict[str, Any], preprocessing: PreprocessingConfig, device: torch.device
) -> dict[str, Any]:
    """Move a batch to the device, and normalize its views there: uint8 travels faster."""
    moved = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    return {
        name: normalize(value, preprocessing.image_mean, preprocessing.image_std)
        if value.dtype == torch.uint8
        else value
        for name, value in moved.items()
    }


__all__ = ["BatchMaker", "collate", "normalize", "to_model_inputs"]
