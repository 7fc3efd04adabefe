"""Classification from a few labels: predictions, calibration, held-out accuracy, and errors."""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import pytest

from selfvit.evaluation.knn import weighted_knn
from selfvit.exploration.classifier import (
    Classifier,
    assign_folds,
    count_neighbors,
    estimate_accuracy,
    softmax,
)
from selfvit.exploration.collection import Collection, directions_of
from selfvit.exploration.labeling import label

from .conftest import selfvit, write_vectors

METHODS = ("knn", "linear")
SIX = [f"{color}/{index:02d}.png" for color in ("blue", "green", "red") for index in (0, 1)]


def write_labels(path, rows):
    path.write_text("path,label\n" + "".join(f"{name},{value}\n" for name, value in rows))
    return path


def color_of(name):
    return name.split("/")[0]


@pytest.fixture
def labels(tmp_path):
    return write_labels(tmp_path / "labels.csv", [(name, color_of(name)) for name in SIX])


def two_groups(num_rows, overlap, seed):
    """Return vectors of two classes that overlap, and their classes."""
    generator = np.random.default_rng(seed)
    numbers = generator.integers(2, size=num_rows)
    centers = np.array([[1.0, 0, 0, 1], [0, 1.0, 0, 1]])
    vectors = centers[numbers] + overlap * generator.normal(size=(num_rows, 4))
    return directions_of(vectors), numbers


@pytest.mark.parametrize("method", METHODS)
class TestPredictions:
    def test_the_groups_are_labeled_and_written(self, grouped, labels, method):
        result = label(grouped, labels, method=method)
        colored = [row for row in result.predictions if "/" in row.path]
        assert len(colored) == 40
        assert all(row.prediction == color_of(row.path) for row in colored)
        assert all(row.probability == 1 for row in colored if row.path in SIX)
        columns = Collection(grouped).columns
        assert columns["prediction"] == [row.prediction for row in result.predictions]
        np.testing.assert_allclose(
            columns["probability"], [row.probability for row in result.predictions], rtol=1e-6
        )
        assert result.estimate.accuracy == 1 and result.estimate.num_images == 6
        assert result.estimate.low < 0.65  # six images say little
        assert result.num_labeled == {"blue": 2, "green": 2, "red": 2} and result.notes == []

    def test_uncertain_rows_have_no_label_and_come_in_order(self, grouped, labels, method):
        result = label(grouped, labels, method=method, uncertain=100, write=False)
        probabilities = [row.probability for row in result.uncertain]
        assert len(result.uncertain) == 35 and probabilities == sorted(probabilities)
        assert not {row.path for row in result.uncertain} & set(SIX)
        assert Collection(grouped).columns == {}

    def test_the_same_seed_gives_the_same(self, grouped, labels, method):
        first, second = (label(grouped, labels, method=method, seed=2) for _ in range(2))
        assert first == second

    def test_one_label_per_class_is_not_estimated(self, grouped, tmp_path, method):
        few = write_labels(tmp_path / "few.csv", [("red/00.png", "red"), ("blue/00.png", "blue")])
        result = label(grouped, few, method=method)
        assert result.estimate is None and result.temperature is None
        assert "not estimated" in result.notes[0] and "not calibrated" in result.notes[0]
        few = write_labels(tmp_path / "few.csv", [(name, color_of(name)) for name in SIX[:-1]])
        result = label(grouped, few, method=method)
        assert result.estimate.num_images == 4
        assert result.notes == [
            "the accuracy is not estimated for red, which has one labeled image or video and is "
            "never held out"
        ]

    def test_held_out_accuracy_and_probabilities_are_honest(self, method):
        """Both are near those of thousands of other images."""
        vectors, numbers = two_groups(4200, 0.6, seed=0)
        train, test = slice(0, 200), slice(200, None)
        classifier = Classifier(method, 2, seed=0)
        folds = assign_folds(vectors[train], numbers[train], range(200), seed=0)
        estimate, temperature = estimate_accuracy(classifier, vectors[train], numbers[train], folds)
        scores = classifier.scores(vectors[train], numbers[train], vectors[test])
        accuracy = (scores.argmax(axis=1) == numbers[test]).mean()
        assert 0.7 < accuracy < 0.95 and estimate.low < accuracy < estimate.high
        probability = softmax(scores / temperature).max(axis=1)
        assert probability.mean() == pytest.approx(accuracy, abs=0.05)
        assert estimate.mean_probability == pytest.approx(estimate.accuracy, abs=0.06)
        for low in (0.5, 0.7, 0.9):
            chosen = (probability >= low) & (probability < low + 0.2)
            right = (scores.argmax(axis=1) == numbers[test])[chosen].mean()
            assert right == pytest.approx(probability[chosen].mean(), abs=0.12)


def test_knn_is_that_of_the_evaluation():
    vectors, numbers = two_groups(300, 0.5, seed=1)
    scores = Classifier("knn", 2, 0).scores(vectors[:100], numbers[:100], vectors[100:])
    expected = weighted_knn(vectors[:100], numbers[:100], vectors[100:], k=20).numpy()
    assert np.array_equal(scores.argmax(axis=1), expected)


class TestFolds:
    def test_copies_are_in_one_fold_and_classes_are_spread(self):
        directions = directions_of(np.random.default_rng(0).normal(size=(30, 8)))
        directions[20:] = directions[:10]  # ten images twice
        numbers = np.array([0, 1] * 15)
        folds = assign_folds(directions, numbers, range(30), seed=0)
        assert np.array_equal(folds[20:], folds[:10]) and set(folds) == {0, 1, 2, 3, 4}
        for number in (0, 1):
            assert set(folds[numbers == number]) == {0, 1, 2, 3, 4}

    def test_a_class_of_copies_is_not_held_out(self):
        directions = np.eye(6, dtype=np.float32)
        directions[5] = directions[4]
        folds = assign_folds(directions, np.array([0, 0, 1, 1, 2, 2]), range(6), seed=0)
        assert folds[4] == folds[5] == -1 and folds[0] != folds[1] and folds[2] != folds[3]
        assert folds[:4].min() == 0

    def test_frames_of_a_video_are_in_one_fold(self, tmp_path):
        """Labels are unrelated to content, so only other frames of a video reveal its class."""
        generator = np.random.default_rng(0)
        videos = [f"{number}.mp4" for number in range(20) for _ in range(10)]
        scenes = generator.normal(size=(20, 16)).repeat(10, axis=0)
        vectors = scenes + 0.1 * generator.normal(size=scenes.shape)
        folder = write_vectors(tmp_path / "v", vectors, videos, is_video=True)
        classes = {name: "ab"[number % 2] for number, name in enumerate(dict.fromkeys(videos))}
        for method in METHODS:
            result = label(folder, classes, method=method, write=False)
            assert result.estimate.num_images == 200 and result.estimate.accuracy < 0.8

    @pytest.mark.parametrize("method", METHODS)
    def test_a_fold_may_leave_one_class(self, tmp_path, method):
        """The only image of b is a copy of one of a; the linear probe was an error without it."""
        vectors = np.random.default_rng(0).normal(size=(8, 6))
        vectors[3] = vectors[0]
        names = [f"{number}.png" for number in range(8)]
        folder = write_vectors(tmp_path / "v", vectors, names)
        result = label(folder, dict(zip(names, "aaab", strict=False)), method=method, write=False)
        assert result.estimate.num_images == 4 and result.estimate.accuracy <= 0.75


class TestLabels:
    def test_absolute_paths_unknown_and_repeated_rows(self, grouped, grouped_images, tmp_path):
        rows = [(grouped_images / name, color_of(name)) for name in SIX]
        rows += [rows[0], ("blue/99.png", "blue"), ("red/03.png", "")]
        result = label(grouped, write_labels(tmp_path / "labels.csv", rows), write=False)
        assert result.num_labeled == {"blue": 2, "green": 2, "red": 2}
        assert "1 labels of" in result.notes[0] and "'blue/99.png'" in result.notes[0]
        assert f"as {str(grouped)!r} has no such image" in result.notes[0]

    def test_a_mapping_and_numbers_as_labels(self, grouped, tmp_path):
        numbers: dict[str, Any] = {name: number // 2 for number, name in enumerate(SIX)}
        result = label(grouped, numbers, write=False)
        assert list(result.num_labeled) == ["0", "1", "2"]
        path = write_labels(tmp_path / "labels.csv", numbers.items())
        assert label(grouped, path, write=False) == result
        numbers |= {"red/03.png": None, "red/04.png": float("nan"), "blue/02.png": np.int64(0)}
        result = label(grouped, numbers, write=False)
        assert result.num_labeled == {"0": 3, "1": 2, "2": 2}

    def test_bad_labels_are_one_line(self, grouped, tmp_path):
        for number, (rows, message) in enumerate(
            [
                ([("red/00.png", "red"), ("red/01.png", "red")], "labels of at least two classes"),
                ([("red/00.png", "a"), ("red/00.png", "b")], "names 'red/00.png' twice"),
                ([("x.png", "a"), ("y.png", "b")], "for example 'x.png'; its names are like"),
                ([("red/00.png", ""), ("red/01.png", "")], "has no label in column 'label'"),
                ([], "label"),
            ]
        ):
            path = write_labels(tmp_path / f"{number}.csv", rows)
            code, output = selfvit("label", grouped, "--labels", path)
            assert code == 2 and message in output and "Traceback" not in output, output
        (tmp_path / "no_label.csv").write_text("path,kind\nred/00.png,a\n")
        for path, message in [
            (tmp_path / "missing.csv", "there is no file"),
            (tmp_path / "no_label.csv", "has no column of labels; its columns are path, kind"),
            (grouped / "metadata.json", "must be a table with a column of paths"),
        ]:
            code, output = selfvit("label", grouped, "--labels", path)
            assert code == 2 and message in output, output

    def test_small_collections(self, embedded_copies, empty_vectors, tmp_path):
        path = write_labels(tmp_path / "labels.csv", [("00.png", "a"), ("01.png", "b")])
        for folder in (embedded_copies[1], empty_vectors):
            code, output = selfvit("label", folder, "--labels", path)
            assert code == 2 and "needs at least 2 vectors" in output
        two = label(embedded_copies[2], path, write=False)
        assert [row.prediction for row in two.predictions] == ["a", "b"] and two.uncertain == []
        copies = shutil.copytree(embedded_copies[12], tmp_path / "v")
        for method in METHODS:  # the same image has two labels
            result = label(copies, path, method=method)
            assert result.predictions[5].probability == pytest.approx(0.5)
            assert result.estimate is None


def test_the_command(grouped, labels):
    code, output = selfvit("label", grouped, "--labels", labels, "--uncertain", 2)
    assert code == 0 and "red: 2 labeled, 2" in output, output
    assert "accuracy on held-out labels: 1.000 (95 % interval 0." in output
    assert "columns: prediction, probability" in output
    code, output = selfvit(
        "label", grouped, "--labels", labels, "--method", "linear", "--uncertain", 2, "--json"
    )
    found = json.loads(output)
    assert code == 0 and found["method"] == "linear" and len(found["uncertain"]) == 2
    assert set(found["uncertain"][0]) == {"path", "prediction", "probability"}
    assert found["estimate"]["accuracy"] == 1 and found["notes"] == []


def test_the_command_writes_a_table_of_predictions(grouped, labels, tmp_path):
    # the predictions were columns of the vectors only
    output = tmp_path / "predictions.csv"
    words = ("label", grouped, "--labels", labels, "--output", output)
    code, printed = selfvit(*words)
    assert code == 0 and f"table: {output}" in printed, printed
    header, *rows = output.read_text().splitlines()
    assert header == "path,prediction,probability" and len(rows) == 41
    assert "red/00.png,red,1.000000" in rows
    code, printed = selfvit(*words)
    assert code == 2 and "use --overwrite to replace a file" in printed, printed
    assert selfvit(*words, "--overwrite")[0] == 0


class TestFewLabels:
    @staticmethod
    def ten_groups(num_rows, seed):
        """Return vectors of ten classes that are all alike, as those of a small encoder are."""
        generator = np.random.default_rng(seed)
        numbers = np.arange(num_rows) % 10
        centers = np.random.default_rng(0).normal(size=(10, 32))
        vectors = 4 + centers[numbers] + 0.5 * generator.normal(size=(num_rows, 32))
        return directions_of(vectors), numbers

    def test_three_labels_of_a_class_are_enough(self):
        """Twenty of thirty neighbors used to vote, most of them of other classes."""
        train, numbers = self.ten_groups(30, seed=1)
        test, truth = self.ten_groups(500, seed=2)
        scores = Classifier("knn", 10, 0).scores(train, numbers, test)
        assert (scores.argmax(axis=1) == truth).mean() > 0.95

    def test_as_many_neighbors_vote_as_a_class_has_labels(self):
        assert count_neighbors(np.arange(30) % 10) == 3
        assert count_neighbors(np.arange(5)) == 1
        assert count_neighbors(np.arange(400) % 10) == 20
        assert count_neighbors(np.array([0] * 50 + [2, 2, 3])) == 2
