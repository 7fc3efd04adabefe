"""Frames of videos, embedded: times beside the vectors, resumed runs, and the command."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import threading

import av
import numpy as np
import pytest
from typer.testing import CliRunner

from selfvit.cli import app
from selfvit.data.dataset_source import SHARD_POSITIONS
from selfvit.data.inventory import read_left_out
from selfvit.data.sources import open_images
from selfvit.embedding.embedder import Embedder
from selfvit.embedding.vectors.manifest import Manifest
from selfvit.embedding.vectors.reader import read_vectors
from selfvit.embedding.vectors.update import update_embeddings
from selfvit.embedding.vectors.writer import write_embeddings

from ..data.videos import write_video
from ..forks import start_fork

BATCH, PART_IMAGES, FPS = 8, 20, 12.5


@pytest.fixture(scope="module")
def embedder(tiny_checkpoint):
    return Embedder.from_pretrained(tiny_checkpoint, device="cpu", batch_size=BATCH)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "a" / "1.mp4", 70)
    write_video(folder / "a" / "2.mp4", 3)
    (folder / "a" / "3.mp4").write_bytes(b"no video")
    cut = write_video(folder / "b" / "1.mkv", 100)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    write_video(folder / "b" / "2.webm", 40, codec="libvpx-vp9")
    return folder


@pytest.fixture(scope="module")
def whole(embedder, videos, tmp_path_factory):
    """Vectors of a run without interruption."""
    output = tmp_path_factory.mktemp("whole") / "v"
    write(embedder, videos, output)
    return output


def write(embedder, data, output, fps=FPS, **options):
    source = open_images(data, video_fps=fps)
    options = {"part_images": PART_IMAGES, "progress": False, **options}
    return write_embeddings(embedder, source, output, **options)


def assert_equal(folder, whole):
    assert read_vectors(folder).equals(read_vectors(whole))
    assert (folder / "skipped.csv").read_text() == (whole / "skipped.csv").read_text()
    assert json.loads((folder / "metadata.json").read_text())["complete"]


def test_a_row_is_a_frame_with_its_time(embedder, videos, whole):
    table = read_vectors(whole)
    assert table.schema.names == ["path", "seconds", "label", "checksum", "embedding"]
    assert str(table.schema.field("seconds").type) == "double"
    rows = table.to_pylist()
    first = [row for row in rows if row["path"] == "a/1.mp4"]
    assert [row["seconds"] for row in first] == [n / 12.5 for n in range(35)]
    assert {row["label"] for row in first} == {"a"}
    with av.open(str(videos / "a" / "1.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    vectors = np.stack([row["embedding"] for row in first])
    np.testing.assert_allclose(vectors, embedder(frames[::2]), atol=1e-5)
    skipped = read_left_out(whole / "skipped.csv")
    assert [entry.name for entry in skipped] == ["a/3.mp4", "b/1.mkv"]
    assert "cannot be opened as a video" in skipped[0].reason
    assert {row["path"] for row in rows} >= {"b/1.mkv", "b/2.webm"}


def test_vectors_in_memory_have_times(embedder, videos, whole):
    embedded, table = embedder.embed(open_images(videos, video_fps=FPS)), read_vectors(whole)
    assert embedded.ids == table["path"].to_pylist()
    assert embedded.seconds.tolist() == table["seconds"].to_pylist()


@pytest.mark.parametrize("num_workers", [1, 2, 5])
def test_threads_change_nothing(tiny_checkpoint, videos, whole, tmp_path, num_workers):
    embedder = Embedder.from_pretrained(
        tiny_checkpoint, device="cpu", batch_size=BATCH, num_workers=num_workers
    )
    before = threading.active_count()
    write(embedder, videos, tmp_path / "v")
    assert_equal(tmp_path / "v", whole)
    stream = embedder.stream(open_images(videos, video_fps=FPS))
    next(stream)
    stream.close()
    assert threading.active_count() <= before


@pytest.mark.parametrize("num_workers", [0, 2])
def test_killed_runs_are_resumed(tiny_checkpoint, videos, whole, tmp_path, num_workers):
    embedder = Embedder.from_pretrained(
        tiny_checkpoint, device="cpu", batch_size=BATCH, num_workers=num_workers
    )
    rng, folder = random.Random(num_workers), tmp_path / "v"
    for _ in range(6):
        process = start_fork(write, embedder, videos, folder, resume=True)
        process.join(rng.uniform(0.05, 0.4))
        process.kill()
        process.join()
        if process.exitcode == 0:
            assert_equal(folder, whole)
            shutil.rmtree(folder)
    write(embedder, videos, folder, resume=True)
    assert_equal(folder, whole)


def test_a_run_is_resumed_within_each_video(embedder, videos, whole, tmp_path):
    write(embedder, videos, tmp_path / "v", part_images=BATCH)
    parts = Manifest.load(tmp_path / "v").in_order()
    assert any(part.start % SHARD_POSITIONS for part in parts)
    for part in parts:
        folder = shutil.copytree(tmp_path / "v", tmp_path / part.file)
        (folder / part.file).unlink()
        write(embedder, videos, folder, resume=True)
        assert_equal(folder, whole)


def test_other_videos_or_rates_are_refused(embedder, videos, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "v")
    with pytest.raises(ValueError, match="cannot be resumed, because these differ: data"):
        write(embedder, videos, folder, fps=12.4, resume=True)
    with pytest.raises(ValueError, match="embed videos into a new folder"):
        update_embeddings(embedder, open_images(videos, video_fps=FPS), folder)


def test_two_processes_share_the_videos(
    python_with_selfvit, tiny_checkpoint, videos, whole, tmp_path
):
    words = ["embed", tiny_checkpoint, "--data", videos, "--video-fps", FPS, "-o", tmp_path / "v"]
    words += ["--batch-size", BATCH, "--num-workers", 0, "--devices", 2, "--device", "cpu"]
    words += ["--engine", "torch"]  # as in the other tests; a stream is a long run to auto
    command = [str(python_with_selfvit), "-m", "selfvit.cli", *map(str, words)]
    environment = {"OMP_NUM_THREADS": "1", "PYTHON_EXEC": command[0]}
    subprocess.run(command, check=True, env={**os.environ, **environment})
    assert_equal(tmp_path / "v", whole)


def test_frames_that_cannot_be_preprocessed_are_named_with_their_time(embedder, videos, tmp_path):
    embedder.preparation  # noqa: B018 (computed before the limit is set)
    from PIL import Image

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, 10
    try:
        batches = list(embedder.stream(open_images(videos / "a" / "2.mp4", video_fps=FPS)))
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    [batch] = batches
    assert [image.id for image in batch.skipped] == ["2.mp4 at 0 s", "2.mp4 at 0.08 s"]
    assert batch.ids == [] and "too many pixels" in batch.skipped[0].reason


class TestCommand:
    def run(self, *words):
        result = CliRunner().invoke(app, [str(word) for word in words])
        return result.exit_code, result.output

    def test_it_embeds_frames(self, tiny_checkpoint, videos, tmp_path):
        words = ["embed", tiny_checkpoint, "--data", videos, "-o", tmp_path / "v"]
        code, output = self.run(*words, "--video-fps", "0.5", "--num-workers", "1")
        assert code == 0 and "5 frames embedded" in output, output
        assert "labels: folder names, 2 classes" in output and "2 left out" in output
        rows = read_vectors(tmp_path / "v").select(["path", "seconds"]).to_pylist()
        assert [tuple(row.values()) for row in rows] == [
            ("a/1.mp4", 0.0), ("a/1.mp4", 2.0), ("a/2.mp4", 0.0),
            ("b/1.mkv", 0.0), ("b/2.webm", 0.0),
        ]  # fmt: skip

    @pytest.mark.parametrize("fps", ["0", "-2", "nan", "inf"])
    def test_a_wrong_rate_is_one_line(self, tiny_checkpoint, videos, tmp_path, fps):
        words = ["embed", tiny_checkpoint, "--data", videos, "-o", tmp_path / "v"]
        code, output = self.run(*words, "--video-fps", fps)
        assert code == 2 and "must be a positive number of frames per second" in output
        assert "Traceback" not in output and not (tmp_path / "v").exists()

    def test_without_a_rate_the_error_names_the_option(self, tiny_checkpoint, videos, tmp_path):
        code, output = self.run("embed", tiny_checkpoint, "--data", videos, "-o", tmp_path / "v")
        assert code == 2 and "--video-fps reads them" in output
