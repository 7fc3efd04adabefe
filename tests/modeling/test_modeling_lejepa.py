"""LeJEPA and VISReg: pure functions, head, loss and model."""

# B batch · G global views · V all views · N images of all processes · E head output · K slices

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from selfvit import LeJEPAConfig, SelfViTForLeJEPA, SelfViTModel
from selfvit.modeling.modeling_lejepa import (
    LeJEPAHead,
    LeJEPALoss,
    invariance,
    random_slices,
    sigreg,
    visreg,
)
from tests.golden import load_golden
from tests.modeling.test_modeling_selfvit import INITIALIZATION, assert_statistics
from tests.objectives import random_views, tiny_config, tiny_lejepa_config
from tests.training.processes import call_in_two

OUTPUTS = {"rtol": 1e-5, "atol": 0.0}
STEPS = ("step0", "step1", "step2")
REGULARIZERS = ("sigreg", "visreg")


def make_model(
    seed: int = 0, lejepa: dict[str, Any] | None = None, **overrides: Any
) -> SelfViTForLeJEPA:
    torch.manual_seed(seed)
    config = tiny_config(lejepa_config=tiny_lejepa_config(**(lejepa or {})), **overrides)
    return SelfViTForLeJEPA(config)


def make_views(batch_size: int = 4, seed: int = 1, num_local_views: int = 2) -> dict[str, Tensor]:
    return random_views(torch.Generator().manual_seed(seed), batch_size, num_local_views)


def normal_projections(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Values of the reference


def golden_projections(golden: dict[str, Tensor], step: str) -> tuple[Tensor, Tensor]:
    """Return the projections of global and local views, which require gradients."""
    return golden[f"{step}.global"].requires_grad_(), golden[f"{step}.local"].requires_grad_()


def assert_matches(golden: dict[str, Tensor], name: str, value: Tensor, views: Any, grad: str):
    """Compare a value and its gradients; `grad` is the prefix of the names of the gradients."""
    torch.testing.assert_close(value.detach(), golden[name][0], **OUTPUTS, msg=name)
    gradients = torch.autograd.grad(value, views, retain_graph=True)
    for kind, gradient in zip(("global", "local"), gradients, strict=True):
        expected = golden[f"{grad}{kind}_grad"]
        close = {"rtol": 1e-4, "atol": 1e-6 * float(expected.abs().max())}
        torch.testing.assert_close(gradient, expected, **close, msg=f"{name} {kind}")


@pytest.mark.parametrize("step", STEPS)
def test_sigreg_and_its_gradients_match_the_reference(step):
    golden, config = load_golden("lejepa")
    case = config["cases"][step]
    views = golden_projections(golden, step)
    projections = torch.cat(views)
    value = sigreg(projections, golden[f"{step}.slices"], case["knots"], case["t_max"])
    assert_matches(golden, f"{step}.sigreg", value, views, f"{step}.sigreg.")
    distance = invariance(projections, len(views[0]))
    assert_matches(golden, f"{step}.invariance", distance, views, f"{step}.invariance.")


def loss_with(slices: Tensor, **fields: Any) -> LeJEPALoss:
    config = LeJEPAConfig(head_output_size=len(slices), num_slices=slices.shape[1], **fields)
    loss = LeJEPALoss(config)
    loss.slices.copy_(slices)
    return loss


@pytest.mark.parametrize("step", STEPS)
def test_the_loss_of_lejepa_and_its_gradients_match_the_reference(step):
    golden, config = load_golden("lejepa")
    case = config["cases"][step]
    loss = loss_with(
        golden[f"{step}.slices"],
        regularization_weight=case["lambda"],
        sigreg_num_knots=case["knots"],
        sigreg_max_frequency=case["t_max"],
    )
    views = golden_projections(golden, step)
    output = loss(torch.cat(views), len(views[0]))
    assert_matches(golden, f"{step}.loss", output.loss, views, f"{step}.")
    assert output.center is output.scale is output.shape is None


@pytest.mark.parametrize("step", [*STEPS, "collapsed"])
def test_the_terms_of_visreg_and_their_gradients_match_the_reference(step):
    golden, config = load_golden("visreg")
    case = config["cases"][step]
    views = golden_projections(golden, step)
    terms = visreg(torch.cat(views), golden[f"{step}.slices"], case["eps"])
    for name, value in terms._asdict().items():
        if name == "center" and step == "collapsed":  # 0, not close to 0
            assert value == golden[f"{step}.center"] == 0
        assert_matches(golden, f"{step}.{name}", value, views, f"{step}.{name}.")


@pytest.mark.parametrize("step", ["step0", "step1", "collapsed"])  # the others have another epsilon
def test_the_loss_of_visreg_and_its_gradients_match_the_reference(step):
    golden, config = load_golden("visreg")
    case = config["cases"][step]
    loss = loss_with(
        golden[f"{step}.slices"], regularizer="visreg", regularization_weight=case["lambda"]
    )
    views = golden_projections(golden, step)
    output = loss(torch.cat(views), len(views[0]))
    assert_matches(golden, f"{step}.total", output.loss, views, f"{step}.total.")
    assert_matches(golden, f"{step}.pred", output.invariance, views, f"{step}.pred.")


def test_the_weights_of_the_terms_of_visreg_apply_to_their_terms():
    projections, slices = normal_projections(3, 8, 4), random_slices(4, 5, seed=0)
    weights = {"center": 2.0, "scale": 3.0, "shape": 5.0}
    fields = {f"visreg_{name}_weight": weight for name, weight in weights.items()}
    output = loss_with(slices, regularizer="visreg", **fields)(projections, 2)
    expected = 2 * output.center + 3 * output.scale + 5 * output.shape
    torch.testing.assert_close(output.regularizer, expected)


# Values computed by hand

ONE_AXIS = torch.eye(6)[:, :1]


@pytest.mark.parametrize(
    ("values", "per_image"),
    [
        ((0.0, 0.0), 0.402048),  # all in the origin
        ((1.0, 1.0), 1.186006),  # all at distance 1 along the slice
        ((1.0, -1.0), 0.102830),  # half at +1, half at -1
    ],
)
@pytest.mark.parametrize("num_images", [8, 128])
def test_sigreg_matches_values_computed_by_hand(values, per_image, num_images):
    projections = torch.zeros(1, num_images, 6)
    projections[0, :, 0] = torch.tensor(values).repeat(num_images // 2)
    value = sigreg(projections, ONE_AXIS).item()
    assert value == pytest.approx(per_image * num_images, rel=1e-5)


def test_sigreg_of_half_the_std_matches_its_limit():
    ranks = torch.arange(1, 20_001) / 20_001
    projections = (torch.special.ndtri(ranks.double()).float() / 2)[None, :, None]
    value = sigreg(projections, torch.ones(1, 1)).item()
    assert value / 20_000 == pytest.approx(0.151191, rel=1e-3)


@pytest.mark.parametrize("num_images", [4, 64])
def test_the_expectation_of_sigreg_for_normal_samples_does_not_depend_on_their_size(num_images):
    samples = normal_projections(20_000, num_images, 1)
    value = sigreg(samples, torch.ones(1, 1)).item()
    assert value == pytest.approx(1.052464, rel=0.03)


@pytest.mark.parametrize(("num_images", "shape"), [(4, 0.386256), (128, 0.936168)])
def test_visreg_of_equal_projections_matches_values_computed_by_hand(num_images, shape):
    terms = visreg(torch.zeros(2, num_images, 6), random_slices(6, 5, seed=0))
    assert (terms.center, terms.scale) == (0.0, 1.0)
    assert terms.shape.item() == pytest.approx(shape, rel=1e-5)
    moved = visreg(torch.full((2, num_images, 6), 2.0), random_slices(6, 5, seed=0))
    assert (moved.center, moved.scale) == (4.0, 1.0)


def test_invariance_matches_a_value_computed_by_hand():
    # centers of the global views: 1 and 0; the local view is at 4 and 0
    projections = torch.tensor([[[0.0], [0.0]], [[2.0], [0.0]], [[4.0], [0.0]]])
    assert invariance(projections, 2).item() == pytest.approx((1 + 1 + 9) / 6)
    assert invariance(projections, 3).item() == pytest.approx((4 + 0 + 4) / 6)


# Properties


def test_slices_have_norm_1_and_depend_on_the_seed_only():
    slices = random_slices(7, 50, seed=3)
    assert slices.shape == (7, 50)
    torch.testing.assert_close(slices.norm(dim=0), torch.ones(50))
    torch.manual_seed(9)
    state = torch.get_rng_state()
    assert torch.equal(random_slices(7, 50, seed=3), slices)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(random_slices(7, 50, seed=4), slices)


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_regularizers_do_not_depend_on_the_order_of_images_and_views(regularizer):
    loss = loss_with(random_slices(6, 8, seed=0), regularizer=regularizer)
    projections = normal_projections(3, 16, 6)
    value = loss(projections, 3).regularizer
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    for other in (projections[:, order], projections.flip(0)):
        torch.testing.assert_close(loss(other, 3).regularizer, value)


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_views_are_samples_of_their_own(regularizer):
    # two views at -1 and +1 have zero mean together, but each of them is collapsed
    loss = loss_with(random_slices(4, 8, seed=0), regularizer=regularizer)
    views = torch.stack([torch.ones(16, 4), -torch.ones(16, 4)])
    single = [loss(torch.stack([view, view]), 2).regularizer for view in views]
    torch.testing.assert_close(loss(views, 2).regularizer, sum(single) / 2)


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_descent_turns_any_sample_into_a_normal_one(regularizer):
    projections = (normal_projections(1, 64, 3) * 0.2 + 1).requires_grad_()
    loss = loss_with(random_slices(3, 64, seed=0), regularizer=regularizer)
    optimizer = torch.optim.Adam([projections], lr=0.05)
    for step in range(200):
        loss.draw_slices(step)
        loss(projections.expand(2, -1, -1), 2).regularizer.backward()
        optimizer.step()
        optimizer.zero_grad()
    values = projections.detach()[0]
    assert values.mean(dim=0).abs().max() < 0.1
    assert (values.T.cov() - torch.eye(3)).abs().max() < 0.25


def test_visreg_moves_equal_projections_and_sigreg_does_not():
    # why VISReg is safer after a collapse: sorting breaks the tie, the characteristic function
    # of a point at the origin has no gradient
    gradients = {}
    for regularizer in REGULARIZERS:
        projections = torch.zeros(2, 8, 4, requires_grad=True)
        loss = loss_with(random_slices(4, 8, seed=0), regularizer=regularizer)
        loss(projections, 2).loss.backward()
        gradients[regularizer] = projections.grad.abs().max()
    assert gradients["sigreg"] == 0 and gradients["visreg"] > 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_the_loss_is_computed_in_float32_under_autocast(regularizer, dtype):
    loss = loss_with(random_slices(4, 8, seed=0), regularizer=regularizer)
    projections = (normal_projections(2, 8, 4) * 100).to(dtype).requires_grad_()
    expected = loss(projections.detach().float(), 2)
    with torch.autocast("cpu", torch.bfloat16 if dtype == torch.float32 else dtype):
        output = loss(projections, 2)
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    torch.testing.assert_close(output.loss.detach(), expected.loss)
    assert projections.grad.isfinite().all()


@pytest.mark.parametrize(
    ("shape", "num_global_views"), [((1, 2, 4), 1), ((8, 4), 2), ((3, 2, 5), 2), ((2, 2, 4), 3)]
)
def test_shapes_that_do_not_match_are_an_error_that_names_them(shape, num_global_views):
    loss = loss_with(random_slices(4, 8, seed=0))
    with pytest.raises(ValueError, match=r"\(views, batch, 4\)") as error:
        loss(torch.zeros(shape), num_global_views)
    assert str(shape) in str(error.value)


# Two processes


def parallel_model(regularizer: str) -> SelfViTForLeJEPA:
    return make_model(lejepa={"regularizer": regularizer}, initializer_range=0.2).train()


def step_in_process(rank: int, store_file: str, result_file: str, regularizer: str) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(store_file, 2), rank=rank, world_size=2)
    torch.set_num_threads(1)
    model = parallel_model(regularizer)
    views = {name: value[:, 3 * rank : 3 * rank + 3] for name, value in make_views(6).items()}
    torch.manual_seed(rank)  # random numbers differ between processes, slices do not
    parallel = DistributedDataParallel(model)  # a reference: without one, gradients stay local
    output = parallel(**views)
    output.loss.backward()
    model.after_optimizer_step(0, 10)
    gradients = {name: value.grad for name, value in model.named_parameters()}
    values = {name: value.detach() for name, value in output.items()}
    torch.save((values, gradients, model.loss.slices), f"{result_file}{rank}")
    dist.destroy_process_group()


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_two_processes_have_loss_and_gradients_of_one(regularizer, tmp_path):
    call_in_two(step_in_process, (str(tmp_path / "store"), str(tmp_path / "result"), regularizer))
    values, gradients, slices = zip(
        *(torch.load(tmp_path / f"result{rank}") for rank in range(2)), strict=True
    )
    model = parallel_model(regularizer)
    whole = model(**make_views(6))
    whole.loss.backward()
    for name in whole.keys() - {"loss", "invariance"}:  # over all images, in both processes
        for value in values:
            torch.testing.assert_close(value[name], whole[name].detach(), msg=name)
    for name in ("loss", "invariance"):
        mean = (values[0][name] + values[1][name]) / 2
        torch.testing.assert_close(mean, whole[name].detach(), msg=name)
    for name, parameter in model.named_parameters():
        scale = float(parameter.grad.abs().max())
        for gradient in gradients:
            torch.testing.assert_close(
                gradient[name], parameter.grad, rtol=1e-4, atol=1e-5 + 1e-4 * scale, msg=name
            )
    assert torch.equal(slices[0], slices[1])


# The model


def test_a_missing_lejepa_config_is_an_error():
    with pytest.raises(ValueError, match=r"lejepa_config=LeJEPAConfig\(\)"):
        SelfViTForLeJEPA(tiny_config())


def test_every_parameter_and_buffer_is_initialized_as_documented():
    sizes = {"head_hidden_size": 96, "head_output_size": 64}
    model = make_model(hidden_size=128, lejepa=sizes)
    encoder = set()
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name == "loss.slices":
            assert torch.equal(value, random_slices(64, 32, seed=0))
        elif re.search(r"head\.fc\d\.weight", name):
            assert_statistics(name, value, 0.0, 0.02)
        elif re.search(r"head\.(norm\d\.(weight|running_var))$", name):
            assert (value == 1).all(), name
        elif re.search(r"head\.(norm\d\.(bias|running_mean)|fc3\.bias)$", name):
            assert (value == 0).all(), name
        else:
            assert name.startswith("vit."), name
            encoder.add(name)
    names = [pattern for pattern, _ in INITIALIZATION.values()]
    assert all(any(re.search(pattern, name) for pattern in names) for name in encoder)


def test_the_head_has_the_chosen_activation():
    features = normal_projections(8, 6)
    torch.manual_seed(0)
    relu = LeJEPAHead(6, tiny_lejepa_config()).eval()
    gelu = LeJEPAHead(6, tiny_lejepa_config(head_activation="gelu")).eval()
    gelu.load_state_dict(relu.state_dict())
    hidden = relu.norm2(relu.fc2(relu.norm1(relu.fc1(features)).relu())).relu()
    torch.testing.assert_close(relu(features), relu.fc3(hidden))
    assert not torch.allclose(gelu(features), relu(features))


@pytest.mark.parametrize("num_local_views", [0, 2])
@pytest.mark.parametrize("head_input", ["cls", "pooled"])
def test_the_forward_pass_is_the_loss_of_all_views(num_local_views, head_input):
    model = make_model(lejepa={"head_input": head_input}, initializer_range=0.2, pooling="cls+mean")
    views = make_views(num_local_views=num_local_views)
    output = model(**views)

    def features(images: Tensor) -> Tensor:
        outputs = model.vit(images)
        if head_input == "pooled":
            return outputs.pooler_output
        return outputs.last_hidden_state[:, 0]

    rows = torch.cat([features(crops.flatten(0, 1)) for crops in views.values()])
    projections = model.head(rows).unflatten(0, (2 + num_local_views, 4))
    expected = model.loss(projections, 2)
    for name in ("loss", "invariance", "regularizer"):
        torch.testing.assert_close(output[name], expected[name], rtol=1e-4, atol=1e-5)
    if num_local_views == 0:
        empty = torch.empty(0, 4, 3, 16, 16)
        assert torch.equal(model(**views, local_views=empty).loss, output.loss)


def test_a_single_image_is_an_error_in_training_only():
    model, views = make_model(), make_views(batch_size=1)
    with pytest.raises(ValueError, match="at least 2 images in each micro-batch"):
        model(**views)
    assert model.eval()(**views).loss.isfinite()


def test_a_pretrained_encoder_is_used_and_the_head_is_new(tmp_path):
    torch.manual_seed(5)
    encoder = SelfViTModel(tiny_config())
    encoder.save_pretrained(tmp_path)
    config = tiny_config(lejepa_config=tiny_lejepa_config())
    model = SelfViTForLeJEPA.from_pretrained(tmp_path, config=config)
    for name, value in encoder.state_dict().items():
        assert torch.equal(model.vit.state_dict()[name], value), name
    assert torch.equal(model.loss.slices, random_slices(16, 32, seed=0))


def test_slices_are_new_in_each_step_and_saved(tmp_path):
    model = make_model()
    drawn = [model.loss.slices.clone()]
    for step in range(3):
        model(**make_views(seed=step))
        model.after_optimizer_step(step, 10)
        drawn.append(model.loss.slices.clone())
    for number, slices in enumerate(drawn):
        assert torch.equal(slices, random_slices(16, 32, seed=number))
    model.save_pretrained(tmp_path)
    loaded = SelfViTForLeJEPA.from_pretrained(tmp_path)
    assert torch.equal(loaded.loss.slices, drawn[-1])
    narrow = SelfViTForLeJEPA.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(narrow.loss.slices, drawn[-1])  # stays in float32


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_terms_of_the_last_step_are_metrics(regularizer):
    model = make_model(lejepa={"regularizer": regularizer}).train()
    names = {"invariance", "regularizer"}
    if regularizer == "visreg":
        names |= {"center", "scale", "shape"}
    outputs = [model(**make_views(seed=seed)) for seed in (0, 1)]  # two micro-batches
    metrics = model.after_optimizer_step(0, 10)
    expected = {name: (outputs[0][name] + outputs[1][name]).item() / 2 for name in names}
    assert metrics == pytest.approx(expected)
    output = model(**make_views())
    assert model.after_optimizer_step(1, 10) == {name: output[name].item() for name in names}


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_training_lowers_the_loss_and_keeps_projections_apart(regularizer):
    model = make_model(lejepa={"regularizer": regularizer}, initializer_range=0.2).train()
    views, start = make_views(batch_size=16), copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(20):
        model(**views).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.after_optimizer_step(step, 20)
    start.loss.draw_slices(20)
    with torch.no_grad():
        assert model(**views).loss < start(**views).loss
        features = model.vit.class_tokens(views["global_views"][0])[0]
        assert model.head(features).std(dim=0).mean() > 0.3
