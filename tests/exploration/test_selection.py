"""Diverse subsets: k-center greedy, coverage, clusters, and lists that other commands read."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from selfvit import open_images
from selfvit.exploration.collection import Collection, directions_of
from selfvit.exploration.selection import farthest_first, select

from .conftest import selfvit


def radius(directions, rows):
    """Return the largest Euclidean distance of a row to the nearest of some rows."""
    distances = np.linalg.norm(directions[:, None] - directions[None, rows], axis=2)
    return distances.min(axis=1).max()


class TestFarthestFirst:
    def test_on_a_quarter_circle(self):
        angles = np.deg2rad([0, 10, 40, 50, 90])
        directions = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
        rows, scores, coverage = farthest_first(directions, 3)
        assert rows == [2, 4, 0]  # 40 degrees is nearest to the mean, then the two ends
        assert scores[0] == np.inf
        np.testing.assert_allclose(scores[1:], 1 - np.cos(np.deg2rad([50, 40])), atol=1e-6)
        np.testing.assert_allclose(
            coverage.largest, 1 - np.cos(np.deg2rad([50, 40, 10])), atol=1e-6
        )

    def test_the_radius_is_at_most_twice_the_best(self):
        for seed in range(5):
            directions = directions_of(np.random.default_rng(seed).normal(size=(12, 3)))
            rows, _, coverage = farthest_first(directions, 3)
            best = min(
                radius(directions, list(choice)) for choice in itertools.combinations(range(12), 3)
            )
            assert radius(directions, rows) <= 2 * best + 1e-5
            assert coverage.largest == sorted(coverage.largest, reverse=True)
            assert coverage.mean == sorted(coverage.mean, reverse=True)
            # distances in cosine and in Euclidean terms
            assert 2 * coverage.largest[-1] == pytest.approx(
                radius(directions, rows) ** 2, abs=1e-5
            )

    def test_copies_are_never_selected(self):
        different = np.concatenate([np.eye(4), np.zeros((1, 4))])
        directions = np.repeat(different.astype(np.float32), 3, axis=0)
        rows, _, coverage = farthest_first(directions, 10)
        assert sorted(row // 3 for row in rows) == [0, 1, 2, 3, 4]
        assert coverage.largest[-1] == 0


class TestSelect:
    def test_three_images_are_of_different_groups(self, grouped):
        names = {row.path.split("/")[0] for row in select(grouped, 4).rows}
        assert names == {"blue", "green", "red", "gray.png"}

    def test_clusters_give_the_same_number_and_small_ones_all(self, grouped):
        collection = Collection(grouped)
        with pytest.raises(ValueError, match="has no column 'cluster'; write it with selfvit clu"):
            select(collection, 4, per_cluster=True)
        clusters = [0] * 20 + [1] * 17 + [2] * 3 + [None]
        collection.write_columns("cluster", {"cluster": clusters})
        result = select(collection, 12, per_cluster=True)
        assert Counter(clusters[row.row] for row in result.rows) == {0: 4, 1: 4, 2: 3, None: 1}
        assert [clusters[row.row] for row in result.rows[:4]] == [0, 1, 2, None]
        assert len(result.coverage.mean) == 12 and result.note == ""

    def test_scores_with_clusters_are_distances_to_all_images_before(self, grouped):
        """They were distances within the cluster, and missing for its first image."""
        collection = Collection(grouped)
        collection.write_columns("cluster", {"cluster": np.arange(len(collection)) % 3})
        result = select(collection, 9, per_cluster=True)
        chosen = collection.directions[[row.row for row in result.rows]]
        scores = [row.score for row in result.rows]
        assert scores[0] is None
        for place in range(1, 9):
            nearest = (1 - chosen[:place] @ chosen[place]).min()
            assert scores[place] == pytest.approx(max(nearest, 0), abs=1e-6)

    def test_small_collections(self, embedded_copies, empty_vectors, grouped):
        for count in (1, 2, 12):
            result = select(embedded_copies[count], 5)
            assert [row.score for row in result.rows] == [None]
            assert ("copies" in result.note) == (count > 1)
        assert select(grouped, 100).note == f"{str(grouped)!r} has 41 images only, not 100"
        code, output = selfvit("select", empty_vectors)
        assert code == 2 and "needs at least 1 vector," in output


class TestCommand:
    def test_json_and_plot(self, grouped, tmp_path):
        code, output = selfvit(
            "select", grouped, "-n", 3, "--json", "--plot", tmp_path / "curve.png"
        )
        rows = json.loads(output)["rows"]
        assert code == 0 and rows[0]["score"] is None and rows[1]["score"] > rows[2]["score"]
        with Image.open(tmp_path / "curve.png") as image:
            assert image.size == (800, 500)

    @pytest.mark.parametrize("name", ["list.txt", "list.csv"])
    def test_a_list_is_read_by_other_commands(self, grouped, grouped_images, tmp_path, name):
        code, output = selfvit("select", grouped, "-n", 5, "-o", tmp_path / name)
        assert code == 0 and "5 of 41 images selected" in output, output
        source = open_images(tmp_path / name)
        expected = [str(grouped_images / row.path) for row in select(grouped, 5).rows]
        assert [source[position].image for position in range(len(source))] == expected
        if name == "list.csv":
            assert set(source.label_names) == {"blue", "green", "red"}
        assert selfvit("select", grouped, "-o", tmp_path / name)[0] == 2

    def test_bad_outputs_are_one_line(self, grouped, tmp_path):
        for words, message in [
            (["-o", tmp_path / "a.json"], "must end in .txt or .csv"),
            (["--plot", tmp_path / "a.jpg"], "must end in .png"),
            (["-n", 0], "0"),
            (["--per-cluster"], "has no column 'cluster'"),
        ]:
            code, output = selfvit("select", grouped, *words)
            assert code == 2 and message in output and "Traceback" not in output
