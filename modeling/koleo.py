"""KoLeo regularizer: spread features evenly (arXiv 1806.03198; as in DINOv2, arXiv 2304.07193)."""

# V views · B images · M images of all processes · D hidden

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .distributed import all_gather

SMALLEST_DISTANCE = 1e-8  # added to distances, so that the logarithm is finite


def koleo_loss(features: Tensor) -> Tensor:
    """Return minus the mean log-distance of each feature to its nearest neighbor.

    This is the negative Kozachenko-Leonenko estimate of the entropy of the normalized features
    (DINOv2, Sec. 4, "KoLeo regularizer"). It is low if they fill the sphere and high if a few
    directions dominate. Neighbors are other images of the same view in the (micro-)batches of all
    processes.

    Args:
        features: (V, B, D), not necessarily normalized; at least two images over all processes.

    Returns:
        Scalar, float32; mean over views and images.

    Raises:
        ValueError: If all processes together have a single image.
    """
    with torch.autocast(features.device.type, enabled=False):
        features = F.normalize(features.float(), dim=-1)
        everyone, first = all_gather(features, dim=1)  # (V, M, D)
        num_images = features.shape[1]
        if everyone.shape[1] < 2:
            raise ValueError(
                f"KoLeo needs at least 2 images in the batch and got {everyone.shape[1]}; use a "
                "larger --batch-size or --koleo-weight 0."
            )
        with torch.no_grad():
            similarities = features @ everyone.transpose(1, 2)  # (V, B, M)
            own = torch.arange(num_images, device=features.device)
            similarities[:, own, first + own] = -2.0  # below any cosine
            neighbors = similarities.argmax(dim=-1, keepdim=True)  # (V, B, 1)
        nearest = everyone.gather(1, neighbors.expand(-1, -1, features.shape[-1]))
        # as in the reference, so that a pair of equal features has a finite gradient, which cancels
        offsets = features - nearest + SMALLEST_DISTANCE
        distances = torch.linalg.vector_norm(offsets, dim=-1)
        return -(distances + SMALLEST_DISTANCE).log().mean()


__all__ = ["koleo_loss"]
