"""MSN and PMSN: pure functions, head, loss, and model with teacher."""

# B batch · R random views · F focal views · V anchor views · K prototypes · E head output

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import ViTMSNConfig, ViTMSNModel

from selfvit import PMSNConfig, SelfViTForPMSN, SelfViTModel
from selfvit.modeling.modeling_pmsn import (
    PMSNLoss,
    kl_divergence,
    mean_prediction,
    num_patches_kept,
    power_law_prior,
    sharpen,
)
from selfvit.modeling.teacher_targets import sinkhorn
from tests.golden import load_golden
from tests.modeling.test_modeling_selfvit import INITIALIZATION, assert_statistics
from tests.objectives import anchor_and_target_views, tiny_config, tiny_pmsn_config
from tests.training.processes import call_in_two


def make_model(
    seed: int = 0, pmsn: dict[str, Any] | None = None, **overrides: Any
) -> SelfViTForPMSN:
    torch.manual_seed(seed)
    return SelfViTForPMSN(tiny_config(pmsn_config=tiny_pmsn_config(**(pmsn or {})), **overrides))


def make_views(batch_size: int = 3, seed: int = 1, **numbers: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return anchor_and_target_views(generator, batch_size, **numbers)


def random_log_probabilities(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).log_softmax(dim=-1)


def teacher_and_student(model: SelfViTForPMSN) -> list[tuple[str, Tensor, Tensor]]:
    """Return names, tensors of the teacher and tensors of the student."""
    state = model.state_dict()
    return [
        (name, state[name], state[f"student.{name}"])
        for name in state
        if name.startswith(("vit.", "head."))
    ]


# Pure functions


def test_sharpening_is_a_renormalized_power():
    probabilities = torch.tensor([[0.5, 0.3, 0.2]])
    expected = probabilities**4 / (probabilities**4).sum()
    torch.testing.assert_close(sharpen(probabilities.log(), 0.25).exp(), expected)


def test_sharpening_multiplies_temperatures():
    cosines = torch.linspace(-1, 1, 7)
    both = sharpen(sharpen(cosines, 0.1), 0.25)
    torch.testing.assert_close(both, sharpen(cosines, 0.025))


def test_the_power_law_matches_hand_computed_values():
    # 1, 1/2, 1/3, 1/4 for an exponent of 1
    expected = torch.tensor([12.0, 6.0, 4.0, 3.0]) / 25
    torch.testing.assert_close(power_law_prior(4, 1.0).exp(), expected)


@pytest.mark.parametrize("exponent", [0.0, 0.25, 2.0])
def test_the_prior_sums_to_one_and_has_its_exponent(exponent):
    log_prior = power_law_prior(1024, exponent)
    assert log_prior.exp().sum().item() == pytest.approx(1, abs=1e-5)
    slope = (log_prior[99] - log_prior[9]) / math.log(10)  # ranks 100 and 10
    assert slope.item() == pytest.approx(-exponent, abs=1e-4)


def test_sinkhorn_balances_prototypes_and_keeps_rows():
    balanced = sinkhorn(random_log_probabilities(40, 5) * 3, 50).exp()
    torch.testing.assert_close(balanced.sum(dim=1), torch.ones(40))
    torch.testing.assert_close(balanced.sum(dim=0), torch.full((5,), 8.0), rtol=1e-4, atol=1e-4)


def test_sinkhorn_normalizes_columns_and_rows_in_turn():
    probabilities = random_log_probabilities(6, 4).exp()
    expected = probabilities
    for _ in range(3):
        expected = expected / expected.sum(dim=0)
        expected = expected / expected.sum(dim=1, keepdim=True)
    torch.testing.assert_close(sinkhorn(probabilities.log(), 3).exp(), expected)


def test_sinkhorn_of_a_single_image_is_uniform():
    balanced = sinkhorn(random_log_probabilities(1, 4), 3)
    torch.testing.assert_close(balanced.exp(), torch.full((1, 4), 0.25))


def test_sinkhorn_without_iterations_changes_nothing():
    log_probabilities = random_log_probabilities(3, 4)
    assert torch.equal(sinkhorn(log_probabilities, 0), log_probabilities)


def test_sinkhorn_is_finite_for_a_prototype_far_from_all_images():
    # its probability is 0 in float32; the reference divides by it and gets NaN
    log_probabilities = torch.tensor([[0.0, -500.0, -1.0], [-1.0, -700.0, 0.0]])
    assert sinkhorn(log_probabilities, 3).exp().isfinite().all()


def test_the_mean_prediction_is_the_mean():
    log_probabilities = random_log_probabilities(3, 4, 5)
    expected = log_probabilities.exp().mean(dim=(0, 1))
    torch.testing.assert_close(mean_prediction(log_probabilities).exp(), expected)


def test_the_divergence_from_uniform_is_ln_k_minus_the_entropy():
    log_p = random_log_probabilities(6)
    entropy = -(log_p.exp() * log_p).sum()
    divergence = kl_divergence(log_p, power_law_prior(6, 0.0))
    torch.testing.assert_close(divergence, math.log(6) - entropy)


@pytest.mark.parametrize(
    ("num_patches", "ratio", "kept"),
    [(196, 0.15, 166), (10, 0.9, 1), (10, 0.3, 7), (16, 0.0, 16), (2, 0.5, 1)],
)
def test_the_number_of_kept_patches_matches_the_reference(num_patches, ratio, kept):
    assert num_patches_kept(num_patches, ratio) == kept


def test_a_ratio_without_kept_patches_is_an_error_that_suggests_a_ratio():
    with pytest.raises(ValueError, match=r"patch_drop_ratio \(0.95\) .* use at most 0.937"):
        make_model(pmsn={"patch_drop_ratio": 0.95})  # 16 patches
    assert num_patches_kept(16, 0.937) == 1
    with pytest.raises(ValueError, match="leaves none of the 1 patches"):
        make_model()(torch.randn(2, 3, 8, 8), torch.randn(1, 2, 3, 8, 8))


# The loss

GOLDEN = {
    "msn": {"prior": "uniform"},
    "msn_no_regularizer": {"prior": "uniform", "regularization_weight": 0.0},
    "msn_sinkhorn": {"prior": "uniform", "sinkhorn_iterations": 3},
    "pmsn": {"kl_direction": "prior_to_mean"},
    "pmsn_exponent_0.5": {"kl_direction": "prior_to_mean", "power_law_exponent": 0.5},
    "pmsn_sinkhorn": {"kl_direction": "prior_to_mean", "sinkhorn_iterations": 3},
}


def make_loss(**fields: Any) -> PMSNLoss:
    return PMSNLoss(PMSNConfig(**{"regularization_weight": 1.0, **fields}))


def golden_inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Return anchors (V, B, E), targets (B, E) and prototypes (K, E), all with gradients."""
    golden = load_golden("msn_loss")[0]
    anchors = golden["anchors"].unflatten(0, (3, 6)).requires_grad_()
    return anchors, golden["targets"].requires_grad_(), golden["prototypes"].requires_grad_()


@pytest.mark.parametrize("name", GOLDEN)
def test_losses_and_gradients_match_the_reference(name):
    golden = load_golden("msn_loss")[0]
    anchors, targets, prototypes = golden_inputs()
    output = make_loss(**GOLDEN[name])(anchors, targets, prototypes)
    output.loss.backward()
    torch.testing.assert_close(output.loss, golden[f"{name}.loss"][0], rtol=1e-5, atol=0)
    for tensor, kind in ((anchors.flatten(0, 1), "anchors"), (prototypes, "prototypes")):
        gradient = anchors.grad.flatten(0, 1) if kind == "anchors" else tensor.grad
        expected = golden[f"{name}.{kind}_grad"]
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    assert targets.grad is None


def test_each_term_matches_the_authors_code():
    golden = load_golden("msn_loss_reference")[0]
    plain = make_loss(prior="uniform")(*golden_inputs())
    balanced = make_loss(prior="uniform", sinkhorn_iterations=3)(*golden_inputs())
    found = {
        "ce": plain.cross_entropy,
        "me_max": plain.regularizer,
        "entropy": plain.entropy,
        "ce_sinkhorn": balanced.cross_entropy,
    }
    for name, value in found.items():
        torch.testing.assert_close(value.detach(), golden[name][0], rtol=1e-5, atol=1e-6, msg=name)


def test_the_default_divergence_is_that_of_the_paper_and_not_of_lightly():
    # PMSN uses KL(mean || prior), which is MSN's me-max for the uniform prior; the golden values of
    # `pmsn` are from Lightly, which uses KL(prior || mean)
    anchors, targets, prototypes = golden_inputs()
    mean = (F.normalize(anchors, dim=-1) @ F.normalize(prototypes, dim=-1).T / 0.1).softmax(dim=-1)
    mean = mean.mean(dim=(0, 1))
    prior = torch.arange(1, 49) ** -0.25
    prior = prior / prior.sum()
    expected = (mean * (mean / prior).log()).sum()
    ours = make_loss()(anchors, targets, prototypes).regularizer
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)
    theirs = make_loss(kl_direction="prior_to_mean")(anchors, targets, prototypes).regularizer
    assert abs(theirs - ours) > 0.01


def test_a_power_law_of_exponent_0_is_msn():
    inputs = golden_inputs()
    uniform = make_loss(prior="uniform")(*inputs).loss
    assert torch.equal(make_loss(power_law_exponent=0.0)(*inputs).loss, uniform)


def test_two_images_and_two_prototypes_match_hand_computed_values():
    # prototypes and targets on the axes; anchors at 45 degrees and on the first axis
    anchors = torch.tensor([[[3.0, 3.0], [2.0, 0.0]]])
    targets = torch.tensor([[1.0, 0.0], [0.0, 5.0]])
    loss = make_loss(
        prior="uniform",
        student_temperature=1.0,
        teacher_temperature=0.5,
        regularization_weight=2.0,
        entropy_weight=3.0,
    )
    output = loss(anchors, targets, torch.eye(2) * 7)

    def sigmoid(value: float) -> float:
        return 1 / (1 + math.exp(-value))

    def entropy_of(p: float) -> float:
        return -(p * math.log(p) + (1 - p) * math.log(1 - p))

    # the probability of the first of two prototypes is the sigmoid of the difference of cosines
    anchor_predictions, target_predictions = (0.5, sigmoid(1.0)), (sigmoid(2.0), sigmoid(-2.0))
    cross_entropies = [
        -(t * math.log(p) + (1 - t) * math.log(1 - p))
        for p, t in zip(anchor_predictions, target_predictions, strict=True)
    ]
    mean = sum(anchor_predictions) / 2
    values = {
        "cross_entropy": sum(cross_entropies) / 2,
        "regularizer": math.log(2) - entropy_of(mean),
        "entropy": (entropy_of(0.5) + entropy_of(sigmoid(1.0))) / 2,
        "mean_entropy": entropy_of(mean),
    }
    for name, value in values.items():
        assert output[name].item() == pytest.approx(value, rel=1e-5), name
    total = values["cross_entropy"] + 2 * values["regularizer"] + 3 * values["entropy"]
    assert output.loss.item() == pytest.approx(total, rel=1e-5)


def test_the_loss_does_not_depend_on_the_norm_of_vectors():
    anchors, targets, prototypes = golden_inputs()
    loss = make_loss()
    scaled = loss(anchors * 3, targets * 0.1, prototypes * torch.linspace(0.5, 9, 48)[:, None])
    torch.testing.assert_close(scaled.loss, loss(anchors, targets, prototypes).loss)


@pytest.mark.parametrize(
    ("anchors", "targets", "prototypes"),
    [
        ((2, 5), (2, 5), (3, 5)),
        ((4, 2, 5), (3, 5), (3, 5)),
        ((4, 2, 5), (2, 5), (3, 6)),
    ],
)
def test_shapes_that_do_not_match_are_an_error_that_names_them(anchors, targets, prototypes):
    with pytest.raises(ValueError, match="anchors must be") as error:
        make_loss()(torch.zeros(anchors), torch.zeros(targets), torch.zeros(prototypes))
    assert str(anchors) in str(error.value) and str(prototypes) in str(error.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("sinkhorn_iterations", [0, 3])
def test_extreme_logits_stay_finite_in_any_precision(dtype, sinkhorn_iterations):
    # cosines of 1 and -1 over a temperature of 0.001: probabilities of e^-2000
    axes = torch.eye(4, dtype=dtype)
    anchors = torch.stack([axes * 3e4, -axes]).requires_grad_()
    prototypes = torch.cat([axes[:2], -axes[:2]]).requires_grad_()
    for kl_direction in ("mean_to_prior", "prior_to_mean"):
        loss = make_loss(
            student_temperature=0.001,
            teacher_temperature=0.00025,
            sinkhorn_iterations=sinkhorn_iterations,
            entropy_weight=1.0,
            kl_direction=kl_direction,
        )
        with torch.autocast("cpu", torch.bfloat16 if dtype == torch.float32 else dtype):
            output = loss(anchors, -axes, prototypes)
        output.loss.backward()
        assert output.loss.dtype == torch.float32
        assert all(value.isfinite() for value in output.values())
        assert anchors.grad.isfinite().all() and prototypes.grad.isfinite().all()


def loss_in_process(rank: int, store_file: str, result_file: str) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(store_file, 2), rank=rank, world_size=2)
    anchors, targets, prototypes = golden_inputs()
    part = slice(3 * rank, 3 * rank + 3)
    loss = make_loss(sinkhorn_iterations=3, entropy_weight=0.5)
    output = loss(anchors[:, part], targets[part], prototypes)
    output.loss.backward()
    values = {name: value.detach() for name, value in output.items()}
    torch.save((values, anchors.grad, prototypes.grad), f"{result_file}{rank}")
    dist.destroy_process_group()


def test_two_processes_have_losses_and_gradients_of_one(tmp_path):
    arguments = (str(tmp_path / "store"), str(tmp_path / "result"))
    call_in_two(loss_in_process, arguments)
    values, anchors_grads, prototypes_grads = zip(
        *(torch.load(tmp_path / f"result{rank}") for rank in range(2)), strict=True
    )
    anchors, targets, prototypes = golden_inputs()
    whole = make_loss(sinkhorn_iterations=3, entropy_weight=0.5)(anchors, targets, prototypes)
    whole.loss.backward()
    for name in ("regularizer", "mean_entropy"):  # over all images, in both processes
        for value in values:
            torch.testing.assert_close(value[name], whole[name].detach(), msg=name)
    for name in ("loss", "cross_entropy", "entropy"):
        mean = (values[0][name] + values[1][name]) / 2
        torch.testing.assert_close(mean, whole[name].detach(), msg=name)
    # DistributedDataParallel averages gradients over the processes
    close = {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(sum(prototypes_grads) / 2, prototypes.grad, **close)
    torch.testing.assert_close(sum(anchors_grads) / 2, anchors.grad, **close)


# The encoder


def stock_names(name: str) -> str:
    """Return our name for a parameter of transformers' ViTMSNModel."""
    return name.replace("embeddings.position_embedding.", "embeddings.position_embeddings.")


def test_the_encoder_matches_transformers_vit_msn():
    torch.manual_seed(0)
    config = ViTMSNConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=128,
        image_size=32,
        patch_size=8,
        initializer_range=0.2,
    )
    stock = ViTMSNModel(config).eval()
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model = make_model(layer_norm_eps=config.layer_norm_eps)
    model.vit.load_state_dict({stock_names(k): v for k, v in stock.state_dict().items()})
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = stock(images).last_hidden_state
        latents = model.vit(images).last_hidden_state
        (class_tokens,) = model.vit.class_tokens(images)
    torch.testing.assert_close(latents, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(class_tokens, expected[:, 0], rtol=1e-5, atol=1e-5)


def test_class_tokens_of_kept_patches_match_the_forward_pass():
    vit = make_model(initializer_range=0.2).vit
    images, ids_keep = torch.randn(2, 3, 32, 32), torch.tensor([[3, 0, 9], [15, 2, 4]])
    (class_tokens,) = vit.class_tokens(images, ids_keep=ids_keep)
    expected = vit(images, ids_keep=ids_keep).last_hidden_state[:, 0]
    torch.testing.assert_close(class_tokens, expected, rtol=1e-5, atol=1e-5)


# The model


def test_a_missing_pmsn_config_is_an_error():
    with pytest.raises(ValueError, match=r"pmsn_config=PMSNConfig\(\)"):
        SelfViTForPMSN(tiny_config())


def test_every_parameter_and_buffer_is_initialized_as_documented():
    sizes = {"num_prototypes": 100, "head_hidden_size": 96, "head_output_size": 64}
    model = make_model(hidden_size=128, pmsn=sizes)
    encoder = set()
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name == "prototypes":
            assert_statistics(name, value, 0.0, 1 / math.sqrt(64) / math.sqrt(3))
            assert value.abs().max() <= 1 / math.sqrt(64)
        elif re.search(r"head\.fc\d\.weight", name):
            assert_statistics(name, value, 0.0, 0.02)
        elif re.search(r"head\.(norm\d\.(weight|running_var))$", name):
            assert (value == 1).all(), name
        elif re.search(r"head\.(norm\d\.(bias|running_mean)|fc3\.bias)$", name):
            assert (value == 0).all(), name
        else:
            assert name.startswith(("vit.", "student.vit.")), name
            encoder.add(name)
    names = [pattern for pattern, _ in INITIALIZATION.values()]
    assert all(any(re.search(pattern, name) for pattern in names) for name in encoder)


def test_the_teacher_starts_as_a_copy_of_the_student():
    for name, teacher, student in teacher_and_student(make_model()):
        assert torch.equal(teacher, student), name
        assert teacher.data_ptr() != student.data_ptr(), name


def test_a_pretrained_encoder_is_copied_to_the_student(tmp_path):
    torch.manual_seed(5)
    encoder = SelfViTModel(tiny_config())
    encoder.save_pretrained(tmp_path)
    config = tiny_config(pmsn_config=tiny_pmsn_config())
    model = SelfViTForPMSN.from_pretrained(tmp_path, config=config)
    model.init_student_from_teacher()
    for name, value in encoder.state_dict().items():
        assert torch.equal(model.vit.state_dict()[name], value), name
    for name, teacher, student in teacher_and_student(model):
        assert torch.equal(teacher, student), name
    assert model.prototypes.abs().max() > 0  # initialized, because the checkpoint lacks them


def test_the_teacher_never_receives_a_gradient(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    for candidate in (model, SelfViTForPMSN.from_pretrained(tmp_path).train()):
        candidate(**make_views()).loss.backward()
        for network in (candidate.vit, candidate.head):
            for parameter in network.parameters():
                assert not parameter.requires_grad
                assert parameter.grad is None
        for name, parameter in candidate.student.named_parameters():
            assert parameter.grad is not None, name


def test_prototypes_receive_gradient_and_no_weight_decay():
    model = make_model()
    model(**make_views()).loss.backward()
    assert (model.prototypes.grad.abs().sum(dim=1) > 0).all()
    names = [name for name, _ in model.trained_parameters()]
    assert "prototypes" in names and "prototypes" in model.undecayed_parameters
    expected = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert sorted(names) == sorted(expected)


def test_frozen_prototypes_do_not_change(tmp_path):
    model = make_model(pmsn={"freeze_prototypes": True})
    model.save_pretrained(tmp_path)
    for candidate in (model, SelfViTForPMSN.from_pretrained(tmp_path).train()):
        parameters = dict(candidate.trained_parameters())
        assert "prototypes" not in parameters
        before = candidate.prototypes.clone()
        optimizer = torch.optim.AdamW(parameters.values(), lr=0.1, weight_decay=0.1)
        candidate(**make_views()).loss.backward()
        optimizer.step()
        assert candidate.prototypes.grad is None
        assert torch.equal(candidate.prototypes, before)


def test_the_forward_pass_is_the_loss_of_student_and_teacher():
    model, views = make_model(initializer_range=0.2), make_views()
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    ids_keep = views["noise"].argsort(dim=-1)[..., :8]  # half of 16 patches
    output = model(**views)

    def project(network: Any, images: Tensor, ids: Tensor | None = None) -> Tensor:
        return network.head(network.vit(images, ids_keep=ids).last_hidden_state[:, 0])

    # batch norm treats each size of views as a separate batch
    random_views = project(
        model.student, views["random_views"].flatten(0, 1), ids_keep.flatten(0, 1)
    )
    focal_views = project(model.student, views["focal_views"].flatten(0, 1))
    anchors = torch.cat([random_views, focal_views]).unflatten(0, (4, 3))
    targets = project(model, views["target_view"])
    expected = model.loss(anchors, targets, model.prototypes).loss
    torch.testing.assert_close(output.loss, expected, rtol=1e-4, atol=1e-5)


def test_the_mask_depends_on_the_order_of_the_noise():
    model, views = make_model(initializer_range=0.2), make_views()
    loss = model(**views).loss
    assert torch.equal(model(**views).loss, loss)
    same_order = {**views, "noise": views["noise"] / 2}
    assert torch.equal(model(**same_order).loss, loss)
    assert not torch.equal(model(**{**views, "noise": 1 - views["noise"]}).loss, loss)
    del views["noise"]
    torch.manual_seed(0)
    drawn = model(**views).loss
    assert not torch.equal(model(**views).loss, drawn)
    torch.manual_seed(0)
    assert torch.equal(model(**views).loss, drawn)


def test_dropped_patches_have_no_influence():
    model, views = make_model(initializer_range=0.2), make_views(num_focal_views=0)
    loss = model(**views).loss
    dropped = views["noise"].argsort(dim=-1)[..., 8:]
    grid = torch.zeros(2, 3, 16).scatter_(-1, dropped, 1.0).unflatten(-1, (4, 4))
    pixels = grid.repeat_interleave(8, dim=-1).repeat_interleave(8, dim=-2).unsqueeze(2)
    changed = {**views, "random_views": views["random_views"] + 100 * pixels}
    assert torch.equal(model(**changed).loss, loss)


def test_noise_of_a_wrong_shape_is_an_error_that_names_both_shapes():
    views = make_views()
    views["noise"] = views["noise"][:1]
    with pytest.raises(ValueError, match=r"\(2, 3, 16\), got \(1, 3, 16\)"):
        make_model()(**views)


@pytest.mark.parametrize("num_focal_views", [0, 1, 5])
def test_any_number_of_focal_views_works(num_focal_views):
    model = make_model(initializer_range=0.2)
    views = make_views(num_focal_views=num_focal_views)
    loss = model(**views).loss
    assert loss.isfinite()
    if num_focal_views == 0:
        empty = torch.empty(0, 3, 3, 16, 16)
        assert torch.equal(model(**views, focal_views=empty).loss, loss)


def test_without_dropping_no_noise_is_drawn_for_rectangular_images():
    model = make_model(pmsn={"patch_drop_ratio": 0.0}, image_size=(32, 48))
    images = torch.randn(2, 3, 32, 48)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert model(images, images.unsqueeze(0)).loss.isfinite()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_single_image_is_an_error_in_training_only():
    model, views = make_model(), make_views(batch_size=1)
    with pytest.raises(ValueError, match="at least 2 images in each micro-batch"):
        model(**views)
    assert model.eval()(**views).loss.isfinite()


# Hooks of the training loop


def test_the_teachers_head_follows_the_training_mode_and_its_encoder_does_not():
    model = make_model(drop_path_rate=0.5)
    assert model.student.training and model.head.training
    assert not any(module.training for module in model.vit.modules())
    means = [model.head.norm1.running_mean.clone(), model.student.head.norm1.running_mean.clone()]
    model(**make_views())
    assert not torch.equal(model.head.norm1.running_mean, means[0])
    assert not torch.equal(model.student.head.norm1.running_mean, means[1])
    model.eval()
    assert not model.head.training
    means = [model.head.norm1.running_mean.clone(), model.student.head.norm1.running_mean.clone()]
    model(**make_views())
    assert torch.equal(model.head.norm1.running_mean, means[0])
    assert torch.equal(model.student.head.norm1.running_mean, means[1])


def test_a_teacher_update_matches_hand_computed_values():
    model = make_model(pmsn={"teacher_momentum": 0.9, "teacher_momentum_end": 1.0})
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(1.0)
    before = [
        (name, teacher.clone(), student) for name, teacher, student in teacher_and_student(model)
    ]
    assert model.after_optimizer_step(0, 10) == {"teacher_momentum": 0.9}
    state = model.state_dict()
    for name, teacher, student in before:
        if "running" in name:  # statistics of the teacher
            assert torch.equal(state[name], teacher), name
        else:
            torch.testing.assert_close(state[name], 0.9 * teacher + 0.1 * student)


def test_momentum_increases_linearly_to_its_end():
    model = make_model(pmsn={"teacher_momentum": 0.9, "teacher_momentum_end": 1.0})
    momenta = [model.after_optimizer_step(step, 4)["teacher_momentum"] for step in range(4)]
    assert momenta == pytest.approx([0.9, 0.925, 0.95, 0.975])


def test_the_metrics_of_the_last_step_are_logged():
    model, views = make_model(), make_views()
    output = model(**views)
    logged = model.after_optimizer_step(0, 10)
    for name in ("cross_entropy", "regularizer", "mean_entropy"):
        assert logged[name] == output[name].item()


def test_a_tuple_has_the_same_values():
    model, views = make_model(), make_views()
    values = model(**views, return_dict=False)
    assert isinstance(values, tuple)
    assert torch.equal(values[0], model(**views).loss)


def test_micro_batches_are_close_but_not_equal_to_one_batch():
    # batch norm and the mean prediction see one micro-batch, not the whole batch
    model, views = make_model(initializer_range=0.2), make_views(batch_size=16)
    whole = model(**views)
    parts = []
    for index in range(2):
        part = slice(8 * index, 8 * index + 8)
        micro = {
            name: view[part] if name == "target_view" else view[:, part]
            for name, view in views.items()
        }
        parts.append(model(**micro))
    mean = (parts[0].loss + parts[1].loss) / 2
    assert mean.item() == pytest.approx(whole.loss.item(), rel=0.2)
    assert mean.item() != pytest.approx(whole.loss.item(), rel=1e-4)
