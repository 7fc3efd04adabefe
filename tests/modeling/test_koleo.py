"""KoLeo regularizer: hand-computed values, gradients, and two processes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist

from selfvit import SelfViTForDINO
from selfvit.modeling.koleo import koleo_loss
from tests.golden import load_golden
from tests.objectives import random_views, tiny_config, tiny_dino_config
from tests.training.processes import call_in_two


def random_features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_loss_is_minus_the_mean_log_distance_to_the_nearest_neighbor():
    # on the circle: 0 and 90 degrees are sqrt(2) apart, 180 degrees is sqrt(2) from 90
    features = torch.tensor([[[1.0, 0.0], [0.0, 3.0], [-2.0, 0.0]]])
    assert koleo_loss(features).item() == pytest.approx(-math.log(math.sqrt(2)))


@pytest.mark.parametrize("reference", ["dinov2", "lightly"])
@pytest.mark.parametrize("case", ["random", "pairs", "scaled", "duplicate", "opposite"])
def test_the_loss_and_its_gradient_match_the_reference(case, reference):
    golden, _ = load_golden("koleo")
    features = golden[f"{case}.features"].requires_grad_()
    loss = koleo_loss(features[None])
    if case == "opposite" and reference == "dinov2":
        # dinov2 may take a vector as its own neighbor here: it ignores cosines of -1
        assert golden["opposite.dinov2.loss"][0] > loss + 1
        return
    expected = golden[f"{case}.{reference}.loss"][0]
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=1e-6)
    loss.backward()
    gradient = golden[f"{case}.{reference}.grad"]
    close = {"rtol": 1e-4, "atol": 1e-6 * float(gradient.abs().max())}
    torch.testing.assert_close(features.grad, gradient, **close)


def test_neighbors_are_in_the_same_view():
    view = random_features(1, 6, 8)
    both = koleo_loss(torch.cat([view, view]))  # the copy in the other view has distance 0
    torch.testing.assert_close(both, koleo_loss(view))


def test_the_loss_is_lower_if_features_fill_more_directions():
    features = random_features(1, 32, 8)
    flat = features * torch.tensor([1.0, 1.0] + [0.01] * 6)
    assert koleo_loss(features) < koleo_loss(flat)


def test_equal_features_give_a_finite_loss_and_gradient():
    features = torch.ones(1, 4, 8, requires_grad=True)
    loss = koleo_loss(features)
    loss.backward()
    assert loss.isfinite() and features.grad.isfinite().all()


def test_a_step_against_the_gradient_moves_neighbors_apart():
    features = random_features(1, 6, 4).requires_grad_()
    before = koleo_loss(features)
    before.backward()
    assert koleo_loss(features - 0.01 * features.grad) < before


def test_the_loss_is_float32_under_autocast():
    features = random_features(2, 8, 16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = koleo_loss(features)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, koleo_loss(features))


def test_a_single_image_is_an_error():
    with pytest.raises(ValueError, match="at least 2 images in the batch and got 1"):
        koleo_loss(torch.ones(2, 1, 8))


def loss_and_gradient(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    features = features.clone().requires_grad_()
    loss = koleo_loss(features)
    (gradient,) = torch.autograd.grad(loss, features)
    return loss.detach(), gradient


def half_in_process(rank: int, store_file: str, result_file: str) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(store_file, 2), rank=rank, world_size=2)
    half = random_features(2, 8, 4).chunk(2, dim=1)[rank]
    torch.save(loss_and_gradient(half), f"{result_file}{rank}")
    dist.destroy_process_group()


def test_two_processes_have_loss_and_gradients_of_one(tmp_path):
    arguments = (str(tmp_path / "store"), str(tmp_path / "result"))
    call_in_two(half_in_process, arguments)
    halves = [torch.load(tmp_path / f"result{rank}") for rank in range(2)]
    loss, gradient = loss_and_gradient(random_features(2, 8, 4))
    torch.testing.assert_close((halves[0][0] + halves[1][0]) / 2, loss)
    # data parallel training averages the gradients of the processes
    torch.testing.assert_close(torch.cat([half[1] for half in halves], dim=1) / 2, gradient)


def test_dino_adds_the_weighted_loss_on_the_students_features():
    losses = []
    for weight in (0.0, 0.1, 0.3):
        torch.manual_seed(0)
        config = tiny_config(
            initializer_range=0.2, dino_config=tiny_dino_config(koleo_weight=weight)
        )
        model = SelfViTForDINO(config)
        views = random_views(torch.Generator().manual_seed(1), 4)
        losses.append(model(**views).loss)
    features = model.student.vit.class_tokens(views["global_views"].flatten(0, 1))[0]
    expected = koleo_loss(features.unflatten(0, (2, 4)))
    torch.testing.assert_close(losses[1] - losses[0], 0.1 * expected)
    torch.testing.assert_close(losses[2] - losses[0], 0.3 * expected)
