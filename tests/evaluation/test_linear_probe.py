import sys

import numpy as np
import pytest

pytest.importorskip("sklearn")
from selfvit.evaluation.linear_probe import hold_out, linear_probe_accuracy, linear_probe_hits


def blobs(num_images: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    centers = np.random.default_rng(0).normal(size=(4, 16))
    generator = np.random.default_rng(seed)
    labels = np.arange(num_images) % 4
    return centers[labels] + spread * generator.normal(size=(num_images, 16)), labels


def test_separable_classes_are_classified_perfectly():
    assert linear_probe_accuracy(*blobs(80, 0.1), *blobs(40, 0.1, seed=1)) == 1.0


def test_shuffled_labels_give_chance():
    vectors, labels = blobs(400, 0.1)
    shuffled = np.random.default_rng(0).permutation(labels)
    accuracy = linear_probe_accuracy(vectors, shuffled, *blobs(200, 0.1, seed=1))
    assert accuracy < 0.45  # chance is 0.25


def test_constant_features_and_scales_do_not_lower_the_accuracy():
    # dividing by a std of 0 would make every prediction NaN
    train, labels = blobs(80, 0.1)
    test, test_labels = blobs(40, 0.1, seed=1)
    scales = np.logspace(-4, 4, 16)
    train, test = (np.pad(vectors * scales, ((0, 0), (0, 2))) for vectors in (train, test))
    assert linear_probe_accuracy(train, labels, test, test_labels) == 1.0


def test_the_same_seed_gives_the_same_accuracy():
    arguments = (*blobs(120, 1.5), *blobs(60, 1.5, seed=1))
    assert linear_probe_accuracy(*arguments) == linear_probe_accuracy(*arguments)


def test_the_mean_of_the_hits_is_the_accuracy():
    arguments = (*blobs(120, 1.5), *blobs(60, 1.5, seed=1))
    hits = linear_probe_hits(*arguments)
    assert hits.shape == (60,) and hits.dtype == bool and 0 < hits.mean() < 1
    assert linear_probe_accuracy(*arguments) == hits.mean()
    # the hit of an image does not depend on the other test images
    train, labels, test, test_labels = arguments
    assert linear_probe_hits(train, labels, test[5:6], test_labels[5:6])[0] == hits[5]


def test_one_image_per_class_is_enough():
    assert linear_probe_accuracy(*blobs(4, 0.01), *blobs(40, 0.01, seed=1)) == 1.0


def test_the_held_out_part_is_stratified_and_never_a_whole_class():
    labels = np.array([0] * 20 + [1] * 10 + [2] * 2 + [3])
    is_held_out = hold_out(labels, np.random.default_rng(0))
    assert np.bincount(labels[is_held_out], minlength=4).tolist() == [4, 2, 1, 0]


def test_a_single_class_is_rejected():
    vectors, _ = blobs(8, 0.1)
    with pytest.raises(ValueError, match="two classes"):
        linear_probe_accuracy(vectors, np.zeros(8, int), vectors, np.zeros(8, int))


def test_the_error_for_missing_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.preprocessing", None)
    with pytest.raises(ImportError, match=r"selfvit\[train\]"):
        linear_probe_accuracy(*blobs(8, 0.1), *blobs(8, 0.1))
