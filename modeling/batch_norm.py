"""Batch norm with statistics of all processes, on any device."""

# B batch · D features

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from .distributed import all_reduce_sum, several_processes


class BatchNorm(nn.Module):
    """Batch norm (arXiv 1502.03167) with the statistics of the images of all processes.

    The result does not depend on the number of processes. Unlike torch's SyncBatchNorm, it also
    works on CPUs. It computes in the dtype of its statistics, which is float32 under any autocast.

    In training mode, the batch is normalized by its own statistics, which also update the running
    statistics. In evaluation mode, it is normalized by the running statistics.

    Args:
        num_features: Number of features (D).
        eps: Value added to the variance.
        momentum: Weight of a batch in the running statistics.
        affine: Whether to apply a learned weight and bias.
    """

    running_mean: Tensor  # (D,)
    running_var: Tensor  # (D,)

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True
    ):
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, D), same dtype.

        Raises:
            ValueError: If all processes together have fewer than 2 rows in training mode.
        """
        rows = features.to(self.running_mean.dtype)
        if self.training and several_processes():
            normalized = self._normalize_by_all(rows)
        else:
            if self.training:
                self._check_count(len(rows))
            normalized = F.batch_norm(
                rows,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                self.training,
                self.momentum,
                self.eps,
            )
        return normalized.to(features.dtype)

    def _normalize_by_all(self, rows: Tensor) -> Tensor:
        sums = all_reduce_sum(torch.cat([rows.sum(dim=0), rows.new_tensor([len(rows)])]))
        count = sums[-1].detach()
        self._check_count(int(count))
        centered = rows - sums[:-1] / count
        # from centered rows: a difference of mean squares loses precision
        variance = all_reduce_sum(centered.square().sum(dim=0)) / count
        with torch.no_grad():
            self.running_mean.lerp_(sums[:-1] / count, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        normalized = centered * (variance + self.eps).rsqrt()
        if self.weight is None or self.bias is None:
            return normalized
        return normalized * self.weight + self.bias

    def _check_count(self, count: int) -> None:
        if count < 2:
            raise ValueError(
                f"batch norm needs at least 2 images in each micro-batch and got {count}; use a "
                "larger --batch-size or fewer --gradient-accumulation-steps."
            )


__all__ = ["BatchNorm"]
