"""Stack samples into batches, and move batches to the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..augmentations.base import Augmentation
from ..config.training_config import PreprocessingConfig

REPORTS = ("skipped", "findings")  # lists about single images, not inputs of the model


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack the samples of a batch, input by input.

    The batch axis comes after the view axis: views (V, C, h, w) become (V, B, C, h, w), and
    (C, h, w) become (B, C, h, w). Random numbers of the patches, (V, N) become (V, B, N), and (N,)
    become (B, N). Views are uint8, or float32 if any image of the batch has more than eight bits.

    Returns:
        Inputs by name, "skipped" with the unreadable images of all samples, "findings" with what
        the files hold besides the pixels, and for a stream "reader" with the state of its reader
        after the last sample.
    """
    batch: dict[str, Any] = {
        name: [entry for sample in samples for entry in sample.get(name, [])] for name in REPORTS
    }
    if "reader" in samples[-1]:
        batch["reader"] = samples[-1]["reader"]
    for name in samples[0].keys() - {*REPORTS, "draw", "reader"}:
        values = [sample[name] for sample in samples]
        if name == "labels":
            batch[name] = torch.tensor(values)
        else:
            arrays = [torch.from_numpy(value) for value in values]
            if any(array.is_floating_point() for array in arrays):
                arrays = [array.float() for array in arrays]
            own_axes = 3 if arrays[0].dim() >= 3 else 1
            batch[name] = torch.stack(arrays, dim=arrays[0].dim() - own_axes)
    return batch


@dataclass(frozen=True)
class BatchMaker:
    """Collate function of the workers: stack samples, and let the augmentation mix them.

    Args:
        augmentation: Augmentation whose `mix` gets the labeled batches.
        seed: Random seed of the run.
        num_classes: Number of classes; None for batches without labels, which are not mixed.
    """

    augmentation: Augmentation
    seed: int
    num_classes: int | None

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch; the seed and the number of its first draw decide the mixing."""
        batch = collate(samples)
        if self.num_classes is None:
            return batch
        # The 2 makes these random numbers independent of those of the views, which have a 1.
        rng = np.random.default_rng([self.seed, samples[0]["draw"], 2])
        return self.augmentation.mix(batch, rng, self.num_classes)


def normalize(views: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """Scale pixels to 0 to 1, then normalize them by the mean and std of each channel.

    Args:
        views: Pixels, (*, C, h, w), uint8 or float32 from 0 to 255.
        mean: Mean of each channel, for pixels in 0 to 1.
        std: Std of each channel, for pixels in 0 to 1.

    Returns:
        Normalized pixels, (*, C, h, w) float32.
    """
    shape = (-1, 1, 1)
    scale = torch.tensor(std, device=views.device).view(shape) * 255
    shift = torch.tensor(mean, device=views.device).view(shape) * 255
    return (views.float() - shift).div_(scale)


def to_model_inputs(
    batch: dict[str, Any], preprocessing: PreprocessingConfig, device: torch.device
) -> dict[str, Any]:
    """Move a batch to the device, then normalize its views there, as uint8 is faster to copy.

    Args:
        batch: Tensors by name; those with at least four axes are views. Lists about single images
            are left out.
        preprocessing: Mean and std of the channels.
        device: Device of the model.

    Returns:
        Arguments of the model's `forward`, by name.
    """
    moved = {
        name: value.to(device, non_blocking=True)
        for name, value in batch.items()
        if name not in REPORTS
    }
    return {
        name: normalize(value, preprocessing.image_mean, preprocessing.image_std)
        if value.dim() >= 4
        else value
        for name, value in moved.items()
    }


__all__ = ["REPORTS", "BatchMaker", "collate", "normalize", "to_model_inputs"]
