import math

import numpy as np
import pytest
import torch

from selfvit.evaluation.knn import weighted_knn, weighted_knn_accuracy, weighted_knn_hits


@pytest.fixture
def blobs():
    """Return train vectors and labels, test vectors and labels of three overlapping classes."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(3, 8, generator=generator)
    labels = torch.arange(150) % 3
    vectors = centers[labels] + torch.randn(150, 8, generator=generator)
    return vectors[:100], labels[:100], vectors[100:], labels[100:]


def at_angles(*degrees: float) -> torch.Tensor:
    radians = torch.tensor(degrees).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def test_one_close_neighbor_outweighs_two_far_ones():
    # Cosines to the test vector at 0 degrees: 1 (class 0), cos 60 = 0.5 twice (class 1).
    # Votes at temperature 1: e = 2.72 against 2 exp(0.5) = 3.30; at 0.5: e^2 = 7.39 against 5.44.
    train, labels = at_angles(0, 60, -60), torch.tensor([0, 1, 1])
    test = at_angles(0)
    assert math.e < 2 * math.exp(0.5) and math.exp(2) > 2 * math.exp(1)
    assert weighted_knn(train, labels, test, k=3, temperature=1.0).tolist() == [1]
    assert weighted_knn(train, labels, test, k=3, temperature=0.5).tolist() == [0]


def test_only_the_k_nearest_vote():
    train, labels = at_angles(0, 10, 11, 12), torch.tensor([0, 1, 1, 1])
    assert weighted_knn(train, labels, at_angles(-5), k=1).tolist() == [0]
    assert weighted_knn(train, labels, at_angles(-5), k=4).tolist() == [1]


def test_positive_scaling_of_vectors_changes_nothing(blobs):
    train, labels, test, _ = blobs
    scales = torch.logspace(-3, 3, 100)[:, None]
    expected = weighted_knn(train, labels, test, k=10)
    assert torch.equal(weighted_knn(train * scales, labels, test * 7, k=10), expected)


@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
def test_chunk_size_changes_nothing(blobs, chunk_size):
    train, labels, test, _ = blobs
    expected = weighted_knn(train, labels, test, k=10)
    assert torch.equal(weighted_knn(train, labels, test, k=10, chunk_size=chunk_size), expected)


def test_several_ks_at_once_agree_with_each_k_alone(blobs):
    train, labels, test, test_labels = blobs
    accuracies = weighted_knn_accuracy(train, labels, test, test_labels, ks=(20, 1, 5))
    assert list(accuracies) == [20, 1, 5]
    for k, accuracy in accuracies.items():
        predicted = weighted_knn(train, labels, test, k=k)
        assert accuracy == pytest.approx((predicted == test_labels).double().mean().item())


def test_hits_are_the_images_with_a_correct_prediction(blobs):
    train, labels, test, test_labels = blobs
    hits = weighted_knn_hits(train, labels, test, test_labels, ks=(5,))[5]
    predicted = weighted_knn(train, labels, test, k=5)
    assert hits.tolist() == (predicted == test_labels).tolist() and 0 < hits.mean() < 1


def test_agrees_with_scikit_learn(blobs):
    neighbors = pytest.importorskip("sklearn.neighbors")
    train, labels, test, _ = (array.numpy() for array in blobs)
    reference = neighbors.KNeighborsClassifier(
        10, metric="cosine", weights=lambda distances: np.exp((1 - distances) / 0.07)
    ).fit(train, labels)
    assert weighted_knn(train, labels, test, k=10).tolist() == reference.predict(test).tolist()


def test_a_tiny_temperature_selects_the_nearest_neighbor_and_stays_finite(blobs):
    # exp(1 / 0.001) overflows float32; the weights are relative to that of the nearest neighbor
    train, labels, test, _ = blobs
    nearest = weighted_knn(train, labels, test, k=1)
    assert torch.equal(weighted_knn(train, labels, test, k=50, temperature=1e-3), nearest)


def test_the_error_for_a_k_above_the_number_of_training_images_names_both(blobs):
    train, labels, test, _ = blobs
    with pytest.raises(ValueError, match=r"k \(101\).*\(100\)"):
        weighted_knn(train, labels, test, k=101)


def test_vectors_of_different_width_are_rejected(blobs):
    train, labels, test, _ = blobs
    with pytest.raises(ValueError, match=r"width 8\) and test_vectors \(width 4\)"):
        weighted_knn(train, labels, test[:, :4], k=1)
