"""`selfvit publish --space`: the folder of a Space, its upload to a local Hub, and the app."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager

import gradio as gr
import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from selfvit.cli import app
from selfvit.data.sources import open_images
from selfvit.embedding.engines import choice
from selfvit.exploration.app import interface
from selfvit.exploration.app.explorer import Explorer
from selfvit.exploration.app.subset import _public_names, choose_rows
from selfvit.exploration.collection import Collection
from selfvit.exploration.maps import lay_out, load_positions
from selfvit.exploration.search import search
from selfvit.sharing import space_folder

from ..exploration.conftest import embed
from ..hub_requests import USER
from ..image_files import noise
from ..python_without_selfvit import FORGET_SELFVIT
from .hub_client import download_space

NAME = f"{USER}/stamps"
SECONDS = 300  # to start on a busy machine; usually 10


def selfvit(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def vectors(checkpoints, tmp_path_factory):
    """Vectors of 12 images in two folders, with clusters and a map; a photo has a place."""
    folder = tmp_path_factory.mktemp("space")
    for index in range(12):
        path = folder / "images" / "ab"[index % 2] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(40, 30, seed=index).save(path)
    photo = noise(900, 700, seed=12)
    exif = photo.getexif()
    exif[0x010E] = "taken at home"
    photo.save(folder / "images" / "a" / "photo.jpg", exif=exif)
    found = embed(checkpoints["dino"], folder / "images", folder / "v")
    collection = Collection(found)
    collection.write_columns("cluster", {"cluster": [row % 3 for row in range(13)]})
    lay_out(collection, method="tsne")
    return found


# Runs app.py as `python app.py` does, with no other selfvit than that of its folder.
APP = (
    FORGET_SELFVIT
    + """
import runpy
sys.path.insert(0, str(Path.cwd()))
runpy.run_path(str(Path.cwd() / "app.py"), run_name="__main__")
"""
)


@contextmanager
def running(python, folder):
    """Run the app.py of a Space in a process without the network; yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "GRADIO_SERVER_PORT": str(port)}
    log = folder.parent / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(
            [python, "-c", APP], cwd=folder, env=environment, stdout=output, stderr=output
        )
    deadline = time.monotonic() + SECONDS
    try:
        address = f"http://127.0.0.1:{port}"
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            try:
                httpx.get(f"{address}/images/0", timeout=60)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)


def neighbors(address, row):
    """Ask the running app for the neighbors of a row, as a click does; return its events."""
    with httpx.Client(base_url=address, timeout=120) as client:
        events = client.get("/config").json()["dependencies"]
        clicks = [
            number
            for number, event in enumerate(events)
            if [name for _, name in event["targets"]] == ["click"]
        ]
        job = {"data": ["tab=search"], "fn_index": clicks[0], "session_hash": "s"}
        client.post("/gradio_api/queue/join", json={**job, "event_data": {"row": row}})
        lines = []
        with client.stream("GET", "/gradio_api/queue/data?session_hash=s") as stream:
            for line in stream.iter_lines():
                lines.append(line)
                if "close_stream" in line:
                    break
        return "".join(lines)


def titles(printed):
    """Return the names of the images in a grid of the app's answer, in their order."""
    return [
        html.unescape(name) for name in re.findall(r'data-row=\\"\d+\\" title=\\"(.*?)\\"', printed)
    ]


class TestSpace:
    def test_it_is_published_downloaded_and_finds_neighbors(
        self, hub, client, python_with_torch, checkpoints, vectors, tmp_path
    ):
        words = ("publish", checkpoints["dino"], "--space", NAME, "--vectors", vectors)
        code, printed = client.run(*words)
        assert code == 0, printed
        commit = hub.repositories[f"spaces/{NAME}"].main
        assert f"published: {hub.url}/spaces/{NAME}/commit/{commit.sha}" in printed
        assert f"space: {hub.url}/spaces/{NAME}\n" in printed
        assert commit.message == "Upload 13 images"
        folder = tmp_path / "space"
        client(download_space, NAME, str(folder))
        with running(python_with_torch, folder) as address:
            image = httpx.get(f"{address}/images/12?size=640")
            assert image.headers["content-type"] == "image/jpeg" and b"home" not in image.content
            printed = neighbors(address, 3)
            page = httpx.get(f"{address}/map.html").text
        names = Collection(vectors).ids
        expected = search(vectors, like=[names[3]], k=10).results
        assert titles(printed)[-10:] == [match.path for match in expected]
        assert "t-SNE of 13 vectors, seed 0" in page  # the map that was copied

    def test_the_next_upload_replaces_it(self, hub, client, checkpoints, vectors):
        words = ("publish", checkpoints["dino"], "--space", NAME, "--vectors", vectors)
        assert client.run(*words)[0] == 0
        repository = hub.repositories[f"spaces/{NAME}"]
        repository.main.files["vectors/old.feather"] = repository.main.files["app.py"]
        repository.main.files["notes.txt"] = repository.main.files["app.py"]
        code, printed = client.run(*words, "--space-images", 5)
        assert code == 0 and "content: 5 of 13 images" in printed
        stored = repository.main.files
        assert "vectors/old.feather" not in stored and "notes.txt" in stored


class TestFolder:
    @pytest.fixture(scope="class")
    @classmethod
    def written(cls, checkpoints, vectors, tmp_path_factory):
        folder = tmp_path_factory.mktemp("written") / "stamps"
        code, printed = selfvit(
            *("publish", checkpoints["dino"], "--space", NAME, "--vectors", vectors),
            *("--space-images", 7, "--output", folder),
        )
        assert code == 0, printed
        return folder, printed

    def test_it_says_what_it_wrote_and_sent_nothing(self, written):
        folder, printed = written
        assert "content: 7 of 13 images with their vectors, the checkpoint and the app" in printed
        assert f"(nothing was sent; without --output it goes to {NAME})" in printed
        assert f"run: python {folder / 'app.py'}" in printed

    def test_the_settings_are_those_of_a_gradio_space(self, written):
        _, block, text = (written[0] / "README.md").read_text().split("---\n", 2)
        settings = yaml.safe_load(block)
        assert settings["sdk"] == "gradio" and settings["app_file"] == "app.py"
        assert settings["title"] == "stamps" and settings["license"] == "apache-2.0"
        assert "7 images of 13, evenly spaced" in text
        packages = (written[0] / "requirements.txt").read_text()
        assert "torch>=" in packages and "gradio>=" in packages
        assert "pytest" not in packages and "openvino" not in packages
        assert (written[0] / "selfvit" / "exploration" / "page" / "map.js").is_file()
        assert not list(written[0].rglob("*.pyc"))

    def test_the_same_images_are_chosen_with_their_columns_and_map(self, written, vectors):
        whole, small = Collection(vectors), Collection(written[0] / "vectors")
        rows = [whole.row_of(name) for name in small.ids]
        assert rows == [0, 2, 4, 6, 8, 10, 12] == choose_rows(13, 7).tolist()
        np.testing.assert_array_equal(small.vectors, whole.vectors[rows])
        assert small.columns["cluster"] == [row % 3 for row in rows]
        np.testing.assert_array_equal(
            load_positions(small, "tsne", 0), load_positions(whole, "tsne", 0)[rows]
        )
        source = open_images(written[0] / "images.parquet")
        assert [source.name_of(position) for position in range(7)] == small.ids
        picture = small.images(written[0] / "images.parquet").picture(0)
        expected = whole.images().picture(0)
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected))

    def test_no_path_of_this_machine_is_in_it(self, written, vectors, checkpoints):
        for path in written[0].rglob("*"):
            if path.is_file() and "selfvit" not in path.relative_to(written[0]).parts:
                content = path.read_bytes()
                for place in (vectors.parent, checkpoints["dino"].parent):
                    assert str(place).encode() not in content, path

    def test_large_images_are_shrunk_without_their_metadata(self, checkpoints, vectors, tmp_path):
        folder = tmp_path / "space"
        assert space_folder.write_space(checkpoints["dino"], vectors, folder).num_images == 13
        rows = pq.read_table(folder / "images.parquet").to_pylist()
        (photo,) = (row["image"]["bytes"] for row in rows if row["id"] == "a/photo.jpg")
        (tmp_path / "photo.jpg").write_bytes(photo)
        with Image.open(tmp_path / "photo.jpg") as image:
            assert image.size == (640, 498) and not image.getexif()

    def test_images_that_are_gone_or_outside_are_left_out(self, checkpoints, vectors, tmp_path):
        images = shutil.copytree(vectors.parent / "images", tmp_path / "images")
        (images / "a" / "00.png").unlink()
        (images / "a" / "02.png").unlink()
        (images / "a" / "02.png").symlink_to(vectors.parent / "images" / "a" / "02.png")
        words = ("publish", checkpoints["dino"], "--space", NAME, "--vectors", vectors)
        code, printed = selfvit(*words, "--data", images, "--output", tmp_path / "space")
        assert code == 0 and "left out, as they cannot be shown: a/00.png, a/02.png" in printed
        assert len(Collection(tmp_path / "space" / "vectors")) == 11


class TestErrors:
    def test_they_are_one_line(self, checkpoints, vectors, tmp_path, monkeypatch):
        checkpoint = checkpoints["dino"]
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "app.py").write_text("mine")
        space = ("--space", NAME, "--vectors", vectors)
        local = ("--output", tmp_path / "space")
        for words, message in [
            ((checkpoint,), "publish needs a destination"),
            ((checkpoint, NAME, *space), "publish one after the other"),
            ((checkpoint, "--space", NAME), "choose it with --vectors"),
            ((checkpoint, NAME, "--vectors", vectors), "--vectors is for a Space"),
            ((checkpoint, NAME, "--output", tmp_path), "--output is for a Space"),
            ((checkpoint, NAME, "--space-images", 1000), "--space-images is for a Space"),
            ((checkpoint, *space, "--include", "*.txt"), "--include adds files of a checkpoint"),
            ((checkpoint, "--space", "name", "--vectors", vectors, *local), "must be USER/NAME"),
            ((checkpoint, *space, "--output", tmp_path / "full"), "must be a new or an empty fold"),
            ((checkpoints["mae"], *space, *local), "are of another checkpoint than"),
            ((checkpoint, "--space", NAME, "--vectors", tmp_path, *local), "must be a folder that"),
            ((tmp_path / "none", *space, *local), "none"),
            ((checkpoint, *space, *local, "--space-images", 0), "0"),
            ((checkpoint, *space, *local, "--data", tmp_path / "full"), "full"),
        ]:
            code, printed = selfvit("publish", *words)
            assert code == 2 and message in printed and "Traceback" not in printed, printed
        assert (tmp_path / "full" / "app.py").read_text() == "mine"
        monkeypatch.setattr(space_folder, "MAX_BYTES", 100_000)
        code, printed = selfvit("publish", checkpoint, *space, *local)
        assert code == 2 and "use fewer images (--space-images) or a smaller checkpoint" in printed
        assert not (tmp_path / "space").exists()


def test_the_path_of_a_teacher_is_not_in_it(checkpoints, tmp_path):
    checkpoint = shutil.copytree(checkpoints["distill"], tmp_path / "model")
    config = json.loads((checkpoint / "config.json").read_text())
    config["distill_config"]["teacher"] = str(tmp_path / "teacher")
    (checkpoint / "config.json").write_text(json.dumps(config))
    noise(40, 30).save(tmp_path / "image.png")
    found = embed(checkpoint, tmp_path / "image.png", tmp_path / "v")
    space_folder.write_space(checkpoint, found, tmp_path / "space")
    stored = json.loads((tmp_path / "space" / "checkpoint" / "config.json").read_text())
    assert stored["distill_config"]["teacher"] == "teacher"  # was the whole path


def test_a_space_of_int8_vectors_needs_openvino_and_says_so_without_it(
    checkpoints, tmp_path, monkeypatch
):
    """It was not among the packages of the Space, where a dropped image gave an unnamed error."""
    (tmp_path / "images").mkdir()
    for index in range(66):  # enough to calibrate on
        noise(30, 30, seed=index).save(tmp_path / "images" / f"{index:02d}.png")
    found = embed(checkpoints["dino"], tmp_path / "images", tmp_path / "v", dtype="int8")
    folder = tmp_path / "space"
    space_folder.write_space(checkpoints["dino"], found, folder, max_images=3)
    assert "openvino>=" in (folder / "requirements.txt").read_text()
    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    explorer = Explorer(folder / "vectors", folder / "images.parquet", str(folder / "checkpoint"))
    events = interface.build(explorer).fns.values()
    (open_upload,) = (event.fn for event in events if event.name == "open_upload")
    with pytest.raises(gr.Error, match=r"Install with .*selfvit\[openvino\]"):
        open_upload("", (tmp_path / "images" / "00.png").read_bytes())


def test_rows_are_evenly_spaced():
    assert choose_rows(5, 9).tolist() == [0, 1, 2, 3, 4]
    assert choose_rows(100, 5).tolist() == [0, 25, 50, 74, 99]
    assert choose_rows(100, 1).tolist() == [0]
    assert len(set(choose_rows(60_000, 1000).tolist())) == 1000


def test_absolute_names_lose_their_folder(checkpoints, vectors, tmp_path):
    images = sorted((vectors.parent / "images").rglob("*.png"))[:2]
    noise(40, 30).save(tmp_path / "c.png")
    (tmp_path / "list.txt").write_text("\n".join([*map(str, images), "c.png"]))
    found = embed(checkpoints["dino"], tmp_path / "list.txt", tmp_path / "v")
    folder = tmp_path / "space"
    space_folder.write_space(checkpoints["dino"], found, folder)
    # with a relative name among them, all names remained absolute
    assert Collection(folder / "vectors").ids == ["00.png", "02.png", "c.png"]
    assert json.loads((folder / "vectors" / "metadata.json").read_text())["model"] == "checkpoint"


def test_absolute_names_without_a_common_folder_keep_their_last_one():
    assert _public_names(["/home/me/b/0.png", "/data/a/0.png"]) == ["b/0.png", "a/0.png"]
