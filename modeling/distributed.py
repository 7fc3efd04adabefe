"""Collectives that return their argument unchanged without a process group."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_alone = False


@contextmanager
def without_others() -> Iterator[None]:
    """Turn the collectives into the identity, for computations of a single process."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def several_processes() -> bool:
    """Return whether there is more than one process to reduce over."""
    if _alone or not (dist.is_available() and dist.is_initialized()):
        return False
    return dist.get_world_size() > 1


class _AllReduceSum(torch.autograd.Function):
    """Sum over processes. Each output depends on all inputs, so gradients are summed, too."""

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        return _reduced(tensor, dist.ReduceOp.SUM)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return _reduced(gradient, dist.ReduceOp.SUM)


class _AllGather(torch.autograd.Function):
    """Concatenate over processes. Every process uses each part, so gradients are summed."""

    @staticmethod
    def forward(context: Any, tensor: Tensor, dim: int) -> Tensor:
        context.dim, context.size = dim, tensor.shape[dim]
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor)
        return torch.cat(parts, dim=dim)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = _reduced(gradient, dist.ReduceOp.SUM)
        start = dist.get_rank() * context.size
        return total.narrow(context.dim, start, context.size), None


def _reduced(tensor: Tensor, operation: Any) -> Tensor:
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, operation)
    return total


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Return the sum of `tensor` over all processes, without changing `tensor`.

    Its gradient is the gradient of the sum of the losses of all processes.
    DistributedDataParallel averages the gradients of parameters, which yields the gradient of the
    mean loss.
    """
    return _AllReduceSum.apply(tensor) if several_processes() else tensor


def mean_over_processes(tensor: Tensor) -> Tensor:
    """Return the mean of `tensor` over all processes, without gradient."""
    if not several_processes():
        return tensor.detach()
    return _reduced(tensor, dist.ReduceOp.SUM) / dist.get_world_size()


class StepMetrics:
    """Means of scalars over the micro-batches of an optimizer step and all processes."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, **values: Tensor) -> None:
        """Add the scalars of one micro-batch.

        Args:
            values: Scalars by name, the same names in each micro-batch.
        """
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach()
        self._count += 1

    def take(self) -> dict[str, float]:
        """Return the means by name, and start the next step; collective."""
        means = {name: total / self._count for name, total in self._sums.items()}
        self._sums, self._count = {}, 0
        return {name: mean_over_processes(mean).item() for name, mean in means.items()}


def all_reduce_logsumexp(tensor: Tensor) -> Tensor:
    """Return log(sum(exp(tensor))) over all processes, elementwise and with gradient."""
    if not several_processes():
        return tensor
    largest = _reduced(tensor, dist.ReduceOp.MAX)
    return largest + all_reduce_sum((tensor - largest).exp()).log()


def all_gather(tensor: Tensor, dim: int) -> tuple[Tensor, int]:
    """Concatenate `tensor` of all processes along `dim`, with gradient.

    Args:
        tensor: Part of this process; has the same shape in all processes.
        dim: Axis of the concatenation, in the order of ranks.

    Returns:
        The concatenated tensor, and the index at which the part of this process starts.
    """
    if not several_processes():
        return tensor, 0
    everyone = _AllGather.apply(tensor.contiguous(), dim)
    return everyone, dist.get_rank() * tensor.shape[dim]


__all__ = [
    "StepMetrics",
    "all_gather",
    "all_reduce_logsumexp",
    "all_reduce_sum",
    "mean_over_processes",
    "several_processes",
    "without_others",
]
