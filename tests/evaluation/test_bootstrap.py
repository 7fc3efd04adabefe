import numpy as np
import pytest

from selfvit.evaluation.bootstrap import MetricSample, estimate, estimate_change


def scores(num_images, fraction, seed=0):
    """Return booleans of a classifier that is right for a fraction of the images."""
    return np.random.default_rng(seed).random(num_images) < fraction


def test_the_mean_and_its_influences_by_hand():
    sample = MetricSample.mean_of(np.array([True, True, False, True]))
    assert sample.value == 0.75
    assert sample.influences.tolist() == [0.25, 0.25, -0.75, 0.25]


def test_the_interval_of_an_accuracy_matches_the_binomial_distribution():
    # 1.96 standard errors sqrt(p (1 - p) / n) on each side
    value, low, high = estimate(MetricSample.mean_of(scores(2000, 0.8)))
    half_width = 1.96 * np.sqrt(value * (1 - value) / 2000)
    assert value - low == pytest.approx(half_width, rel=0.1)
    assert high - value == pytest.approx(half_width, rel=0.1)


def test_the_interval_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    hits = scores(300, 0.6).astype(float)
    reference = stats.bootstrap(
        (hits,), np.mean, n_resamples=5000, method="percentile", random_state=0
    ).confidence_interval
    _, low, high = estimate(MetricSample.mean_of(hits))
    assert low == pytest.approx(reference.low, abs=0.01)
    assert high == pytest.approx(reference.high, abs=0.01)


def test_intervals_cover_the_true_value_about_95_percent_of_the_time():
    covered = [
        low <= 0.7 <= high
        for _, low, high in (
            estimate(MetricSample.mean_of(scores(100, 0.7, seed)), seed=seed) for seed in range(150)
        )
    ]
    assert 0.88 <= np.mean(covered) <= 0.99


def test_pairing_narrows_the_interval_of_the_difference():
    before = scores(500, 0.5)
    after = before | scores(500, 0.1, seed=1)  # correct predictions stay correct
    first, second, difference = estimate_change(
        MetricSample.mean_of(before), MetricSample.mean_of(after)
    )
    assert difference.value == pytest.approx(second.value - first.value)
    assert difference.low > 0
    unpaired_width = np.hypot(first.high - first.low, second.high - second.low)
    assert difference.high - difference.low < unpaired_width / 2


def test_equal_samples_have_a_difference_of_zero():
    sample = MetricSample.mean_of(scores(50, 0.5))
    assert estimate_change(sample, sample)[2] == (0, 0, 0)


def test_the_interval_depends_only_slightly_on_the_seed():
    sample = MetricSample.mean_of(scores(300, 0.5))
    assert estimate(sample) == estimate(sample)
    assert estimate(sample, seed=1) != estimate(sample)
    assert estimate(sample, seed=1).low == pytest.approx(estimate(sample).low, abs=0.01)


def test_samples_of_different_images_are_rejected():
    with pytest.raises(ValueError, match=r"before \(4 images\) and after \(5 images\)"):
        estimate_change(MetricSample.mean_of(np.ones(4)), MetricSample.mean_of(np.ones(5)))
