"""Statistics for the collapse monitors: worked by hand, and for both kinds of collapse."""

import math

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from selfvit.modeling.modeling_mae import variance_between_images
from selfvit.modeling.observations import MAX_FEATURES, Observations, entropy

FEATURES = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def metrics_of(*probabilities):
    """Return the metrics of micro-batches of targets."""
    observations = Observations()
    for rows in probabilities:
        observations.record(FEATURES[: len(rows)], torch.as_tensor(rows).log())
    return observations.metrics()


def test_entropy_matches_hand_computed_values():
    rows = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]).log()
    assert entropy(rows).tolist() == pytest.approx([1.5 * math.log(2), 0.0])


def test_distinct_targets_carry_full_information():
    metrics = metrics_of(torch.eye(4))
    assert metrics["teacher_entropy"] == pytest.approx(0)
    assert metrics["teacher_mean_entropy"] == pytest.approx(math.log(4))
    assert metrics["teacher_information"] == pytest.approx(1)
    assert metrics["prototypes_in_use"] == pytest.approx(4)


def test_a_constant_output_has_no_information_and_one_prototype():
    metrics = metrics_of(torch.eye(4)[[2, 2, 2]])
    assert metrics["teacher_entropy"] == metrics["teacher_information"] == pytest.approx(0)
    assert metrics["prototypes_in_use"] == pytest.approx(1)


def test_a_uniform_output_has_no_information_and_maximum_entropy():
    metrics = metrics_of(torch.full((3, 4), 0.25))
    assert metrics["teacher_entropy"] == pytest.approx(math.log(4))
    assert metrics["teacher_information"] == pytest.approx(0, abs=1e-6)


def test_information_is_a_fraction_of_the_maximum_for_the_number_of_rows():
    metrics = metrics_of([[0.9, 0.1, 0.0], [0.1, 0.9, 0.0]])
    row_entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert metrics["teacher_entropy"] == pytest.approx(row_entropy)
    assert metrics["teacher_information"] == pytest.approx(1 - row_entropy / math.log(2))


def test_micro_batches_give_the_metrics_of_the_whole_batch():
    rows = F.softmax(torch.randn(4, 5, generator=torch.Generator().manual_seed(1)), dim=-1)
    assert metrics_of(rows[:2], rows[2:]) == pytest.approx(metrics_of(rows))


def test_features_alone_can_be_recorded():
    observations = Observations()
    observations.record(FEATURES)
    assert observations.metrics() == {} and torch.equal(observations.features(), FEATURES)


def test_scalars_are_averaged_and_features_limited():
    observations = Observations()
    assert observations.empty and observations.num_prototypes is None
    features = torch.ones(200, 2, dtype=torch.bfloat16)
    for value in (1.0, 3.0):
        observations.record(features, center_norm=torch.tensor(value))
    assert observations.metrics() == {"center_norm": 2.0}
    assert observations.features().shape == (MAX_FEATURES, 2)
    assert observations.features().dtype == torch.float32


def test_variance_between_images_is_the_error_of_predicting_their_mean():
    # two images of one patch of two pixels: the first pixel is 0 and 2, with mean 1
    patches = torch.tensor([[[0.0, 5.0]], [[2.0, 5.0]]])
    assert variance_between_images(patches, norm_pix_loss=False).item() == pytest.approx(1.0)
    assert variance_between_images(patches[:1], norm_pix_loss=False).item() == 0


def test_the_variance_of_normalized_patches_of_unrelated_images_is_about_one():
    patches = torch.randn(64, 9, 48, generator=torch.Generator().manual_seed(2)) * 7 + 3
    assert variance_between_images(patches, norm_pix_loss=True).item() == pytest.approx(1, abs=0.05)
