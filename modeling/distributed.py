"""Collectives that are the identity without a process group."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather as differentiable_all_gather


def num_processes() -> int:
    """Return how many processes train together; 1 without a process group."""
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Return the sum of `tensor` over all processes, without gradient; it stays as it is."""
    if num_processes() == 1:
        return tensor
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def all_gather(tensor: Tensor, dim: int) -> tuple[Tensor, int]:
    """Concatenate the `tensor` of all processes along `dim`; gradients flow back to each.

    Args:
        tensor: of one shape in all processes.
        dim: axis along which they are concatenated, in the order of the processes.

    Returns:
        the whole, and where in it this process's own part begins.
    """
    if num_processes() == 1:
        return tensor, 0
    everyone = differentiable_all_gather(tensor.contiguous())
    return torch.cat(list(everyone), dim=dim), dist.get_rank() * tensor.shape[dim]


__all__ = ["all_gather", "all_reduce_sum", "num_processes"]
