"""Search: exact neighbors, queries of any kind, the index, and errors."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from selfvit import read_vectors
from selfvit.cli import app
from selfvit.data.sources import open_images
from selfvit.embedding.embedder import Embedder
from selfvit.exploration import index as index_module
from selfvit.exploration import search as search_module
from selfvit.exploration.collection import Collection
from selfvit.exploration.index import build_index, load_index
from selfvit.exploration.neighbors import nearest
from selfvit.exploration.search import patch_grids, patch_similarities, search

from .. import image_files
from ..data.videos import write_video
from .conftest import embed, write_vectors


def brute_force(query, vectors):
    """Return rows by descending cosine similarity, in float64."""
    directions = vectors.astype(np.float64)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    similarities = directions @ (query / np.linalg.norm(query))
    return np.lexsort((np.arange(len(vectors)), -similarities)), similarities


def selfvit(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.output


class TestNeighbors:
    def test_they_are_those_of_brute_force_in_any_block_size(self, monkeypatch):
        from selfvit.exploration import neighbors

        vectors = np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        for values in (1, 700, 2**20):
            monkeypatch.setattr(neighbors, "VALUES_PER_BLOCK", values)
            rows, similarities = nearest(vectors[:20], vectors, 7)
            for query in range(20):
                expected, exact = brute_force(vectors[query].astype(float), vectors)
                assert rows[query].tolist() == expected[:7].tolist()
                np.testing.assert_allclose(similarities[query], exact[rows[query]], atol=1e-6)

    def test_equal_rows_are_in_order_and_rows_can_be_left_out(self):
        vectors = np.tile(np.eye(3, dtype=np.float32)[:1], (6, 1))
        rows, similarities = nearest(vectors[:1], vectors, 4)
        assert rows.tolist() == [[0, 1, 2, 3]] and (similarities == 1).all()
        rows, _ = nearest(vectors, vectors, 10, exclude=np.arange(6))
        assert rows.shape == (6, 5) and rows[2].tolist() == [0, 1, 3, 4, 5]


class TestSearch:
    def test_a_row_finds_its_neighbors_as_brute_force_does(self, collection_vectors):
        collection = Collection(collection_vectors)
        result = search(collection, like=["a/02.png"], k=39)
        query = collection.row_of("a/02.png")
        expected, similarities = brute_force(
            collection.vectors[query].astype(float), collection.vectors
        )
        assert [m.row for m in result.results] == [row for row in expected if row != query]
        assert search(collection, like="a/02.png", k=39) == result
        for match in result.results:
            assert match.path == collection.ids[match.row]
            assert match.similarity == pytest.approx(similarities[match.row], abs=1e-6)

    def test_a_path_of_another_folder_is_no_name_of_a_row(
        self, collection_vectors, collection_images
    ):
        collection = Collection(collection_vectors)
        row = collection.row_of("a/02.png")
        inside = collection_images.resolve() / "a" / "02.png"
        named = f"{collection_images.name}/a/02.png"
        assert [collection.row_of(str(name)) for name in (inside, named)] == [row, row]
        for name in ("/elsewhere/a/02.png", "other/a/02.png"):
            with pytest.raises(ValueError, match="has no image"):
                collection.row_of(name)

    @pytest.mark.parametrize("kind", ["split", "files", "list"])
    def test_an_absolute_path_is_a_name_of_its_row(self, tmp_path, kind):
        data = tmp_path / "data"
        files = [data / "test" / name for name in ("a/0.png", "a/1.png", "b/0.png")]
        for file in (*files, data / "train" / "a" / "0.png"):
            file.parent.mkdir(parents=True, exist_ok=True)
            image_files.noise(8, 8).save(file)
        (tmp_path / "lists").mkdir()
        listed = tmp_path / "lists" / "list.txt"
        listed.write_text("".join(f"../data/{file.relative_to(data)}\n" for file in files))
        images = {
            "split": {"data": [str(data)], "split": "test"},
            "files": {"data": [str(file) for file in files]},
            "list": {"data": [str(listed)]},
        }[kind]
        source = open_images(**images)
        names = [source.name_of(position) for position in range(3)]
        folder = write_vectors(tmp_path / "v", np.eye(3), names)
        (folder / "metadata.json").write_text(json.dumps({"images": images}))
        collection = Collection(folder)
        assert [collection.row_of(str(file)) for file in files] == [0, 1, 2]
        for name in (data / "train" / "a" / "0.png", "/elsewhere/a/0.png"):
            with pytest.raises(ValueError, match="has no image"):
                collection.row_of(str(name))

    def test_an_image_file_finds_its_own_row_first(self, collection_vectors, collection_images):
        path = collection_images / "b" / "07.png"
        result = search(collection_vectors, [path], k=3)
        assert result.results[0].path == "b/07.png"
        assert result.results[0].similarity == pytest.approx(1, abs=1e-6)
        with Image.open(path) as image:
            assert search(collection_vectors, [image], k=3).results == result.results

    def test_several_images_count_as_the_mean_of_their_directions(self, collection_vectors):
        collection = Collection(collection_vectors)
        names = ["a/00.png", "b/01.png"]
        found = search(collection, like=names, k=5).results
        rows = [collection.row_of(name) for name in names]
        mean = collection.directions[rows].mean(axis=0).astype(float)
        expected = [row for row in brute_force(mean, collection.vectors)[0] if row not in rows]
        assert [match.row for match in found] == expected[:5]

    def test_another_checkpoint_is_refused(self, collection_vectors, tiny_checkpoint, tmp_path):
        other = shutil.copytree(tiny_checkpoint, tmp_path / "other")
        config = json.loads((other / "config.json").read_text())
        (other / "config.json").write_text(json.dumps({**config, "pooling": "mean"}))
        image = image_files.noise(24, 24, seed=1)
        assert search(collection_vectors, [image], checkpoint=str(other)).results
        processor = json.loads((other / "preprocessor_config.json").read_text())
        processor["image_mean"] = [0.1, 0.1, 0.1]
        (other / "preprocessor_config.json").write_text(json.dumps(processor))
        with pytest.raises(ValueError, match=r"of another checkpoint than .*processor differ"):
            search(collection_vectors, [image], checkpoint=str(other))

    def test_bad_queries_are_one_line(self, collection_vectors, tmp_path):
        for words, message in [
            ([], "a search needs a query"),
            (["--like", "c/1.png"], "has no image 'c/1.png'"),
            ([tmp_path / "no.png"], "cannot be read"),
            (["--like", "a/00.png", "-k", 0], "0"),
            (["--like", "a/00.png", "--patches"], "choose its file with --output"),
            (["--like", "a/00.png", "-o", "sheet.jpg"], "must end in .png"),
        ]:
            code, output = selfvit("search", collection_vectors, *words)
            assert code == 2 and message in output and "Traceback" not in output
        code, output = selfvit("search", tmp_path, "--like", "a")
        assert code == 2 and "must be a folder that selfvit embed wrote" in output
        swapped = selfvit("search", collection_vectors / "manifest.json", collection_vectors)
        assert swapped[0] == 2 and "is a file; give such a folder first" in swapped[1]

    @pytest.mark.parametrize("num_images", [1, 2])
    def test_small_collections(self, tiny_checkpoint, tmp_path, num_images):
        for index in range(num_images):
            image_files.noise(24, 24, seed=0).save(tmp_path / f"{index}.png")  # the same image
        vectors = embed(tiny_checkpoint, tmp_path, tmp_path / "v")
        found = search(vectors, like=["0.png"]).results
        assert [match.path for match in found] == ["1.png"][: num_images - 1]
        assert len(search(vectors, [tmp_path / "0.png"]).results) == num_images


def test_a_video_is_the_mean_of_its_frames_which_are_no_results(tiny_checkpoint, tmp_path):
    """Only its first frame was the query, and its other frames were the first results."""
    pytest.importorskip("av")
    for name, size in (("a", (64, 48)), ("b", (48, 64)), ("c", (64, 64))):
        write_video(tmp_path / "videos" / f"{name}.mp4", 30, size=size)
    vectors = embed(tiny_checkpoint, tmp_path / "videos", tmp_path / "v", video_fps=5)
    collection = Collection(vectors)
    rows = [row for row, name in enumerate(collection.ids) if name == "a.mp4"]
    assert len(rows) == 6
    mean = collection.directions[rows].mean(axis=0).astype(float)
    expected, similarities = brute_force(mean, collection.vectors)
    expected = [row for row in expected if row not in rows][:7]
    found = search(collection, like=["a.mp4"], k=7).results
    np.testing.assert_allclose(
        [match.similarity for match in found], similarities[expected], atol=1e-6
    )
    times = read_vectors(vectors)["seconds"].to_pylist()
    assert [match.seconds for match in found] == [times[match.row] for match in found]
    assert {match.row for match in found}.isdisjoint(rows) and times[rows[1]] > 0
    _, printed = selfvit("search", vectors, "--like", "a.mp4", "-k", 7)
    assert f"  {found[0].path}  {found[0].seconds:.2f} s" in printed
    _, printed = selfvit("search", vectors, "--like", "a.mp4", "-k", 7, "--json")
    assert json.loads(printed)["results"][0]["seconds"] == found[0].seconds


class TestCommand:
    def test_json_is_all_that_is_printed(self, collection_vectors):
        code, output = selfvit(
            "search", collection_vectors, "--like", "a/00.png", "-k", 2, "--json"
        )
        found = json.loads(output)
        assert code == 0 and found["query"] == "a/00.png"
        assert [set(match) for match in found["results"]] == [{"path", "similarity", "row"}] * 2

    @pytest.mark.parametrize("patches", [[], ["--patches"]])
    def test_a_sheet_shows_query_and_results(self, collection_vectors, tmp_path, patches):
        sheet = tmp_path / "sheet.png"
        words = ["search", collection_vectors, "--like", "a/00.png", "-k", 4, "-o", sheet, *patches]
        code, output = selfvit(*words)
        assert code == 0, output
        with Image.open(sheet) as image:
            assert image.height > image.width if patches else image.width > image.height
        assert selfvit(*words)[0] == 2  # it exists
        assert selfvit(*words, "--overwrite")[0] == 0


def test_patches_of_an_image_match_themselves(collection_vectors, collection_images):
    embedder = Collection(collection_vectors).embedder()
    assert isinstance(embedder, Embedder)
    with Image.open(collection_images / "a" / "00.png") as image:
        first, second = patch_similarities(*patch_grids(embedder, [image, image]))
    assert first.shape == second.shape
    np.testing.assert_allclose(first, 1, atol=1e-5)


class TestIndex:
    @pytest.fixture
    def indexed(self, collection_vectors, tmp_path, monkeypatch):
        pytest.importorskip("faiss")
        folder = shutil.copytree(collection_vectors, tmp_path / "v")
        monkeypatch.setattr(search_module, "EXACT_UP_TO", 10)
        return folder

    def test_large_collections_are_searched_with_the_index(self, indexed):
        without = search(indexed, like=["a/00.png"], k=5)
        assert "selfvit index" in without.note
        description = build_index(Collection(indexed))
        assert description.recall >= index_module.NEEDED_RECALL
        found = search(indexed, like=["a/00.png"], k=5)
        assert "recall@10" in found.note
        same = {match.row for match in found.results} & {match.row for match in without.results}
        assert len(same) >= 4

    def test_the_index_of_other_vectors_is_refused(self, indexed):
        build_index(Collection(indexed))
        manifest = json.loads((indexed / "manifest.json").read_text())
        manifest["parts"][0]["sha256"] = "0" * 64
        (indexed / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(ValueError, match="is of other vectors; build it again"):
            load_index(Collection(indexed))

    def test_the_command_prints_the_recall(self, indexed):
        code, output = selfvit("index", indexed)
        assert code == 0 and "recall@10 against exact search" in output
        code, output = selfvit("index", indexed, "--json")
        assert json.loads(output)["num_rows"] == 40


def test_a_search_with_an_index_reads_the_parts_of_its_rows_only(tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(search_module, "EXACT_UP_TO", 10)
    vectors = np.random.default_rng(0).normal(size=(30, 8))
    names = [f"{row}.png" for row in range(30)]
    folder = write_vectors(tmp_path / "v", vectors, names, num_parts=3)
    build_index(Collection(folder))
    collection = Collection(folder)
    expected = search(Collection(folder), like=["14.png", "25.png"], k=5)
    (folder / "part-00000.parquet").write_bytes(b"of no use")
    assert search(collection, like=["14.png", "25.png"], k=5) == expected
    np.testing.assert_array_equal(collection.vectors_at([25, 14]), np.float32(vectors)[[25, 14]])
    with pytest.raises(ValueError, match="is damaged"):
        search(collection, like=["3.png"])


def test_an_index_finds_as_many_rows_as_asked_for_and_the_right_ones(tmp_path, monkeypatch):
    """The lists that are enough for 10 results were searched for any number."""
    pytest.importorskip("faiss")
    random = np.random.default_rng(0)
    centers = random.normal(size=(50, 8)).repeat(40, axis=0)
    vectors = centers + 0.3 * random.normal(size=centers.shape)
    names = [f"{row}.png" for row in range(len(vectors))]
    collection = Collection(write_vectors(tmp_path / "v", vectors, names))
    exact = {k: search(collection, like=["7.png"], k=k) for k in (10, 500, 2000)}
    three = search(collection, like=names[:3], k=10)
    description = build_index(collection)
    assert description.num_probes < description.num_lists / 2
    monkeypatch.setattr(search_module, "EXACT_UP_TO", 10)
    for k in (500, 2000):
        found = search(collection, like=["7.png"], k=k)
        assert len(found.results) == min(k, 1999) and "recall" not in found.note
        same = {match.row for match in found.results} & {match.row for match in exact[k].results}
        assert len(same) >= 0.99 * min(k, 1999)
    found = search(collection, like=["7.png"], k=10)
    assert "recall@10" in found.note and found.to_dict()["note"] == found.note
    # several queries: the recall is that of single rows
    found = search(collection, like=names[:3], k=10)
    assert "recall" not in found.note
    assert [match.row for match in found.results] == [match.row for match in three.results]


def test_lists_with_too_few_rows_are_not_all_that_is_searched(tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(search_module, "EXACT_UP_TO", 10)
    vectors = np.repeat([[1.0, 0.0], [-1.0, 0.0]], [75, 5], axis=0)  # a list for each
    vectors += 1e-4 * np.random.default_rng(0).normal(size=(80, 2))
    folder = write_vectors(tmp_path / "v", vectors, [f"{row}.png" for row in range(80)])
    build_index(Collection(folder))
    path = folder / index_module.DESCRIPTION
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_probes": 1}))
    found = search(folder, like=["79.png"], k=10)
    assert len(found.results) == 10 and "recall" not in found.note
    assert {match.row for match in found.results[:4]} == {75, 76, 77, 78}
    assert "recall@10" in search(folder, like=["0.png"], k=10).note


def test_any_copies_of_a_row_are_its_neighbors(tmp_path):
    """Those of one order were expected, so that no number of lists reached the recall."""
    pytest.importorskip("faiss")
    vectors = np.random.default_rng(0).normal(size=(100, 16)).repeat(40, axis=0)
    names = [f"{row}.png" for row in range(len(vectors))]
    description = build_index(Collection(write_vectors(tmp_path / "v", vectors, names)))
    assert description.recall >= index_module.NEEDED_RECALL
    assert description.num_probes < description.num_lists


def test_patches_show_the_part_that_two_images_share(collection_vectors):
    embedder = Collection(collection_vectors).embedder()
    first, second = (np.asarray(image_files.noise(32, 32, seed=seed)).copy() for seed in (90, 91))
    second[:, 16:] = first[:, 16:]  # the right half: patches of 8 pixels in columns 2 and 3
    images = [Image.fromarray(pixels) for pixels in (first, second)]
    for heat in patch_similarities(*patch_grids(embedder, images)):
        assert heat.shape == (4, 4)
        assert heat[:, 2:].mean() > heat[:, :2].mean() + 0.05
