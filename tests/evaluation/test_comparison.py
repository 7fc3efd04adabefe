import json
from dataclasses import replace

import numpy as np
import pytest

from selfvit.evaluation.bootstrap import Estimate, MetricSample
from selfvit.evaluation.comparison import Change, Measurement, compare, format_comparison


def measurement(fraction: float, rank: float = 20.0, data: str = "images", seed: int = 0):
    """Return the measurement of an encoder whose k-NN is right for a fraction of 1,000 images."""
    generator = np.random.default_rng(0)
    difficulty = generator.random(1000)  # the same for every encoder
    return Measurement(
        samples={
            "knn_20": MetricSample.mean_of(difficulty < fraction),
            "rankme": MetricSample(rank, np.sin(np.arange(50.0)) - np.sin(np.arange(50.0)).mean()),
        },
        neighbors=np.random.default_rng(seed).permuted(np.tile(np.arange(100), (100, 1)), axis=1)[
            :, :10
        ],
        data=data,
        metrics={"knn_20": fraction, "rankme": rank, "feature_std": 0.5},
    )


def test_a_gain_is_reported_with_its_interval():
    comparison = compare(measurement(0.7), measurement(0.8, rank=21), "knn_20")
    change = comparison.deciding
    assert change.direction == "higher" and comparison.improved is True
    assert change.difference.low < change.difference.value < change.difference.high
    assert comparison.verdict.startswith("Training helped: k-NN, k = 20 rose by 1")


def test_a_loss_is_reported_with_its_interval():
    comparison = compare(measurement(0.7), measurement(0.6), "knn_20")
    assert comparison.deciding.direction == "lower" and comparison.improved is False
    assert comparison.verdict.startswith(
        "Training made the features worse: k-NN, k = 20 fell by 9.7 points"
    )


def test_a_difference_whose_interval_includes_zero_is_unclear():
    comparison = compare(measurement(0.7), measurement(0.701), "knn_20")
    assert comparison.deciding.direction == "unclear"
    assert comparison.verdict.startswith("No clear change: k-NN, k = 20")
    same = compare(measurement(0.7), measurement(0.7), "knn_20")
    assert same.improved is False and "did not change" in same.verdict


def test_without_a_deciding_metric_there_is_no_verdict():
    comparison = compare(measurement(0.7), measurement(0.8), None)
    assert comparison.improved is None and comparison.verdict.startswith("No verdict")


def test_neighbor_overlap_is_one_for_equal_and_chance_for_unrelated_embeddings():
    assert compare(measurement(0.7), measurement(0.7), None).overlap == (1, 1, 1)
    unrelated = compare(measurement(0.7), measurement(0.7, seed=1), None)
    assert unrelated.overlap.value == pytest.approx(0.1, abs=0.02)
    assert unrelated.overlap.low < unrelated.overlap.value < unrelated.overlap.high


def test_the_table_is_aligned_and_ends_with_the_verdict():
    comparison = compare(measurement(0.7), measurement(0.8, rank=21.5), "knn_20")
    lines = format_comparison(comparison).splitlines()
    starts = [line.index(word) for line, word in zip(lines[:3], ("change", "+", "+"), strict=True)]
    assert len(set(starts)) == 1
    assert "%" in lines[1] and lines[1].endswith("higher")
    assert "20.0 (" in lines[2] and "+1.5 (" in lines[2]
    assert "of the 10 nearest, among 100 images" in lines[3]
    assert lines[-1] == comparison.verdict


def test_a_comparison_is_plain_json_and_gives_a_card_values_with_intervals():
    comparison = compare(measurement(0.7), measurement(0.8), "knn_20")
    content = json.loads(json.dumps(comparison.to_dict()))
    change = content["metrics"]["knn_20"]
    assert change["num_images"] == 1000 and change["direction"] == "higher"
    assert set(change["difference"]) == {"value", "low", "high"}
    value, low, high = comparison.after["knn_20"]
    assert low < value < high and value == change["after"]["value"]


def test_measurements_of_different_data_are_rejected():
    with pytest.raises(ValueError, match="on the same images"):
        compare(measurement(0.7), measurement(0.8, data="others"), "knn_20")
    with pytest.raises(ValueError, match="knn_5.*measured: knn_20, rankme"):
        compare(measurement(0.7), measurement(0.8), "knn_5")


def test_raw_pixels_stand_beside_the_encoder_and_a_sentence_says_if_they_are_as_good():
    better = {"knn_20": MetricSample.mean_of(np.arange(1000) < 850)}
    worse = {"knn_20": MetricSample.mean_of(np.arange(1000) < 750)}
    before, after = measurement(0.7), measurement(0.8)
    described = {"start": "untrained", "num_images": 1000, "num_available": 5000}
    comparison = compare(before, after, "knn_20", raw_pixels=better, **described)
    assert comparison.passes_raw_pixels is False
    lines = format_comparison(comparison).splitlines()
    assert lines[0].split() == ["raw", "pixels", "untrained", "after", "change"]
    assert lines[1].split()[4:6] == ["85.0", "%"]
    after_value = 100 * comparison.deciding.after.value
    assert f"k-NN, k = 20 is 85.0 % for them and {after_value:.1f} % for" in lines[-2]
    assert "over a sample of 1,000 of 5,000 evaluation images" in lines[-3]
    comparison = compare(before, after, "knn_20", raw_pixels=worse)
    assert comparison.passes_raw_pixels is True and comparison.raw_pixels_verdict == ""
    assert compare(before, after, "knn_20").passes_raw_pixels is None


def test_a_change_whose_printed_interval_ends_at_zero_is_unclear():
    # "+1.5 (+0.0 to +3.0)" was "higher"
    def change(name, low, high):
        difference = Estimate((low + high) / 2, low, high)
        return Change(name, difference, difference, difference, num_images=9)

    assert change("knn_20", 0.0004, 0.03).direction == "unclear"
    assert change("knn_20", 0.0006, 0.03).direction == "higher"
    assert change("knn_20", -0.03, -0.0004).direction == "unclear"
    assert change("uniformity", -0.5, -0.0004).direction == "unclear"
    assert change("uniformity", -0.5, -0.0006).direction == "lower"


@pytest.mark.parametrize(
    ("right", "sentence"), [(1000, "are better"), (801, "may be better"), (800, "are as good")]
)
def test_raw_pixels_are_only_as_good_if_they_are_close(right, sentence):
    # 100.0 % of raw pixels were "as good" as 75.0 % of the encoder
    def fraction(count):
        samples = {"knn_20": MetricSample.mean_of(np.arange(1000) < count)}
        return replace(measurement(0.7), samples=samples)

    raw_pixels = fraction(right).samples
    comparison = compare(fraction(700), fraction(800), "knn_20", raw_pixels=raw_pixels)
    assert comparison.raw_pixels_verdict.startswith(f"Raw pixels {sentence}: k-NN")


def test_a_run_that_was_too_short_has_no_verdict():
    comparison = compare(measurement(0.7), measurement(0.6), "knn_20", is_too_short=True)
    assert comparison.verdict.startswith(
        "No verdict, because the run was too short: k-NN, k = 20 fell by 9.7 points"
    )


def test_the_table_gives_the_number_of_test_images():
    comparison = compare(measurement(0.7), measurement(0.8), "knn_20")
    assert "Number of test images: 1,000 (k-NN, k = 20)." in format_comparison(comparison)
