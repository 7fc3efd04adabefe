"""Every command on 0, 1, 2 and identical vectors, and on those of videos: an answer or one line."""

from __future__ import annotations

import json
import shutil

import pytest

from selfvit.exploration.app.explorer import Explorer
from selfvit.exploration.app.view import View
from selfvit.exploration.collection import Collection
from selfvit.exploration.index import build_index, load_index

from .conftest import selfvit

LABELS = "path,label\n00.png,a\n01.png,b\n"
# Smallest number of rows of each command, and its words; FOLDER is a temporary folder.
COMMANDS = {
    "search": (1, ["--like", "00.png", "--json"]),
    "index": (2, ["--json"]),
    "duplicates": (0, ["--json", "--device", "cpu"]),
    "outliers": (2, ["--json"]),
    "select": (1, ["--json"]),
    "cluster": (1, ["--json"]),
    "label": (2, ["--labels", "FOLDER/labels.csv", "--json"]),
    "map": (1, ["-o", "FOLDER/map.html", "--layout", "tsne", "--overwrite", "--json"]),
}


@pytest.fixture
def run(embedded_copies, empty_vectors, tmp_path):
    """Return a function that runs a command on a number of rows of the same vector."""
    (tmp_path / "labels.csv").write_text(LABELS)

    def run(name, count):
        vectors = empty_vectors if count == 0 else tmp_path / str(count)
        if count and not vectors.exists():
            shutil.copytree(embedded_copies[count], vectors)
        words = [word.replace("FOLDER", str(tmp_path)) for word in COMMANDS[name][1]]
        return selfvit(name, vectors, *words)

    return run


@pytest.mark.parametrize("name", COMMANDS)
def test_few_and_identical_vectors(name, run):
    if name == "index":
        pytest.importorskip("faiss")
    for count in (0, 1, 2, 12):
        code, printed = run(name, count)
        (line,) = printed.splitlines()
        least = COMMANDS[name][0]
        if count < least:
            assert code == 2 and line.startswith("error: ")
            assert f"needs at least {least} vector" in line and f"has {count};" in line
        else:
            assert code == 0, printed
            check(name, count, json.loads(line))


def check(name, count, found):
    """Check the answer on `count` rows of the same image."""
    others = [f"{row:02d}.png" for row in range(1, count)]
    if name == "search":
        assert [match["path"] for match in found["results"]] == others[:10]
        assert all(match["similarity"] == pytest.approx(1) for match in found["results"])
    elif name == "index":
        assert found["num_rows"] == count and 0 <= found["recall"] <= 1
    elif name == "duplicates":
        assert found["groups"] == ([{"keep": "00.png", "members": others}] if others else [])
    elif name == "outliers":
        assert [row["score"] for row in found["rows"]] == [0] * count
    elif name == "select":
        assert len(found["rows"]) == 1
    elif name == "cluster":
        assert [cluster["size"] for cluster in found["clusters"]] == [count]
    elif name == "label":
        assert found["estimate"] is None and len(found["uncertain"]) == count - 2
    else:
        assert found["num_rows"] == count


def test_an_index_of_identical_vectors_finds_them(embedded_copies, tmp_path):
    pytest.importorskip("faiss")
    collection = Collection(shutil.copytree(embedded_copies[12], tmp_path / "v"))
    build_index(collection)
    loaded = load_index(collection)
    assert loaded is not None
    index, _ = loaded
    similarities, rows = index.search(collection.directions[:1], 12)
    assert sorted(rows[0].tolist()) == list(range(12)) and similarities.min() > 0.999


def test_the_app_on_no_and_on_identical_vectors(embedded_copies, empty_vectors):
    code, printed = selfvit("explore", empty_vectors)
    assert code == 2 and "the app needs at least 1 vector, but" in printed
    explorer = Explorer(embedded_copies[12])
    assert len(explorer.search(View(image="00.png")).results) == 10
    assert len(explorer.duplicates.groups[0].members) == 11


def test_pictures_of_videos_are_refused_in_one_line(tiny_checkpoint, tmp_path):
    pytest.importorskip("av")
    from selfvit.data.sources import open_images
    from selfvit.embedding.embedder import Embedder
    from selfvit.embedding.vectors.writer import write_embeddings

    from ..data.videos import write_video

    write_video(tmp_path / "a.mp4")
    vectors = tmp_path / "v"
    metadata = {"model": str(tiny_checkpoint), "images": {"data": [str(tmp_path / "a.mp4")]}}
    write_embeddings(
        Embedder.from_pretrained(tiny_checkpoint, device="cpu"),
        open_images(tmp_path / "a.mp4", video_fps=4),
        vectors,
        metadata=metadata,
        progress=False,
    )
    for words in [
        ("map", vectors, "--layout", "tsne", "-o", tmp_path / "map.html"),
        ("outliers", vectors, "--sheet", tmp_path / "sheet.png"),
        ("cluster", vectors, "--sheet", tmp_path / "sheet.png"),
        ("duplicates", vectors),
        ("explore", vectors),
    ]:
        code, printed = selfvit(*words)
        assert code == 2 and "are of frames of videos, which cannot be shown yet" in printed
        assert len(printed.splitlines()) == 1 and not (tmp_path / "sheet.png").exists()
    for words in [
        ("map", vectors, "--layout", "tsne", "-o", tmp_path / "map.html", "--no-thumbnails"),
        ("outliers", vectors),
        ("cluster", vectors, "-o", tmp_path / "clusters.csv"),
        ("search", vectors, "--like", Collection(vectors).ids[0]),
    ]:
        code, printed = selfvit(*words)
        assert code == 0, printed
    assert (tmp_path / "clusters.csv").read_text().startswith("path,seconds,cluster\na.mp4,")
