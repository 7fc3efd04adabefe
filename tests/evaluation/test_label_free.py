import numpy as np
import pytest
import torch

from selfvit.evaluation.label_free import feature_standard_deviation, rankme


@pytest.fixture
def isotropic():
    return np.random.default_rng(0).normal(size=(2000, 32))


def test_isotropic_vectors_have_a_deviation_near_one(isotropic):
    assert feature_standard_deviation(isotropic) == pytest.approx(1, abs=0.02)


def test_collapsed_vectors_have_no_deviation_and_rank_one():
    collapsed = np.outer(np.linspace(1, 5, 50), np.arange(1.0, 9.0))  # one direction, any length
    assert feature_standard_deviation(collapsed) == pytest.approx(0, abs=1e-12)
    assert rankme(collapsed) == pytest.approx(1, abs=1e-4)


def test_deviation_by_hand():
    # (3, 0) and (0, 4) become (1, 0) and (0, 1): deviation 0.5 in both dimensions
    vectors = np.array([[3.0, 0.0], [0.0, 4.0]])
    assert feature_standard_deviation(vectors) == pytest.approx(0.5 * np.sqrt(2))


def test_rankme_by_hand():
    # singular values 3 and 1: shares 3/4 and 1/4
    expected = np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert rankme(np.diag([3.0, 1.0])) == pytest.approx(expected, abs=1e-5)


def test_rankme_counts_orthogonal_directions():
    assert rankme(np.eye(7)[:, :5]) == pytest.approx(5, abs=1e-4)


@pytest.mark.parametrize("num_images", [8, 32, 200])
def test_rankme_stays_within_images_and_dimensions(isotropic, num_images):
    rank = rankme(isotropic[:num_images])
    assert 0.5 * min(num_images, 32) < rank <= min(num_images, 32) + 1e-3


def test_rankme_ignores_scale_and_rotation(isotropic):
    rotation, _ = np.linalg.qr(isotropic[:32])
    assert rankme(5 * isotropic @ rotation) == pytest.approx(rankme(isotropic))


def test_zero_vectors_give_finite_measures():
    zeros = np.zeros((4, 3))
    assert feature_standard_deviation(zeros) == 0
    assert np.isfinite(rankme(zeros))


def test_tensors_in_half_precision_are_measured_in_float64(isotropic):
    tensor = torch.from_numpy(isotropic).bfloat16().requires_grad_()
    exact = tensor.detach().double().numpy()
    assert rankme(tensor) == rankme(exact)
    assert feature_standard_deviation(tensor) == feature_standard_deviation(exact)


def test_no_vectors_are_refused():
    with pytest.raises(ValueError, match="above 0"):
        rankme(np.zeros((0, 4)))
