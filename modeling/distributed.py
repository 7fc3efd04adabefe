"""Collectives that are the identity without a process group."""

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
    """Make the collectives the identity: for what this process tries by itself."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def several_processes() -> bool:
    """Say whether there are others to reduce with."""
    if _alone or not (dist.is_available() and dist.is_initialized()):
        return False
    return dist.get_world_size() > 1


class _AllReduceSum(torch.autograd.Function):
    """Every process's output depends on every process's input, so gradients are summed as well."""

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        return _reduced(tensor, dist.ReduceOp.SUM)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return _reduced(gradient, dist.ReduceOp.SUM)


class _AllGather(torch.autograd.Function):
    """Every process has every part, so a part's gradient is the sum of what all make of it."""

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
    """Return the sum of `tensor` over all processes; it stays as it is.

    Its gradient is that of the sum of all processes' losses. DistributedDataParallel then averages
    parameters' gradients, which gives the gradient of the mean loss.
    """
    return _AllReduceSum.apply(tensor) if several_processes() else tensor


def mean_over_processes(tensor: Tensor) -> Tensor:
    """Return the mean of `tensor` over all processes, without gradient; it stays as it is."""
    if not several_processes():
        return tensor.detach()
    return _reduced(tensor, dist.ReduceOp.SUM) / dist.get_world_size()


def all_reduce_logsumexp(tensor: Tensor) -> Tensor:
    """Return log(sum(exp(tensor))) over all processes, with gradient; it stays as it is."""
    if not several_processes():
        return tensor
    largest = _reduced(tensor, dist.ReduceOp.MAX)
    return largest + all_reduce_sum((tensor - largest).exp()).log()


def all_gather(tensor: Tensor, dim: int) -> tuple[Tensor, int]:
    """Concatenate the `tensor` of all processes along `dim`; gradients flow back to each.

    Args:
        tensor: of one shape in all processes.
        dim: axis along which they are concatenated, in the order of the processes.

    Returns:
        the whole, and where in it this process's own part begins.
    """
    if not several_processes():
        return tensor, 0
    everyone = _AllGather.apply(tensor.contiguous(), dim)
    return everyone, dist.get_rank() * tensor.shape[dim]


__all__ = [
    "all_gather",
    "all_reduce_logsumexp",
    "all_reduce_sum",
    "mean_over_processes",
    "several_processes",
    "without_others",
]
