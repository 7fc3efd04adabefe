"""Adapt the patch embedding of a checkpoint to images with another number of channels."""

# D hidden · C channels · P patch size

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

# Numbers of channels that are gray levels or colors of the same scene. The mean over them is a gray
# level. The bands of other instruments have no such mean.
PHOTO_CHANNELS = (1, 3)
KERNEL = "patch_embeddings.projection.weight"  # end of the names of patch embeddings


def check_adaptable(num_channels: int, new_channels: int) -> None:
    """Check that the patch embedding of a checkpoint can be adapted to other channels.

    Args:
        num_channels: Number of channels of the checkpoint.
        new_channels: Number of channels of the run.

    Raises:
        ValueError: If the numbers differ, and the checkpoint was not trained on gray or RGB images.
    """
    if num_channels not in (new_channels, *PHOTO_CHANNELS):
        raise ValueError(
            f"num_channels ({new_channels}) differs from the {num_channels} channels of "
            "--init-from, and only a patch embedding of 1 or 3 channels can be adapted to others; "
            "leave out --num-channels, or start from another checkpoint."
        )


def adaptation_rule(num_channels: int, new_channels: int) -> str:
    """Return the rule of `adapted_kernel` in words, for logs and model cards."""
    start = f"patch embedding of {num_channels} channels adapted to {new_channels}: "
    if new_channels == 1:
        return f"{start}sum over the {num_channels} channels"
    mean = "the only channel" if num_channels == 1 else f"mean over the {num_channels} channels"
    return (
        f"{start}{mean}, repeated {new_channels} times and scaled by {num_channels}/{new_channels}"
    )


def adapted_kernel(kernel: Tensor, new_channels: int) -> Tensor:
    """Return the weights of a patch embedding for another number of channels.

    They are the mean over the old channels, repeated and scaled by old / new. The embeddings of
    patches whose channels are all equal therefore stay the same.

    Args:
        kernel: Weights, (D, C, P, P).
        new_channels: New number of channels.

    Returns:
        (D, new_channels, P, P).
    """
    mean = kernel.mean(dim=1, keepdim=True) * (kernel.shape[1] / new_channels)
    return mean.repeat(1, new_channels, 1, 1)


def adapted_weights(weights: Mapping[str, Tensor], new_channels: int) -> dict[str, Tensor]:
    """Return the weights of a model with all its patch embeddings adapted to other channels."""
    return {
        name: adapted_kernel(value, new_channels) if name.endswith(KERNEL) else value
        for name, value in weights.items()
    }


__all__ = ["adaptation_rule", "adapted_kernel", "adapted_weights", "check_adaptable"]
