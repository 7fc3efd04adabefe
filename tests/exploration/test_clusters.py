"""Clusters: groups that exist are found, noise stays noise, and the same seed gives the same."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from selfvit.exploration import partition as partition_module
from selfvit.exploration.clusters import cluster
from selfvit.exploration.collection import Collection, directions_of
from selfvit.exploration.partition import choose_num_clusters, partition, reduction_of

from .conftest import selfvit


def groups(num_groups, spread, num_rows, seed=1):
    """Return directions around random centers, and the center of each."""
    generator = np.random.default_rng(seed)
    centers = generator.normal(size=(num_groups, 32))
    numbers = generator.integers(num_groups, size=num_rows)
    vectors = centers[numbers] + spread * generator.normal(size=(num_rows, 32))
    return directions_of(vectors), numbers


@pytest.fixture
def without_umap(monkeypatch):
    monkeypatch.setattr(partition_module, "MIN_ROWS_OF_UMAP", 10**9)


class TestNumberOfClusters:
    @pytest.mark.parametrize("num_groups", [2, 3, 5, 10])
    def test_separate_groups_are_counted(self, num_groups):
        directions, numbers = groups(num_groups, 0.4, 600)
        found, most = choose_num_clusters(directions)
        assert found == num_groups and most == 24
        assignments = partition(directions, "kmeans", found, None, 0)
        pairs = set(zip(numbers.tolist(), assignments.tolist(), strict=True))
        assert len(pairs) == num_groups
        sizes = np.bincount(assignments)
        assert sizes.tolist() == sorted(sizes.tolist(), reverse=True)

    def test_few_different_vectors(self):
        directions, _ = groups(3, 0, 300)  # three vectors, a hundred times each
        assert choose_num_clusters(directions) == (3, 3)
        for num_rows in (1, 2, 3):
            assert choose_num_clusters(directions[:1].repeat(num_rows, axis=0)) == (1, 1)


class TestCluster:
    def test_the_groups_are_found_and_written(self, grouped):
        collection = Collection(grouped)
        result = cluster(collection, num_clusters=4)
        assert [found.size for found in result.clusters] == [20, 12, 8, 1]
        assert [found.label for found in result.clusters] == ["red", "blue", "green", None]
        assert all(found.share == 1 for found in result.clusters[:3])
        assert Collection(grouped).columns["cluster"] == result.assignments.tolist()
        assert result.agreement.adjusted_rand == result.agreement.mutual_information == 1
        assert result.agreement.num_labels == 3 and 0.5 < result.stability <= 1
        three = cluster(collection, num_clusters=3)
        assert [found.size for found in three.clusters] == [20, 13, 8] and three.stability == 1
        assert result.num_noise == 0 and result.clusters[3].exemplars == ["gray.png"]

    def test_exemplars_are_near_the_center_and_then_diverse(self, grouped):
        collection = Collection(grouped)
        exemplars = cluster(collection, num_clusters=4).clusters[0].exemplars
        assert len(set(exemplars)) == 8
        members = [row for row, name in enumerate(collection.ids) if name.startswith("red/")]
        own = collection.directions[members]
        order = np.argsort(-(own @ own.mean(axis=0)))
        assert exemplars[:5] == [collection.ids[members[place]] for place in order[:5]]
        assert all(name.startswith("red/") for name in exemplars)

    def test_the_same_seed_gives_the_same(self, grouped, without_umap):
        for options in ({"num_clusters": 7}, {"method": "hdbscan"}, {}):
            first, second = (cluster(grouped, seed=3, **options) for _ in range(2))
            assert first.to_dict() == second.to_dict()
            assert np.array_equal(first.assignments, second.assignments)
        assert cluster(grouped, num_clusters=7, num_seeds=1).stability is None

    def test_noise_stays_noise(self, grouped, without_umap):
        result = cluster(grouped, method="hdbscan", min_cluster_size=10, write=False)
        assert result.num_noise > 0 and result.stability is None
        assert result.num_noise + sum(found.size for found in result.clusters) == 41
        assert "principal components" in result.method
        assert Collection(grouped).columns == {}
        cluster(grouped, method="hdbscan", min_cluster_size=10)
        assert Collection(grouped).columns["cluster"].count(None) == result.num_noise

    def test_points_between_dense_groups_are_noise(self, without_umap):
        directions, numbers = groups(4, 0.3, 200)
        between = directions_of(np.random.default_rng(5).normal(size=(40, 32)))
        found = partition(np.concatenate([directions, between]), "hdbscan", None, 10, 0)
        assert len(set(zip(numbers.tolist(), found[:200].tolist(), strict=True))) == 4
        assert (found[200:] == -1).mean() > 0.8

    @pytest.mark.parametrize("method", ["kmeans", "hdbscan"])
    def test_small_collections(self, embedded_copies, empty_vectors, tmp_path, method):
        for count, folder in embedded_copies.items():
            copy = shutil.copytree(folder, tmp_path / str(count))
            result = cluster(copy, method=method)
            assert [found.size for found in result.clusters] == [count]
            assert Collection(copy).columns["cluster"] == [0] * count
        code, output = selfvit("cluster", empty_vectors, "--method", method)
        assert code == 2 and "needs at least 1 vector," in output

    def test_bad_arguments_are_one_line(self, grouped, embedded_copies, tmp_path):
        cases: list[tuple[list[object], str]] = [
            (["--num-clusters", 50], "must be at most the number of different vectors (41)"),
            (["--num-clusters", 0], "0"),
            (["--num-clusters", 5, "--method", "hdbscan"], "finds the number of clusters itself"),
            (["--min-cluster-size", 5], "is for the method hdbscan; leave it out"),
            (["--method", "dbscan"], "must be kmeans or hdbscan"),
            (["--sheet", tmp_path / "a.jpg"], "must end in .png"),
        ]
        for words, message in cases:
            code, output = selfvit("cluster", grouped, *words)
            assert code == 2 and message in output and "Traceback" not in output, output
        with pytest.raises(ValueError, match=r"different vectors \(1\); use 1 or fewer"):
            cluster(embedded_copies[12], num_clusters=2)


def test_the_command(grouped, tmp_path):
    code, output = selfvit("cluster", grouped, "--num-clusters", 4, "--json")
    found = json.loads(output)
    assert code == 0 and {"id", "size", "exemplars"} == set(found["clusters"][0])
    assert [one["id"] for one in found["clusters"]] == [0, 1, 2, 3] and found["noise"] == 0
    sheet = tmp_path / "sheet.png"
    code, output = selfvit("cluster", grouped, "--num-clusters", 3, "--sheet", sheet)
    assert code == 0 and "0  20 images, 100% red" in output, output
    assert "stability over 5 seeds: adjusted Rand index 1.000" in output
    assert "agreement with 3 labels" in output
    with Image.open(sheet) as image:
        assert image.height > 3 * 144


def test_the_command_writes_a_table_of_paths_and_clusters(grouped, tmp_path):
    # the clusters were a column of the vectors only
    output = tmp_path / "clusters.csv"
    words = ("cluster", grouped, "--num-clusters", 3, "--num-seeds", 1, "--output", output)
    code, printed = selfvit(*words)
    assert code == 0 and f"table: {output}" in printed, printed
    header, *rows = output.read_text().splitlines()
    assert header == "path,cluster" and len(rows) == 41
    assert "red/00.png,0" in rows and "blue/00.png,1" in rows
    code, printed = selfvit(*words)
    assert code == 2 and "use --overwrite to replace a file" in printed, printed
    assert selfvit(*words, "--overwrite")[0] == 0


def test_umap_keeps_separate_groups_apart():
    pytest.importorskip("umap")
    directions, numbers = groups(4, 0.3, 120)
    assignments = partition(directions, "hdbscan", None, None, 0)
    assert reduction_of(120) == "12 dimensions of UMAP"
    assert len(set(zip(numbers.tolist(), assignments.tolist(), strict=True))) == 4
