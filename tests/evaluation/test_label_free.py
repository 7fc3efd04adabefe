import numpy as np
import pytest
import torch

from selfvit.evaluation.bootstrap import MetricSample, estimate
from selfvit.evaluation.label_free import (
    feature_standard_deviation,
    nearest_neighbors,
    neighbor_overlap,
    rankme,
    rankme_influences,
    uniformity,
    uniformity_influences,
    view_retrieval,
)


@pytest.fixture
def isotropic():
    return np.random.default_rng(0).normal(size=(2000, 32))


def test_isotropic_vectors_have_a_feature_std_near_one(isotropic):
    assert feature_standard_deviation(isotropic) == pytest.approx(1, abs=0.02)


def test_collapsed_vectors_have_feature_std_zero_and_rank_one():
    collapsed = np.outer(np.linspace(1, 5, 50), np.arange(1.0, 9.0))  # one direction, any length
    assert feature_standard_deviation(collapsed) == pytest.approx(0, abs=1e-12)
    assert rankme(collapsed) == pytest.approx(1, abs=1e-4)


def test_feature_std_by_hand():
    # (3, 0) and (0, 4) become (1, 0) and (0, 1), with std 0.5 in both dimensions
    vectors = np.array([[3.0, 0.0], [0.0, 4.0]])
    assert feature_standard_deviation(vectors) == pytest.approx(0.5 * np.sqrt(2))


def test_rankme_by_hand():
    # singular values 3 and 1 are 3/4 and 1/4 of their sum
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


def test_zero_vectors_give_finite_metrics():
    zeros = np.zeros((4, 3))
    assert feature_standard_deviation(zeros) == 0
    assert np.isfinite(rankme(zeros))


def test_tensors_in_half_precision_are_measured_in_float64(isotropic):
    tensor = torch.from_numpy(isotropic).bfloat16().requires_grad_()
    exact = tensor.detach().double().numpy()
    assert rankme(tensor) == rankme(exact)
    assert feature_standard_deviation(tensor) == feature_standard_deviation(exact)


def test_an_empty_array_is_rejected():
    with pytest.raises(ValueError, match="above 0"):
        rankme(np.zeros((0, 4)))


def at_angles(*degrees: float) -> np.ndarray:
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1)


def test_uniformity_by_hand():
    # at 0, 90 and 180 degrees: squared distances 2, 2 and 4; mean of e^-4, e^-4 and e^-8
    expected = np.log((2 * np.exp(-4) + np.exp(-8)) / 3)
    assert uniformity(at_angles(0, 90, 180)) == pytest.approx(expected)
    assert uniformity(7 * at_angles(0, 90, 180)) == pytest.approx(expected)


def test_uniformity_agrees_with_pairwise_distances_of_torch(isotropic):
    # the code of the paper, Fig. 4: pdist, squared, exp, mean, log
    directions = torch.nn.functional.normalize(torch.from_numpy(isotropic))
    expected = torch.pdist(directions).pow(2).mul(-2).exp().mean().log().item()
    assert uniformity(isotropic) == pytest.approx(expected, rel=1e-9)


def test_uniformity_is_zero_at_collapse_and_lowest_for_isotropic_vectors(isotropic):
    collapsed = np.ones((50, 32))
    halfway = isotropic + 1
    assert uniformity(collapsed) == pytest.approx(0, abs=1e-12)
    assert uniformity(isotropic) < uniformity(halfway) < -0.1


@pytest.mark.parametrize("num_images", [60, 20])  # more and fewer than dimensions
def test_influences_on_rankme_are_its_derivatives_by_the_weight_of_an_image(num_images, isotropic):
    vectors = isotropic[:num_images, :24] * np.linspace(0.5, 2, 24) + 0.5
    influences = rankme_influences(vectors)
    assert influences.shape == (num_images,)
    assert influences.mean() == pytest.approx(0, abs=1e-8)
    for image in (0, 7):
        weights = np.ones(num_images)
        weights[image] += 1e-4  # weighting an image by w multiplies its row by sqrt(w)
        heavier = np.sqrt(weights)[:, None] * vectors
        slope = (rankme(heavier, epsilon=0) - rankme(vectors, epsilon=0)) / 1e-4
        assert influences[image] == pytest.approx(num_images * slope, rel=1e-2)


def test_influences_on_uniformity_agree_with_the_jackknife(isotropic):
    vectors = isotropic[:60, :24] + 0.5
    influences = uniformity_influences(vectors)
    assert influences.mean() == pytest.approx(0, abs=1e-8)
    without = np.array([uniformity(np.delete(vectors, image, axis=0)) for image in range(60)])
    jackknife = 59 * (uniformity(vectors) - without)
    assert np.corrcoef(influences, jackknife)[0, 1] > 0.999
    assert influences.std() == pytest.approx(jackknife.std(), rel=0.1)


def test_intervals_from_influences_are_as_wide_as_those_of_real_resamples(isotropic):
    vectors = isotropic[:500, :8] * np.linspace(0.1, 2, 8)
    generator = np.random.default_rng(0)
    drawn = [vectors[generator.integers(500, size=500)] for _ in range(400)]
    for measure, influences in (
        (rankme, rankme_influences),
        (uniformity, uniformity_influences),
    ):
        value, low, high = estimate(MetricSample(measure(vectors), influences(vectors)))
        real_low, real_high = np.quantile([measure(sample) for sample in drawn], [0.025, 0.975])
        assert high - low == pytest.approx(real_high - real_low, rel=0.15)
        assert low < value < high


def test_view_retrieval_by_hand():
    # Views at 0 and 5, 90 and 100, 8 and 180 degrees. 5 is nearest to 0, but 8 is nearest to 5: a
    # half. 90 and 100 are nearest to each other: one. 5 is nearest to 8, 100 to 180: zero.
    found = view_retrieval(at_angles(0, 90, 8), at_angles(5, 100, 180))
    assert found.tolist() == [0.5, 1.0, 0.0]


def test_view_retrieval_is_one_for_equal_views_and_chance_for_unrelated_or_collapsed_views(
    isotropic,
):
    first, second = isotropic[:1000], isotropic[1000:]
    assert view_retrieval(first, 3 * first).mean() == 1
    assert view_retrieval(first, second).mean() < 0.01
    assert view_retrieval(np.ones((1000, 4)), np.ones((1000, 4))).mean() < 0.01
    noisier = [view_retrieval(first, first + noise * second).mean() for noise in (0.5, 1, 2, 4)]
    assert noisier == sorted(noisier, reverse=True) and noisier[0] > noisier[-1]


def test_neighbors_agree_with_scikit_learn(isotropic):
    neighbors = pytest.importorskip("sklearn.neighbors")
    vectors = isotropic[:1500]  # more than one chunk
    reference = neighbors.NearestNeighbors(n_neighbors=5, metric="cosine").fit(vectors)
    expected = reference.kneighbors(return_distance=False)  # without the image itself
    assert np.array_equal(nearest_neighbors(vectors, 5), expected)


def test_neighbor_overlap_by_hand():
    first, second = np.array([[1, 2], [0, 2], [0, 1]]), np.array([[2, 1], [0, 3], [3, 4]])
    assert neighbor_overlap(first, second).tolist() == [1.0, 0.5, 0.0]


def test_neighbor_overlap_is_one_after_a_rotation_and_chance_for_unrelated_vectors(isotropic):
    rotation, _ = np.linalg.qr(isotropic[:32])
    own = nearest_neighbors(isotropic[:500], 10)
    rotated = nearest_neighbors(3 * isotropic[:500] @ rotation, 10)
    unrelated = nearest_neighbors(isotropic[500:1000], 10)
    assert neighbor_overlap(own, rotated).mean() == pytest.approx(1, abs=1e-3)
    assert neighbor_overlap(own, unrelated).mean() == pytest.approx(10 / 499, abs=0.01)


@pytest.mark.parametrize(
    ("measure", "arguments", "message"),
    [
        (uniformity, (np.ones((1, 4)),), "at least 2 vectors, got 1"),
        (view_retrieval, (np.ones((2, 4)), np.ones((3, 4))), "the same shape"),
        (nearest_neighbors, (np.ones((3, 4)), 3), r"below the number of images \(3\)"),
        (neighbor_overlap, (np.ones((3, 2)), np.ones((3, 1))), "the same shape"),
    ],
)
def test_invalid_arguments_are_rejected(measure, arguments, message):
    with pytest.raises(ValueError, match=message):
        measure(*arguments)
