"""Collectives, without a process group and over processes."""

from __future__ import annotations

import torch
import torch.distributed as dist

from selfvit.modeling.distributed import all_reduce_logsumexp, all_reduce_sum
from tests.training.processes import call_in_two


def test_collectives_are_the_identity_without_a_process_group():
    tensor = torch.randn(3)
    assert all_reduce_sum(tensor) is tensor
    assert all_reduce_logsumexp(tensor) is tensor


def test_collectives_are_the_identity_with_one_process(tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        tensor = torch.randn(3)
        assert all_reduce_sum(tensor) is tensor
    finally:
        dist.destroy_process_group()


def sum_in_process(rank: int, store_file: str, result_file: str) -> None:
    store = dist.FileStore(store_file, 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    tensor = torch.tensor([1.0, 10.0]) * (rank + 1)
    total = all_reduce_sum(tensor)
    torch.save((tensor, total), f"{result_file}{rank}")
    dist.destroy_process_group()


def test_two_processes_get_the_sum_and_do_not_change_their_argument(tmp_path):
    arguments = (str(tmp_path / "store"), str(tmp_path / "result"))
    call_in_two(sum_in_process, arguments)
    for rank in range(2):
        tensor, total = torch.load(tmp_path / f"result{rank}")
        assert torch.equal(tensor, torch.tensor([1.0, 10.0]) * (rank + 1))
        assert torch.equal(total, torch.tensor([3.0, 30.0]))


def differentiate_in_process(rank: int, store_file: str, result_file: str) -> None:
    store = dist.FileStore(store_file, 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    tensor = (torch.tensor([1.0, -2000.0]) * (rank + 1)).requires_grad_()
    total = all_reduce_logsumexp(tensor)
    # the processes have different losses; the total loss is their sum
    (total * torch.tensor([1.0, 2.0]) * (rank + 1)).sum().backward()
    torch.save((total.detach(), tensor.grad), f"{result_file}{rank}")
    dist.destroy_process_group()


def test_logsumexp_over_two_processes_has_the_gradient_of_one_process(tmp_path):
    arguments = (str(tmp_path / "store"), str(tmp_path / "result"))
    call_in_two(differentiate_in_process, arguments)
    rows = torch.tensor([[1.0, -2000.0], [2.0, -4000.0]], requires_grad=True)
    total = rows.logsumexp(dim=0)
    (total * torch.tensor([1.0, 2.0]) * 3).sum().backward()  # weights 1 and 2, summed
    for rank in range(2):
        found, gradient = torch.load(tmp_path / f"result{rank}")
        torch.testing.assert_close(found, total.detach())
        torch.testing.assert_close(gradient, rows.grad[rank])
