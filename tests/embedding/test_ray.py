"""Embedding on a Ray cluster of two nodes, which run on this machine."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import psutil
import pytest
import torch

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402

from selfvit.data.sources import open_images  # noqa: E402
from selfvit.embedding.embedder import Embedder  # noqa: E402
from selfvit.embedding.ray import RayEmbedder, embed_dataset  # noqa: E402
from selfvit.embedding.vectors.reader import read_vectors  # noqa: E402
from selfvit.embedding.vectors.writer import write_embeddings  # noqa: E402

from .. import image_files  # noqa: E402
from ..data.shards import write_tar_shards  # noqa: E402

NUM_IMAGES = 319  # and one that cannot be read: a batch of one has other last bits
BATCH = 8
NODE = {"num_cpus": 2, "object_store_memory": 100 * 2**20}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for index in range(NUM_IMAGES):
        image_files.noise(16, 16, seed=index).save(folder / f"{index:04d}.png")
    (folder / "0100_text.png").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def embedder(tiny_checkpoint):
    return Embedder.from_pretrained(tiny_checkpoint, device="cpu", batch_size=BATCH)


@pytest.fixture(scope="module")
def whole(embedder, images, tmp_path_factory):
    """Vectors of a single process."""
    output = tmp_path_factory.mktemp("whole") / "vectors"
    write_embeddings(embedder, open_images(images), output, progress=False)
    return output


@pytest.fixture(scope="module")
def cluster(python_with_selfvit):
    # a lost node is noticed after two seconds instead of half a minute
    checks = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}
    head = {**NODE, "include_dashboard": False, "_system_config": checks}
    started = Cluster(initialize_head=True, head_node_args=head)
    started.add_node(**NODE)
    # the workers are forks that have imported everything but ray
    workers = {"py_executable": str(python_with_selfvit)}
    ray.init(address=started.address, log_to_driver=False, runtime_env=workers)
    yield started
    ray.shutdown()
    started.shutdown()


def assert_equal(folder, whole):
    found, expected = read_vectors(folder), read_vectors(whole)
    assert found.drop_columns("embedding").equals(expected.drop_columns("embedding"))
    vectors = [np.stack(table["embedding"].to_numpy()) for table in (found, expected)]
    np.testing.assert_array_equal(*vectors)


def write(embedder, images, output, **options):
    options = {"progress": False, "part_images": 40, **options}
    write_embeddings(RayEmbedder(embedder, num_actors=2), open_images(images), output, **options)


def ray_workers(name: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(name in word for word in process.info["cmdline"] or []):
            found.append(process)
    return found


def test_killed_tasks_and_actors_are_run_again_and_the_vectors_are_those_of_one_process(
    cluster, embedder, images, whole, tmp_path
):
    stop = threading.Event()
    kills: list[str] = []

    def kill():
        while not stop.wait(0.3) and len(kills) < 4:
            kind = ("ray::MapBatches", "ray::MapWorker")[len(kills) % 2]
            if workers := ray_workers(kind):
                random.choice(workers).kill()
                kills.append(kind)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        while len(kills) < 4:
            write(embedder, images, tmp_path / "v", overwrite=True)
    finally:
        stop.set()
        killer.join()
    assert_equal(tmp_path / "v", whole)
    assert (tmp_path / "v" / "skipped.csv").read_text() == (whole / "skipped.csv").read_text()


def test_a_stream_has_the_vectors_of_one_process_even_if_a_node_is_lost(
    cluster, embedder, tmp_path
):
    source = open_images(
        write_tar_shards(tmp_path / "tars", [30, 2, 20] + [10] * 20), streaming=True
    )
    options = {"progress": False, "part_images": 20}
    write_embeddings(embedder, source, tmp_path / "whole", **options)
    node = cluster.add_node(**NODE)

    class LosesANode(RayEmbedder):
        def _embedded(self, *arguments):
            for number, result in enumerate(super()._embedded(*arguments)):
                if number == 5:  # of 48 batches
                    cluster.remove_node(node, allow_graceful=False)
                yield result

    write_embeddings(LosesANode(embedder, num_actors=3), source, tmp_path / "v", **options)
    assert node not in cluster.list_all_nodes()
    assert_equal(tmp_path / "v", tmp_path / "whole")


def test_a_dataset_of_ones_own_gets_vectors(cluster, tiny_checkpoint, images, whole, monkeypatch):
    # small blocks, so that Ray divides the rows of a batch
    monkeypatch.setattr(ray.data.DataContext.get_current(), "target_max_block_size", 10_000)
    paths = sorted(str(path) for path in images.iterdir())
    dataset = ray.data.from_items(
        [{"image": path, "number": i, "pixels": "mine"} for i, path in enumerate(paths)]
    )
    embedded = embed_dataset(dataset, str(tiny_checkpoint), batch_size=BATCH, num_actors=1)
    rows = sorted(embedded.take_all(), key=lambda row: row["number"])
    assert [row["reason"] == "" for row in rows].count(False) == 1
    assert np.isnan(rows[101]["embedding"]).all() and "not an image" in rows[101]["reason"]
    vectors = np.stack([row["embedding"] for row in rows if not row["reason"]])
    expected = np.stack(read_vectors(whole)["embedding"].to_numpy())
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert {row["pixels"] for row in rows} == {"mine"}
    with pytest.raises(ValueError, match="so has the dataset: reason; rename"):
        embed_dataset(dataset.rename_columns({"pixels": "reason"}), str(tiny_checkpoint))
    with pytest.raises(ValueError, match="image_column .'photo'. must be a column"):
        embed_dataset(dataset, str(tiny_checkpoint), image_column="photo")


def test_errors_are_those_of_one_process(cluster, tiny_checkpoint, images, tmp_path):
    """They were tracebacks of Ray without the error itself, which Ray wraps and pickles."""
    damaged = Embedder.from_pretrained(tiny_checkpoint, device="cpu", batch_size=BATCH)
    with torch.no_grad():
        damaged.model.layernorm.weight.fill_(torch.nan)
    intact = Embedder.from_pretrained(tiny_checkpoint, device="cpu", batch_size=BATCH)
    shards = write_tar_shards(tmp_path / "tars", [10, 10])
    stream = open_images(shards, streaming=True)
    last = sorted(shards.rglob("*.tar"))[-1]
    last.write_bytes(last.read_bytes()[:4000])
    for embedder, source in ((damaged, open_images(images)), (intact, stream)):
        with pytest.raises(ValueError) as expected:
            write_embeddings(embedder, source, tmp_path / "one", progress=False, overwrite=True)
        with pytest.raises(ValueError) as found:
            options = {"progress": False, "overwrite": True}
            write_embeddings(RayEmbedder(embedder, num_actors=1), source, tmp_path / "v", **options)
        assert type(found.value) is type(expected.value)
        assert str(found.value) == str(expected.value)


def test_a_cluster_that_needs_a_token_is_named(tiny_checkpoint, images, tmp_path):
    """It was a traceback, or the advice to start the cluster that runs."""
    words = ["embed", tiny_checkpoint, "--data", images, "-o", tmp_path / "v"]
    words += ["--runner", "ray", "--ray-address", "127.0.0.1:1"]
    environment = {**os.environ, "HOME": str(tmp_path), "RAY_AUTH_MODE": "token"}
    environment.pop("RAY_AUTH_TOKEN", None)
    command = [sys.executable, "-m", "selfvit.cli", *map(str, words)]
    failed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert failed.returncode == 2 and "Traceback" not in failed.stderr
    message = failed.stderr.splitlines()[-1]
    assert "no authentication token was found" in message
    assert "set RAY_AUTH_MODE=token, and copy ~/.ray/auth_token" in message


def test_a_killed_driver_is_resumed(
    cluster, tiny_checkpoint, images, whole, python_with_selfvit, tmp_path
):
    output = tmp_path / "v"
    words = ["embed", tiny_checkpoint, "--data", images, "-o", output, "--batch-size", BATCH]
    words += ["--runner", "ray", "--ray-address", cluster.address, "--part-images", 40, "--resume"]
    command = [str(python_with_selfvit), "-m", "selfvit.cli", *map(str, words)]
    job = {"runtime_env": {"py_executable": command[0]}}
    environment = {"OMP_NUM_THREADS": "1", "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job)}
    options: dict[str, Any] = {
        "env": {**os.environ, **environment},
        "stderr": subprocess.PIPE,
    }
    driver = subprocess.Popen(command, **options)
    deadline = time.monotonic() + 300
    while not list(output.glob("part-*.parquet")):
        assert driver.poll() is None and time.monotonic() < deadline, driver.stderr.read()
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    assert len(read_vectors(output)) < NUM_IMAGES  # the manifest may not name the part yet
    resumed = subprocess.run(command, check=False, **options)
    assert resumed.returncode == 0, resumed.stderr
    assert_equal(output, whole)
