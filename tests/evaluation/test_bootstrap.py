import numpy as np
import pytest

from selfvit.evaluation.bootstrap import MetricSample, estimate, estimate_change


def scores(num_images, share, seed=0):
    """Zeros and ones, as of a classifier that is right on a share of the images."""
    return np.random.default_rng(seed).random(num_images) < share


def test_the_mean_and_its_influences_by_hand():
    figure = MetricSample.mean_of(np.array([True, True, False, True]))
    assert figure.value == 0.75
    assert figure.influences.tolist() == [0.25, 0.25, -0.75, 0.25]


def test_the_interval_of_an_accuracy_is_that_of_the_binomial():
    # standard error sqrt(p (1 - p) / n), 1.96 of them either side
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


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    covered = [
        low <= 0.7 <= high
        for _, low, high in (
            estimate(MetricSample.mean_of(scores(100, 0.7, seed)), seed=seed) for seed in range(150)
        )
    ]
    assert 0.88 <= np.mean(covered) <= 0.99


def test_pairing_keeps_what_both_sides_share_out_of_the_difference():
    before = scores(500, 0.5)
    after = before | scores(500, 0.1, seed=1)  # what was right stays right
    first, second, difference = estimate_change(
        MetricSample.mean_of(before), MetricSample.mean_of(after)
    )
    assert difference.value == pytest.approx(second.value - first.value)
    assert difference.low > 0
    unpaired_width = np.hypot(first.high - first.low, second.high - second.low)
    assert difference.high - difference.low < unpaired_width / 2


def test_no_change_is_a_difference_of_nothing():
    figure = MetricSample.mean_of(scores(50, 0.5))
    assert estimate_change(figure, figure)[2] == (0, 0, 0)


def test_the_same_seed_gives_the_same_interval_and_another_a_close_one():
    figure = MetricSample.mean_of(scores(300, 0.5))
    assert estimate(figure) == estimate(figure)
    assert estimate(figure, seed=1) != estimate(figure)
    assert estimate(figure, seed=1).low == pytest.approx(estimate(figure).low, abs=0.01)


def test_figures_of_different_images_are_refused():
    with pytest.raises(ValueError, match="before has 4 images and after 5"):
        estimate_change(MetricSample.mean_of(np.ones(4)), MetricSample.mean_of(np.ones(5)))
