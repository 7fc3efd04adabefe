"""Maps: the same for the same seed, old points stay, few and identical vectors, outputs."""

from __future__ import annotations

import json
import shutil

import matplotlib
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from selfvit import read_vectors
from selfvit.cli import app
from selfvit.data.sources import open_images
from selfvit.embedding.embedder import Embedder
from selfvit.embedding.vectors.update import update_embeddings
from selfvit.exploration import maps
from selfvit.exploration.collection import Collection, directions_of
from selfvit.exploration.map_files import coloring_columns, map_vectors
from selfvit.exploration.maps import STORED_MAP, lay_out, place
from selfvit.visualization import embedding_map

from .. import image_files
from ..data.videos import write_video
from ..figures import kept_figures
from .conftest import embed


def selfvit(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.output


@pytest.fixture
def folder(collection_vectors, tmp_path):
    return shutil.copytree(collection_vectors, tmp_path / "v")


class TestPlaces:
    def test_a_new_image_is_at_the_weighted_mean_of_its_nearest_mapped_images(self):
        directions = np.eye(8, dtype=np.float32)
        directions[7] = [0, 0.8, 0.6, 0, 0, 0, 0, 0]  # similar to rows 1 and 2
        positions = np.stack([np.arange(8.0), np.arange(8.0) ** 2], axis=1).astype(np.float32)
        positions[[0, 7]] = np.nan
        found = place(directions, positions, np.array([7]))
        weights = np.exp(np.array([0.8, 0.6, 0, 0, 0]) / 0.07)
        rows = [1, 2, 3, 4, 5]  # equal similarities: the first rows
        expected = (positions[rows] * (weights / weights.sum())[:, None]).sum(axis=0)
        np.testing.assert_allclose(found[0], expected, rtol=1e-5)

    def test_a_copy_of_one_image_is_close_to_it_and_fewer_than_five_are_enough(self):
        directions = np.eye(3, dtype=np.float32)[[0, 1, 0]]
        positions = np.array([[3, 4], [9, 9], [np.nan, np.nan]], dtype=np.float32)
        np.testing.assert_allclose(place(directions, positions, np.array([2])), [[3, 4]], atol=1e-4)


class TestLayout:
    def test_the_same_seed_gives_the_same_map_and_its_columns(self, folder):
        first = lay_out(Collection(folder), method="tsne")
        columns = Collection(folder).columns
        assert np.array_equal(np.float32([columns["x"], columns["y"]]).T, first.positions)
        assert {"x", "y"} <= set(read_vectors(folder).column_names)
        second = lay_out(Collection(folder), method="tsne", new=True)
        assert np.array_equal(first.positions, second.positions) and not second.num_kept
        other = lay_out(Collection(folder), method="tsne", seed=1)
        assert not other.num_kept  # a map of its own, though t-SNE starts from the PCA

    def test_neighbors_are_those_of_search(self, folder):
        from selfvit.exploration.search import search

        collection = Collection(folder)
        layout = lay_out(collection, method="tsne")
        for row in (0, 11, 39):
            found = search(collection, like=[collection.ids[row]], k=10).results
            assert layout.neighbors[row].tolist() == [match.row for match in found]
            expected = [match.similarity for match in found]
            np.testing.assert_allclose(layout.similarities[row], expected, atol=1e-6)

    def test_five_new_images_move_no_old_point(
        self, folder, collection_images, tiny_checkpoint, tmp_path
    ):
        before = lay_out(Collection(folder), method="tsne")
        old = dict(zip(Collection(folder).ids, before.positions.tolist(), strict=True))
        data = shutil.copytree(collection_images, tmp_path / "data")
        for number in range(4):
            image_files.noise(24, 24, seed=100 + number).save(data / "a" / f"new{number}.png")
        shutil.copy(data / "b" / "01.png", data / "b" / "copy.png")
        image_files.noise(24, 24, seed=77).save(data / "a" / "00.png")  # another image now
        (data / "a" / "02.png").unlink()
        embedder = Embedder.from_pretrained(tiny_checkpoint, device="cpu")
        update_embeddings(embedder, open_images(data), folder, progress=False)
        collection = Collection(folder)
        after = lay_out(collection, method="tsne")
        assert (after.num_kept, after.num_placed, len(collection)) == (38, 6, 44)
        positions = dict(zip(collection.ids, after.positions.tolist(), strict=True))
        for name in set(old) - {"a/00.png", "a/02.png"}:
            assert positions[name] == old[name]
        assert np.isfinite(after.positions).all()
        again = lay_out(Collection(folder), method="tsne")
        assert np.array_equal(again.positions, after.positions) and again.num_kept == 44

    def test_frames_of_a_video_keep_their_own_positions(self, tiny_checkpoint, tmp_path):
        pytest.importorskip("av")
        write_video(tmp_path / "videos" / "a.mp4", 30)
        write_video(tmp_path / "videos" / "b.mp4", 10, size=(48, 64))
        folder = embed(tiny_checkpoint, tmp_path / "videos", tmp_path / "v", video_fps=5)
        first = lay_out(Collection(folder), method="tsne")
        second = lay_out(Collection(folder), method="tsne")
        assert len(np.unique(first.positions, axis=0)) == 8 == second.num_kept
        np.testing.assert_array_equal(second.positions, first.positions)

    def test_umap_is_the_same_for_the_same_seed_and_keeps_groups_together(self):
        random = np.random.default_rng(0)
        groups = np.repeat(np.eye(3), 30, axis=0) + random.normal(scale=0.05, size=(90, 3))
        directions = directions_of(groups)
        near = maps.nearest(directions, directions, 14, exclude=np.arange(90))
        first, second = (maps._project(directions, *near, "umap", 0) for _ in range(2))
        assert np.array_equal(first, second)
        centers = first.reshape(3, 30, 2).mean(axis=1)
        spread = np.abs(first.reshape(3, 30, 2) - centers[:, None]).max()
        assert min(np.linalg.norm(centers[i] - centers[i - 1]) for i in range(3)) > 2 * spread

    @pytest.mark.parametrize("method", ["umap", "tsne"])
    @pytest.mark.parametrize("count", [1, 2, 4, 20])
    def test_few_and_identical_vectors(self, method, count):
        for directions in (np.ones((count, 2)) / 2**0.5, np.zeros((count, 2)), np.ones((count, 1))):
            directions = directions.astype(np.float32)
            near = maps.nearest(directions, directions, 14, exclude=np.arange(count))
            positions = maps._project(directions, *near, method, 0)
            assert positions.shape == (count, 2) and np.isfinite(positions).all()


class TestCommand:
    @pytest.mark.parametrize("num_images", [1, 2])
    def test_small_collections(self, tiny_checkpoint, tmp_path, num_images):
        for index in range(num_images):
            image_files.noise(24, 24, seed=0).save(tmp_path / f"{index}.png")  # the same image
        vectors = embed(tiny_checkpoint, tmp_path, tmp_path / "v")
        for output in ("map.html", "map.png"):
            code, printed = selfvit("map", vectors, "-o", tmp_path / output)
            assert code == 0 and f"positions of {num_images} images" in printed, printed
            assert f"columns: x, y in {vectors}" in printed

    def test_no_vectors_and_bad_options_are_one_line(self, folder, tmp_path):
        for words, message in [
            ((tmp_path, "-o", tmp_path / "m.html"), "must be a folder that selfvit embed wrote"),
            ((folder, "-o", tmp_path / "m.svg"), "must end in .html or .png"),
            ((folder, "--atlas", tmp_path / "m.csv"), "must end in .parquet"),
            ((folder, "--color", "kind"), "no column 'kind' to color by; there are: label"),
        ]:
            code, printed = selfvit("map", *words)
            assert code == 2 and message in printed and "Traceback" not in printed
        (folder / STORED_MAP).write_bytes(b"ARROW1")
        code, printed = selfvit("map", folder, "--layout", "tsne")
        assert code == 2 and "is damaged" in printed and "delete it" in printed

    def test_json_is_all_that_is_printed_and_a_picture_is_drawn(self, folder, tmp_path):
        words = ("map", folder, "--layout", "tsne", "-o", tmp_path / "map.png", "--json")
        code, printed = selfvit(*words)
        found = json.loads(printed)
        assert code == 0 and found["num_rows"] == 40 and found["color"] == "label"
        with Image.open(tmp_path / "map.png") as picture:
            assert picture.size == (1600, 1040)
        assert selfvit(*words)[0] == 2  # it exists
        code, printed = selfvit(*words, "--overwrite")
        assert json.loads(printed)["num_kept"] == 40

    def test_a_picture_shows_numbers_on_a_color_bar_and_integer_classes_by_value(
        self, folder, tmp_path, monkeypatch
    ):
        """Numbers were sorted as texts, "10" before "9", on colors that end where they begin."""
        figures = kept_figures(monkeypatch, embedding_map)
        score = [None, float("nan"), *np.linspace(-1, 100, 38)]
        cluster = [None, *(np.arange(39) % 12).tolist()]
        columns = {"score": score, "cluster": cluster, "many": np.arange(40)}
        Collection(folder).write_columns("added", columns)

        def draw(color):
            path = tmp_path / f"{color}.png"
            result = map_vectors(folder, path, method="tsne", color=color, thumbnails=False)
            return result, figures[-1].axes

        result, (axes, bar) = draw("score")
        assert bar.get_ylim() == pytest.approx((-1, 100)) and not result.note
        colors = axes.collections[0].get_facecolors()[:, :3]
        viridis = matplotlib.colormaps["viridis"](np.linspace(0, 1, 38))[:, :3]
        np.testing.assert_allclose(colors[2:], viridis, atol=0.02)
        assert (colors[:2] == embedding_map.GRAY[:3]).all()
        result, (axes,) = draw("cluster")
        names = [text.get_text() for text in axes.get_legend().get_texts()]
        assert names == [*map(str, range(12)), "no cluster"] and not result.note
        result, (axes,) = draw("many")
        assert axes.get_legend() is None and "column 'many' has 40 values" in result.note
        words = ("-o", tmp_path / "many.png", "--no-thumbnails", "--overwrite")
        code, printed = selfvit("map", folder, "--layout", "tsne", "--color", "many", *words)
        assert code == 0 and f"note: {result.note}" in printed

    def test_the_table_for_embedding_atlas(self, folder, tmp_path):
        path = tmp_path / "atlas.parquet"
        code, printed = selfvit("map", folder, "--layout", "tsne", "--atlas", path)
        options = "--x x --y y --neighbors neighbors --image image"
        assert code == 0 and f"embedding-atlas {path} {options}" in printed
        rows = pq.read_table(path).to_pylist()
        layout = lay_out(Collection(folder), method="tsne")
        assert [(row["x"], row["y"]) for row in rows] == [tuple(p) for p in layout.positions]
        assert rows[3]["neighbors"]["ids"] == layout.neighbors[3].tolist()
        assert rows[3]["neighbors"]["distances"] == sorted(rows[3]["neighbors"]["distances"])
        assert rows[3]["image"]["bytes"].startswith(b"\xff\xd8") and rows[0]["label"] == "a"

    def test_columns_to_color_by(self, folder):
        collection = Collection(folder)
        collection.write_columns("cluster", {"cluster": np.arange(40) % 3})
        columns = coloring_columns(Collection(folder))
        assert list(columns) == ["label", "cluster"]  # the folders are the labels
        result = map_vectors(folder, method="tsne", color="cluster", thumbnails=False)
        assert result.color == "cluster" and result.output is None
