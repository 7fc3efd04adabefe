"""Workers that are killed, memory that runs out, and unreadable images, in every command."""

import csv
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from selfvit import Embedder, open_images
from selfvit.cli import app
from selfvit.data.image_source import ImageSource
from selfvit.data.reading_workers import LostWorkersError
from selfvit.embedding.vectors.reader import read_vectors
from selfvit.embedding.vectors.writer import write_embeddings

from .. import image_files
from ..forks import start_fork
from ..visualization.test_reconstructions import save_mae
from ..worker_kills import kill_workers, one_kill, workers_of

REASON = "truncated: Truncated File Read"


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def left_out(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        header, *entries = csv.reader(file)
    assert header == ["path", "reason"]
    return entries


def vectors(folder: Path) -> np.ndarray:
    return np.stack(read_vectors(folder)["embedding"].to_numpy())


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Folder of 1,500 small images with 30 different contents."""
    folder = tmp_path_factory.mktemp("many")
    for i in range(1500):
        path = folder / f"{i:05d}.png"
        if i < 30:
            image_files.noise(16, 20, seed=i).save(path)
        else:
            os.link(folder / f"{i % 30:05d}.png", path)
    return folder


@pytest.fixture(scope="module")
def embedded(many, tiny_checkpoint, tmp_path_factory):
    """Embeddings of `many` that nothing disturbed."""
    folder = tmp_path_factory.mktemp("embedded") / "vectors"
    result = run("embed", tiny_checkpoint, "--data", many, "-o", folder, *OPTIONS)
    assert result.exit_code == 0, result.output
    return folder


OPTIONS = ["--num-workers", 2, "--batch-size", 8, "--device", "cpu"]


@pytest.fixture
def unreadable_first(tmp_path):
    """Five truncated JPEG files, sorted before eight sound PNG files."""
    folder = tmp_path / "unreadable_first"
    folder.mkdir()
    for i in range(5):
        image_files.noise(48, 48, seed=i).save(folder / "whole.jpg")
        content = (folder / "whole.jpg").read_bytes()
        (folder / f"0{i}.jpg").write_bytes(content[:300])
    (folder / "whole.jpg").unlink()
    for i in range(8):
        image_files.noise(48, 48, seed=i).save(folder / f"x{i}.png")
    return folder


class TestKilledWorkers:
    @pytest.mark.parametrize("at_once", [1, 2])
    @pytest.mark.parametrize("seed", [0, 1])
    def test_embed_finishes_with_the_same_vectors(
        self, seed, at_once, many, embedded, tiny_checkpoint, tmp_path, caplog
    ):
        with one_kill(seed, num_workers=2, at_once=at_once) as killed:
            result = run("embed", tiny_checkpoint, "--data", many, "-o", tmp_path / "v", *OPTIONS)
        assert result.exit_code == 0, result.output
        assert (
            "1500 images embedded" in result.stdout and left_out(tmp_path / "v/skipped.csv") == []
        )
        assert np.array_equal(vectors(tmp_path / "v"), vectors(embedded))
        assert killed == [at_once]
        deaths = [line for line in caplog.messages if "a worker process was killed (sig" in line]
        assert len(deaths) == at_once

    def test_a_real_process_whose_worker_is_killed_says_so_in_one_line(
        self, many, embedded, tiny_checkpoint, tmp_path
    ):
        arguments = ["embed", tiny_checkpoint, "--data", many, "-o", tmp_path / "v", *OPTIONS]
        with tempfile.TemporaryDirectory() as temporary:
            process = start(*arguments, TMPDIR=temporary)
            wait_for_workers(process, 2)
            kill_workers(random.Random(0), pid=process.pid)
            _, errors = process.communicate(timeout=120)
            assert not list(Path(temporary).glob("pymp-*"))  # folders of multiprocessing
        assert process.returncode == 0, errors
        lines = [line for line in errors.splitlines() if "images/s" not in line]
        assert len(lines) == 1 and lines[0].startswith("a worker process was killed (signal 9, ")
        assert np.array_equal(vectors(tmp_path / "v"), vectors(embedded))

    @pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGKILL"])
    def test_an_interrupted_process_leaves_no_worker_and_can_be_resumed(
        self, number, many, embedded, tiny_checkpoint, tmp_path
    ):
        arguments = ["embed", tiny_checkpoint, "--data", many, "-o", tmp_path / "v", *OPTIONS]
        process = start_fork(run, *arguments)
        workers = wait_for_workers(process, 2)
        time.sleep(0.2)  # Python loses a signal that arrives while it forks
        os.kill(process.pid, getattr(signal, number))
        process.join(60)
        assert process.exitcode is not None
        gone, alive = psutil.wait_procs(workers, timeout=10)
        assert not alive
        assert run(*arguments, "--resume").exit_code == 0
        assert np.array_equal(vectors(tmp_path / "v"), vectors(embedded))

    def test_ctrl_c_in_a_worker_that_is_being_forked_does_not_reach_the_code_of_the_main_process(
        self, many, tiny_checkpoint, tmp_path
    ):
        def stream():
            fork = os.fork

            def interrupted_fork():
                if (pid := fork()) == 0:
                    os.kill(os.getpid(), signal.SIGINT)
                return pid

            os.fork = interrupted_fork
            embedder = Embedder.from_pretrained(
                tiny_checkpoint, batch_size=256, num_workers=2, device="cpu"
            )
            try:
                assert (
                    sum(len(batch.vectors) for batch in embedder.stream(open_images(many))) == 1500
                )
            finally:
                (tmp_path / str(os.getpid())).touch()

        process = start_fork(stream)
        process.join(60)
        assert process.exitcode == 0
        assert [path.name for path in tmp_path.iterdir()] == [str(process.pid)]

    def test_killed_again_and_again_the_vectors_stay_the_same(
        self, many, embedded, tiny_checkpoint
    ):
        embedder = Embedder.from_pretrained(
            tiny_checkpoint, batch_size=8, num_workers=2, device="cpu"
        )
        rng, found = random.Random(0), []
        for number, batch in enumerate(embedder.stream(open_images(many))):
            found.append(batch.vectors)
            assert batch.skipped == []
            if number % 20 == 0:
                kill_workers(rng, at_once=1 + number % 40 // 20)
        assert np.array_equal(np.concatenate(found), vectors(embedded))


class KillsLater(ImageSource):
    """Images of another source; reading one from a position on kills the worker."""

    def __init__(self, source, first):
        super().__init__(source.description, None, source.id_column)
        self.source, self.first = source, first

    @property
    def fingerprint(self):
        return self.source.fingerprint

    def __len__(self):
        return len(self.source)

    def name_of(self, position):
        return self.source.name_of(position)

    def __getitem__(self, position):
        if position >= self.first and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.source[position]


def test_what_was_computed_is_written_if_all_later_workers_are_killed(
    many, embedded, tiny_checkpoint, tmp_path, caplog
):
    embedder = Embedder.from_pretrained(tiny_checkpoint, batch_size=8, num_workers=2, device="cpu")
    source = KillsLater(open_images(many), 800)
    with pytest.raises(LostWorkersError, match="The vectors so far are in .*--resume"):
        write_embeddings(embedder, source, tmp_path / "v", progress=False)
    assert np.array_equal(vectors(tmp_path / "v"), vectors(embedded)[:800])
    write_embeddings(embedder, source.source, tmp_path / "v", resume=True, progress=False)
    assert np.array_equal(vectors(tmp_path / "v"), vectors(embedded))


def start(*arguments, **environment):
    command = [sys.executable, "-m", "selfvit.cli", *(str(argument) for argument in arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def wait_for_workers(process, count):
    deadline = time.monotonic() + 60
    while len(workers := workers_of(psutil.Process(process.pid))) < count:
        assert psutil.pid_exists(process.pid) and time.monotonic() < deadline
        time.sleep(0.01)
    return workers


@pytest.fixture
def with_large(tmp_path):
    """Twelve small images, and one of 169 megapixels, which take 507 MB."""
    folder = tmp_path / "with_large"
    folder.mkdir()
    for i in range(12):
        image_files.noise(32, 32, seed=i).save(folder / f"x{i:02d}.png")
    Image.new("RGB", (13_000, 13_000)).save(folder / "x05_large.png", compress_level=1)
    return folder


@pytest.fixture
def little_memory():
    """Leave this process and its workers 256 MiB more than it has."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    size = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (size + 256 * 2**20, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


class TestMemory:
    @pytest.mark.parametrize("num_workers", [0, 1, 2])
    def test_an_image_without_memory_is_listed_and_the_others_are_embedded(
        self, num_workers, with_large, tiny_checkpoint, tmp_path, little_memory
    ):
        output = tmp_path / "v"
        arguments = ["embed", tiny_checkpoint, "--data", with_large, "--output", output]
        result = run(*arguments, "--num-workers", num_workers, "--device", "cpu")
        assert result.exit_code == 0, result.output
        assert left_out(output / "skipped.csv") == [
            ["x05_large.png", "not enough memory to decode it"]
        ]
        assert len(vectors(output)) == 12
        assert (
            "images: 13 found, 12 taken, 1 left out (1 x not enough memory to decode it)"
            in result.stdout
        )

    def test_pictures_leave_it_out(self, with_large, tiny_checkpoint, tmp_path, little_memory):
        pytest.importorskip("matplotlib")
        skipped = tmp_path / "skipped.csv"
        arguments = ["--data", with_large, "-o", tmp_path / "a.png", "--num-images", 13]
        result = run("visualize", "pca", tiny_checkpoint, *arguments, "--skipped", skipped)
        assert result.exit_code == 0, result.output
        assert "12 images drawn" in result.stdout and left_out(skipped)[0][0] == "x05_large.png"

    def test_a_full_shared_memory_is_not_needed(self, many, embedded, tiny_checkpoint, tmp_path):
        mount = "mount -t tmpfs -o size=16k tmpfs /dev/shm"
        if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode:
            pytest.skip("needs a mount of its own for /dev/shm")
        command = [sys.executable, "-m", "selfvit.cli", "embed", tiny_checkpoint, "--data", many]
        words = " ".join(str(word) for word in [*command, "-o", tmp_path / "v", *OPTIONS])
        result = subprocess.run(
            ["unshare", "-rm", "sh", "-c", f"{mount} && {words}"],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        )
        assert result.returncode == 0, result.stderr
        assert np.array_equal(vectors(tmp_path / "v"), vectors(embedded))


@pytest.fixture(scope="module")
def mae(tmp_path_factory):
    return save_mae(tmp_path_factory.mktemp("mae"), norm_pix_loss=False)


@pytest.fixture
def commands(tiny_checkpoint, mae, tmp_path):
    """Arguments of each command that reads images, up to the data."""
    draw = ["-o", tmp_path / "out.png", "--data"]
    return {
        "embed": ["embed", tiny_checkpoint, "-o", tmp_path / "out", "--data"],
        "evaluate": ["evaluate", tiny_checkpoint, "-o", tmp_path / "out.json", "--train"],
        "attention": ["visualize", "attention", tiny_checkpoint, *draw],
        "pca": ["visualize", "pca", tiny_checkpoint, *draw],
        "reconstruct": ["visualize", "reconstruct", mae, *draw],
        "export": [
            *("export", tiny_checkpoint, "--to", "onnx", "--int8", "--min-cosine", -1),
            *("-o", tmp_path / "out", "--data"),
        ],
    }


COMMANDS = ["embed", "evaluate", "attention", "pca", "reconstruct", "export"]


@pytest.mark.parametrize("command", COMMANDS)
class TestLeftOutImages:
    @pytest.fixture(autouse=True)
    def extras(self, command):
        modules = {"evaluate": [], "embed": [], "export": ["onnx", "onnxruntime"]}
        for module in modules.get(command, ["matplotlib"]):
            pytest.importorskip(module)

    def skipped(self, command, tmp_path):
        """Return the list of a command and the option that writes it."""
        if command == "embed":
            return tmp_path / "out" / "skipped.csv", []
        return tmp_path / "skipped.csv", ["--skipped", tmp_path / "skipped.csv"]

    @pytest.mark.parametrize("strict", [False, True])
    def test_the_readable_ones_are_used_and_the_others_listed(
        self, command, strict, commands, unreadable_first, tmp_path
    ):
        if command == "export" and not strict:
            pytest.skip("an export takes seconds")
        file, options = self.skipped(command, tmp_path)
        options += ["--strict"] * strict
        result = run(*commands[command], unreadable_first, *options)
        assert result.exit_code == strict, result.output
        (summary,) = [line for line in result.stdout.splitlines() if " found, " in line]
        assert summary == (
            f"{'train ' * (command == 'evaluate')}images: 13 found, 8 taken, 5 left out "
            f"(5 x {REASON})"
        )
        assert left_out(file) == [[f"0{i}.jpg", REASON] for i in range(5)]
        used = {
            "embed": "8 images embedded",
            "evaluate": "training images      8",
            "export": "over 8 images (the given images)",
        }
        assert used.get(command, "8 images drawn") in result.stdout

    def test_nothing_left_out_is_not_mentioned(self, command, commands, unreadable_first, tmp_path):
        if command == "export":
            pytest.skip("an export takes seconds")
        for path in unreadable_first.glob("*.jpg"):
            path.unlink()
        file, options = self.skipped(command, tmp_path)
        result = run(*commands[command], unreadable_first, *options, "--strict")
        assert result.exit_code == 0, result.output
        assert " found, " not in result.output and left_out(file) == []

    def test_without_a_readable_image_the_error_names_one(
        self, command, commands, unreadable_first, tmp_path
    ):
        for path in unreadable_first.glob("*.png"):
            path.unlink()
        result = run(*commands[command], unreadable_first)
        assert result.exit_code == 2 and not (tmp_path / "out").exists()
        error = result.stderr.strip().splitlines()[-1]
        assert error.startswith("error: ") and "04.jpg" in error and REASON in error


def test_evaluate_counts_the_labeled_images_that_are_left_out(tiny_checkpoint, tmp_path, caplog):
    pytest.importorskip("sklearn")
    for split, count in (("train", 6), ("test", 4)):
        for label in ("cat", "dog"):
            (tmp_path / split / label).mkdir(parents=True)
            for i in range(count):
                image_files.noise(32, 32, seed=i).save(tmp_path / split / label / f"{i}.png")
        image_files.truncated_png(tmp_path / split / "cat" / "0.png")
        image_files.empty_jpeg(tmp_path / split / "dog" / "0.png")
    result = run(
        *("evaluate", tiny_checkpoint, "--train", tmp_path / "train", "--test", tmp_path / "test"),
        *("-o", tmp_path / "m.json", "--skipped", tmp_path / "skipped.csv", "--strict"),
    )
    assert result.exit_code == 1, result.output
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert (metrics["num_train"], metrics["num_test"], metrics["num_skipped"]) == (10, 6, 4)
    assert "train images: 12 found, 10 taken, 2 left out" in result.stdout
    assert "test images: 8 found, 6 taken, 2 left out" in result.stdout
    assert [name for name, _ in left_out(tmp_path / "skipped.csv")] == [
        "cat/0.png",
        "dog/0.png",
    ] * 2
    assert "2 of 12 images could not be read and are skipped, 2 of them labeled" in caplog.text
