"""Figures of collapse: worked by hand, over micro-batches, of both kinds of collapse."""

import math

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from selfvit.modeling.modeling_mae import variance_between_images
from selfvit.modeling.observations import MAX_FEATURES, Observations, entropy

FEATURES = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def figures_of(*probabilities):
    observations = Observations()
    for rows in probabilities:
        observations.note(FEATURES[: len(rows)], torch.as_tensor(rows).log())
    return observations.figures()


def test_entropy_by_hand_and_of_certainty():
    rows = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]).log()
    assert entropy(rows).tolist() == pytest.approx([1.5 * math.log(2), 0.0])


def test_targets_that_tell_their_images_apart_have_all_information():
    figures = figures_of(torch.eye(4))
    assert figures["teacher_entropy"] == pytest.approx(0)
    assert figures["teacher_mean_entropy"] == pytest.approx(math.log(4))
    assert figures["teacher_information"] == pytest.approx(1)
    assert figures["prototypes_in_use"] == pytest.approx(4)


def test_a_constant_output_has_no_information_and_one_prototype():
    figures = figures_of(torch.eye(4)[[2, 2, 2]])
    assert figures["teacher_entropy"] == figures["teacher_information"] == pytest.approx(0)
    assert figures["prototypes_in_use"] == pytest.approx(1)


def test_a_uniform_output_has_no_information_and_the_entropy_of_all_prototypes():
    figures = figures_of(torch.full((3, 4), 0.25))
    assert figures["teacher_entropy"] == pytest.approx(math.log(4))
    assert figures["teacher_information"] == pytest.approx(0, abs=1e-6)


def test_information_by_hand_is_a_share_of_what_so_few_rows_could_tell():
    figures = figures_of([[0.9, 0.1, 0.0], [0.1, 0.9, 0.0]])
    of_one = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert figures["teacher_entropy"] == pytest.approx(of_one)
    assert figures["teacher_information"] == pytest.approx(1 - of_one / math.log(2))


def test_micro_batches_are_one_batch():
    rows = F.softmax(torch.randn(4, 5, generator=torch.Generator().manual_seed(1)), dim=-1)
    assert figures_of(rows[:2], rows[2:]) == pytest.approx(figures_of(rows))


def test_features_alone_are_enough():
    observations = Observations()
    observations.note(FEATURES)
    assert observations.figures() == {} and torch.equal(observations.features(), FEATURES)


def test_scalars_are_averaged_and_features_limited():
    observations = Observations()
    assert observations.empty and observations.num_prototypes is None
    for value in (1.0, 3.0):
        observations.note(torch.ones(200, 2, dtype=torch.bfloat16), center_norm=torch.tensor(value))
    assert observations.figures() == {"center_norm": 2.0}
    assert observations.features().shape == (MAX_FEATURES, 2)
    assert observations.features().dtype == torch.float32


def test_predicting_the_mean_of_each_place_costs_the_variance_between_images():
    # two images of one patch of two pixels: at each pixel 0 and 2, whose mean is 1
    patches = torch.tensor([[[0.0, 5.0]], [[2.0, 5.0]]])
    assert variance_between_images(patches, norm_pix_loss=False).item() == pytest.approx(1.0)
    assert variance_between_images(patches[:1], norm_pix_loss=False).item() == 0


def test_the_variance_of_normalized_patches_of_unrelated_images_is_about_one():
    patches = torch.randn(64, 9, 48, generator=torch.Generator().manual_seed(2)) * 7 + 3
    assert variance_between_images(patches, norm_pix_loss=True).item() == pytest.approx(1, abs=0.05)
