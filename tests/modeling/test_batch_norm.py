"""Batch norm with statistics of all processes."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from selfvit.modeling.batch_norm import BatchNorm
from tests.training.processes import call_in_two

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def make_rows(seed: int = 0) -> Tensor:
    """Return 7 rows of 3 features with a mean far from 0."""
    return torch.randn(7, 3, generator=torch.Generator().manual_seed(seed)) * 0.5 + 3


def loss_of(rows: Tensor) -> Tensor:
    """Return a weighted sum with distinct weights, so that gradients are not 0."""
    return rows.square().mul(torch.arange(1.0, rows.numel() + 1).reshape(rows.shape)).sum()


def randomize(module: nn.Module) -> None:
    with torch.no_grad():
        module.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        module.bias.copy_(torch.tensor([-1.0, 0.0, 1.0]))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_one_process_matches_torch_batch_norm(training, affine):
    ours = BatchNorm(3, affine=affine).train(training)
    theirs = nn.BatchNorm1d(3, affine=affine).train(training)
    if affine:
        randomize(ours)
        randomize(theirs)
    for seed in range(3):
        torch.testing.assert_close(ours(make_rows(seed)), theirs(make_rows(seed)), **CLOSE)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_half_precision_is_computed_in_the_dtype_of_the_weights():
    rows = torch.tensor([[60000.0], [59000.0], [-60000.0]], dtype=torch.float16)
    normalized = BatchNorm(1)(rows)
    assert normalized.dtype == torch.float16
    torch.testing.assert_close(normalized, BatchNorm(1)(rows.float()).half())


def test_a_single_image_is_an_error_in_training_only():
    module = BatchNorm(3)
    with pytest.raises(ValueError, match=r"at least 2 images .* got 1; use a larger --batch-size"):
        module(torch.ones(1, 3))
    assert module.eval()(torch.ones(1, 3)).isfinite().all()


def normalize_in_process(rank: int, store_file: str, result_file: str) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(store_file, 2), rank=rank, world_size=2)
    module = BatchNorm(3)
    randomize(module)
    whole = make_rows()
    part = whole[:3] if rank == 0 else whole[3:]  # unequal sizes
    part = part.clone().requires_grad_()
    normalized = module(part)
    offset = 0 if rank == 0 else 9
    weights = torch.arange(1.0, part.numel() + 1).reshape(part.shape) + offset
    normalized.square().mul(weights).sum().backward()
    result = {
        "normalized": normalized.detach(),
        "gradient": part.grad,
        "weight_gradient": module.weight.grad,
        "running_mean": module.running_mean,
        "running_var": module.running_var,
    }
    torch.save(result, f"{result_file}{rank}")
    dist.destroy_process_group()


def test_two_processes_match_one_with_all_rows(tmp_path):
    arguments = (str(tmp_path / "store"), str(tmp_path / "result"))
    call_in_two(normalize_in_process, arguments)
    parts = [torch.load(tmp_path / f"result{rank}") for rank in range(2)]
    whole = nn.BatchNorm1d(3)
    randomize(whole)
    rows = make_rows().requires_grad_()
    normalized = whole(rows)
    loss_of(normalized).backward()
    both = {name: torch.cat([part[name] for part in parts]) for name in ("normalized", "gradient")}
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(both["normalized"], normalized.detach(), **close)
    torch.testing.assert_close(both["gradient"], rows.grad, **close)
    gradient = parts[0]["weight_gradient"] + parts[1]["weight_gradient"]
    torch.testing.assert_close(gradient, whole.weight.grad, **close)
    for part in parts:
        torch.testing.assert_close(part["running_mean"], whole.running_mean)
        torch.testing.assert_close(part["running_var"], whole.running_var, rtol=1e-4, atol=1e-6)
