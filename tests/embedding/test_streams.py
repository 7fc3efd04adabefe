"""Streams of shards, embedded while they are read and resumed by shard."""

from __future__ import annotations

import json
import random
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from selfvit.cli import app
from selfvit.data.dataset_source import SHARD_POSITIONS, split_at_shards
from selfvit.data.sources import open_images
from selfvit.embedding.embedder import Embedder
from selfvit.embedding.vectors import shared_work
from selfvit.embedding.vectors.manifest import Manifest
from selfvit.embedding.vectors.reader import read_vectors
from selfvit.embedding.vectors.shared_work import Group, write_in_group
from selfvit.embedding.vectors.update import update_embeddings
from selfvit.embedding.vectors.writer import write_embeddings

from ..data.shards import encoded, write_parquet_shards, write_tar, write_tar_shards
from ..forks import start_fork

SIZES = [30, 1, 17, 40, 8]
NUM_IMAGES, BATCH, PART_IMAGES = sum(SIZES), 8, 20
UNREADABLE = (5, 33, 95)


@pytest.fixture(scope="module")
def embedder(tiny_checkpoint):
    return Embedder.from_pretrained(tiny_checkpoint, device="cpu", batch_size=BATCH)


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    folder = write_tar_shards(tmp_path_factory.mktemp("tars"), SIZES)
    write_tar(folder / "shard-002b.tar", {"note.txt": b"a shard without images"})
    return folder


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    return write_parquet_shards(
        tmp_path_factory.mktemp("tables"), SIZES, row_group_size=10, unreadable=UNREADABLE
    )


@pytest.fixture(scope="module", params=["tars", "tables"])
def data(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def whole(embedder, data, tmp_path_factory):
    """Vectors of a run without interruption, in one part."""
    output = tmp_path_factory.mktemp("whole") / "v"
    write(embedder, data, output, part_images=10_000)
    return output


def write(embedder, data, output, **options):
    source = open_images(data, streaming=True)
    options = {"part_images": PART_IMAGES, "progress": False, **options}
    return write_embeddings(embedder, source, output, **options)


def assert_equal(folder, whole):
    assert read_vectors(folder).equals(read_vectors(whole))
    assert (folder / "skipped.csv").read_text() == (whole / "skipped.csv").read_text()
    assert json.loads((folder / "metadata.json").read_text())["complete"]


def test_a_stream_has_the_vectors_of_the_same_data_by_position(embedder, data, whole, tmp_path):
    report = write_embeddings(embedder, open_images(data), tmp_path / "v", progress=False)
    by_position, streamed = read_vectors(tmp_path / "v"), read_vectors(whole)
    for name in ("id", "checksum"):
        assert streamed[name].equals(by_position[name])
    found, expected = (np.stack(t["embedding"].to_numpy()) for t in (streamed, by_position))
    np.testing.assert_allclose(found, expected, atol=1e-5)  # other batches
    assert report.num_embedded == len(streamed)
    assert (tmp_path / "v" / "skipped.csv").read_text() == (whole / "skipped.csv").read_text()


def test_parts_go_on_over_shards_and_cover_all_of_them(embedder, data, whole, tmp_path):
    write(embedder, data, tmp_path / "v")
    manifest = Manifest.load(tmp_path / "v")
    assert manifest.missing() == [] and manifest.num_done == NUM_IMAGES
    assert all(part.num_rows + part.num_skipped <= PART_IMAGES for part in manifest.parts)
    parts = manifest.in_order()
    assert parts[0].start == 0 and parts[-1].stop == open_images(data, streaming=True).num_positions
    assert all(a.stop == b.start for a, b in zip(parts, parts[1:], strict=False))
    assert_equal(tmp_path / "v", whole)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_killed_runs_are_resumed(tiny_checkpoint, data, whole, tmp_path, num_workers):
    embedder = Embedder.from_pretrained(
        tiny_checkpoint, device="cpu", batch_size=BATCH, num_workers=num_workers
    )
    rng, folder = random.Random(num_workers), tmp_path / "v"
    for _ in range(8):
        process = start_fork(write, embedder, data, folder, resume=True)
        process.join(rng.uniform(0.05, 0.4))
        process.kill()
        process.join()
        if process.exitcode == 0:
            assert_equal(folder, whole)
            shutil.rmtree(folder)
    write(embedder, data, folder, resume=True)
    assert_equal(folder, whole)


def test_only_what_is_missing_of_a_shard_is_read(embedder, tables, tmp_path):
    folder = tmp_path / "v"
    write(embedder, tables, folder)
    before = read_vectors(folder)
    lost = Manifest.load(folder).in_order()[2]
    (folder / lost.file).unlink()
    assert [part.start for part in Manifest.load(folder).with_found_parts(folder).parts].count(
        lost.start
    ) == 0
    report = write(embedder, tables, folder, resume=True)
    assert report.num_embedded - report.num_before == lost.num_rows
    np.testing.assert_allclose(
        np.stack(read_vectors(folder)["embedding"].to_numpy()),
        np.stack(before["embedding"].to_numpy()),
        atol=1e-5,
    )


def test_a_damaged_shard_keeps_what_was_before_it(embedder, tables, tmp_path):
    data = shutil.copytree(tables, tmp_path / "data")
    whole_file = (data / "part-003.parquet").read_bytes()
    middle = len(whole_file) // 2
    damaged = whole_file[:middle] + bytes(len(whole_file) // 3)
    damaged += whole_file[len(damaged) :]
    (data / "part-003.parquet").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"shard 3 .*cannot be read.*repair or restore"):
        write(embedder, data, tmp_path / "v")
    assert len(read_vectors(tmp_path / "v")) >= sum(SIZES[:3]) - len(UNREADABLE)
    (data / "part-003.parquet").write_bytes(whole_file)
    write(embedder, data, tmp_path / "v", resume=True)
    write(embedder, tables, tmp_path / "whole")
    assert_equal(tmp_path / "v", tmp_path / "whole")


def test_other_shards_are_refused(embedder, tars, tmp_path):
    data = shutil.copytree(tars, tmp_path / "data")
    write(embedder, data, tmp_path / "v")
    with pytest.raises(ValueError, match=r"--update needs images .* by position"):
        update_embeddings(embedder, open_images(data, streaming=True), tmp_path / "v")
    write_tar(data / "shard-009.tar", {"new.jpg": encoded(999, "JPEG")})
    with pytest.raises(ValueError, match="cannot be resumed, because these differ: data"):
        write(embedder, data, tmp_path / "v", resume=True)


def test_a_parquet_stream_whose_rows_had_other_names_is_refused(embedder, tables, tmp_path):
    write(embedder, tables, tmp_path / "v")
    manifest = Manifest.load(tmp_path / "v")
    assert manifest is not None and manifest.data.pop("numbers_rows")  # as in older folders
    manifest.save(tmp_path / "v")
    with pytest.raises(ValueError, match=r"these differ: numbers_rows \(False, now True\)"):
        write(embedder, tables, tmp_path / "v", resume=True)


def test_positions_are_split_at_the_ends_of_shards():
    start, stop = SHARD_POSITIONS - 3, 3 * SHARD_POSITIONS
    parts = split_at_shards([range(5), range(start, stop)])
    ends = [SHARD_POSITIONS, 2 * SHARD_POSITIONS, stop]
    assert parts == [range(5), range(start, ends[0]), *map(range, ends[:2], ends[1:])]


def test_two_processes_share_the_shards(embedder, tars, tmp_path):
    source, folder = open_images(tars, streaming=True), tmp_path / "v"
    groups = [Group(rank, 2, rank, "1", has_supervisor=False) for rank in range(2)]
    processes = [start_fork(write_in_group, embedder, source, folder, group) for group in groups]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    write(embedder, tars, tmp_path / "whole")
    assert_equal(folder, tmp_path / "whole")
    assert len(Manifest.load(folder).parts) >= 2


def test_a_process_that_starts_after_the_end_has_nothing_to_do(
    embedder, tars, tmp_path, monkeypatch
):
    source, folder = open_images(tars, streaming=True), tmp_path / "v"
    write_in_group(embedder, source, folder, Group(0, 2, 0, "1", has_supervisor=False))
    before = Manifest.load(folder)
    monkeypatch.setattr(shared_work, "SECONDS_TO_START", 1)
    late = Group(1, 2, 1, "1", has_supervisor=False)
    assert write_in_group(embedder, source, folder, late) is None
    assert Manifest.load(folder) == before
    with pytest.raises(TimeoutError, match="has not started"):  # the folder is of another group
        write_in_group(embedder, source, folder, Group(1, 2, 1, "2", has_supervisor=False))


def test_the_command_says_that_a_stream_is_not_counted(tiny_checkpoint, tables, tmp_path):
    words = ["embed", tiny_checkpoint, "--data", tables, "--streaming", "-o", tmp_path / "v"]
    output = CliRunner().invoke(app, [*map(str, words), "--num-workers", "0"]).output
    assert f"{NUM_IMAGES - len(UNREADABLE)} images embedded" in output
    assert "images: those of the stream are not counted, 3 left out (3 x not an image" in output
