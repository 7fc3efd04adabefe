"""Folders of vectors: parts, resuming after any death, several processes, readers."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from selfvit.data.sources import open_images
from selfvit.embedding.embedder import EmbeddedBatch, Embedder
from selfvit.embedding.preparation import preprocess
from selfvit.embedding.vectors import parts
from selfvit.embedding.vectors.columns import fingerprint_of, write_columns
from selfvit.embedding.vectors.folder import VectorFolder
from selfvit.embedding.vectors.manifest import Manifest, read_footer
from selfvit.embedding.vectors.reader import read_vectors
from selfvit.embedding.vectors.shared_work import (
    Group,
    Progress,
    start_group,
    units_of,
    write_in_group,
)
from selfvit.embedding.vectors.update import update_embeddings
from selfvit.embedding.vectors.writer import (
    embed_ranges,
    open_folder,
    write_embeddings,
    write_folder,
)
from selfvit.visualization.pca_maps import patch_tokens

from .. import image_files
from ..forks import start_fork
from ..training.processes import free_port

NUM_IMAGES = 300
BATCH = 8
PART_IMAGES = 50  # not a multiple of the batch


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Small images in two class folders, two of which cannot be read."""
    folder = tmp_path_factory.mktemp("images")
    for index in range(NUM_IMAGES):
        path = folder / ("a", "b")[index % 2] / f"{index:04d}.png"
        path.parent.mkdir(exist_ok=True)
        image_files.noise(16, 16, seed=index).save(path)
    (folder / "a" / "0101_empty.png").touch()
    (folder / "b" / "0300_text.png").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def source(images):
    return open_images(images)


@pytest.fixture(scope="module")
def embedder(tiny_checkpoint):
    return Embedder.from_pretrained(tiny_checkpoint, device="cpu", batch_size=BATCH)


def write(embedder, source, output, **options):
    options = {"part_images": PART_IMAGES, "progress": False, **options}
    return write_embeddings(embedder, source, output, **options)


@pytest.fixture(scope="module")
def whole(embedder, source, tmp_path_factory):
    """Vectors of a run without interruption, in one part."""
    output = tmp_path_factory.mktemp("whole") / "vectors"
    write(embedder, source, output, part_images=10_000)
    return output


def check_readable(folder: Path) -> int:
    """Check that a folder holds whole parts only, each position once; return the positions."""
    manifest = Manifest.load(folder)
    files = sorted(folder.glob("part-*.parquet"))
    spans = []
    for file in files:
        num_rows = pq.read_table(file, page_checksum_verification=True).num_rows
        footer = read_footer(file)
        assert footer is not None
        assert num_rows + len(footer["skipped"]) == footer["stop"] - footer["start"]
        spans.append((footer["start"], footer["stop"]))
    spans.sort()
    assert all(stop <= start for (_, stop), (start, _) in zip(spans, spans[1:], strict=False))
    if manifest is not None:
        assert {part.file for part in manifest.parts} <= {file.name for file in files}
    return sum(stop - start for start, stop in spans)


def assert_equal(folder: Path, whole: Path) -> None:
    assert read_vectors(folder).equals(read_vectors(whole))
    assert (folder / "skipped.csv").read_text() == (whole / "skipped.csv").read_text()
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["complete"] and metadata["num_embedded"] == NUM_IMAGES
    assert not list(folder.glob(".*"))


class TestParts:
    def test_parts_hold_at_most_so_many_images_and_whole_batches(
        self, embedder, source, whole, tmp_path
    ):
        write(embedder, source, tmp_path / "v")
        parts = Manifest.load(tmp_path / "v").in_order()
        assert [part.file for part in parts] == [f"part-{i:05d}.parquet" for i in range(7)]
        assert {part.stop - part.start for part in parts[:-1]} == {48}
        assert [part.start for part in parts] == [48 * i for i in range(7)]
        assert sum(part.num_skipped for part in parts) == 2
        assert_equal(tmp_path / "v", whole)

    def test_a_part_is_closed_after_its_time(self, embedder, source, whole, tmp_path):
        write(embedder, source, tmp_path / "v", part_seconds=1e-9)
        assert len(Manifest.load(tmp_path / "v").parts) == 38
        assert_equal(tmp_path / "v", whole)

    def test_float16_halves_the_vectors(self, embedder, source, whole, tmp_path):
        write(embedder, source, tmp_path / "v", vector_dtype="float16")
        stored = np.stack(read_vectors(tmp_path / "v")["embedding"].to_numpy())
        exact = np.stack(read_vectors(whole)["embedding"].to_numpy())
        assert stored.dtype == np.float16
        np.testing.assert_array_equal(stored, exact.astype(np.float16))

    def test_patch_tokens_are_written_beside_the_vectors(
        self, tiny_checkpoint, source, whole, tmp_path
    ):
        embedder = Embedder.from_pretrained(
            tiny_checkpoint, device="cpu", batch_size=BATCH, tokens="patches"
        )
        write(embedder, source, tmp_path / "v")
        table = read_vectors(tmp_path / "v")
        assert embedder.patch_grid == (4, 4, 32)
        stored = np.array(table["patches"].to_pylist(), dtype=np.float16)
        assert stored.shape == (NUM_IMAGES, 4, 4, 32)
        path = source.folder / table["path"][70].as_py()
        pixels = preprocess(path, embedder.processor)[None]
        expected = patch_tokens(embedder.model, pixels)[0].numpy()
        np.testing.assert_allclose(stored[70].astype(np.float32), expected, atol=2e-3)
        pooled = np.stack(table["embedding"].to_numpy())
        alone = np.stack(read_vectors(whole)["embedding"].to_numpy())
        np.testing.assert_allclose(pooled, alone, atol=1e-5)

    def test_ctrl_c_while_a_row_group_is_written_doubles_no_row(self, tmp_path):
        size, count = 2**20, 4
        checkpoint = {"vector_dtype": "float32", "embedding_size": size}
        schema = Manifest(checkpoint, {"id_column": "path", "is_labeled": False}).schema
        part = parts.PartWriter(tmp_path / "part", schema, None, 0)
        names, nothing = list("abcd"), [None] * count
        vectors = np.random.default_rng(0).random((count, size), dtype=np.float32)
        batch = EmbeddedBatch(names, nothing, vectors, nothing, [], range(count), nothing)

        def interrupt():
            while part.path.stat().st_size <= len(b"PAR1"):
                time.sleep(0.001)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        # background jobs of a shell ignore SIGINT
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                thread.start()
                part.write(batch)
                thread.join()
        finally:
            signal.signal(signal.SIGINT, before)
        part.close("run")
        assert pq.read_metadata(part.path).num_rows == part.num_rows == part.stop == count

    def test_added_columns_are_read_without_stored_ones(self, whole, tmp_path):
        folder = shutil.copytree(whole, tmp_path / "v")
        places = np.arange(2 * NUM_IMAGES).reshape(2, -1)
        fingerprint = fingerprint_of(Manifest.load(folder))
        write_columns(folder, fingerprint, "map", {"x": places[0], "y": places[1]})
        table = read_vectors(folder, ["y", "x"])
        assert table.column_names == ["y", "x"]
        np.testing.assert_array_equal(table["x"], places[0])

    @pytest.mark.parametrize("name", ["notes.feather", "part-notes.parquet", "part-00007.parquet/"])
    def test_overwriting_deletes_no_file_that_only_has_a_similar_name(
        self, name, embedder, source, whole, tmp_path
    ):
        # Feather files of the user were deleted, and their names mistaken for those of parts
        folder = shutil.copytree(whole, tmp_path / "v")
        write_columns(folder, fingerprint_of(Manifest.load(folder)), "map", {"x": range(300)})
        table = pa.table({"mine": [1, 2]})
        positions = table.replace_schema_metadata({b"selfvit.map": b"{}"})
        pyarrow.feather.write_feather(positions, str(folder / "map_positions.feather"))
        if name.endswith("/"):
            (folder / name).mkdir()
        elif name.endswith(".feather"):
            pyarrow.feather.write_feather(table, str(folder / name))
        else:
            pq.write_table(table, folder / name)
        with pytest.raises(FileExistsError, match=f"contains {name.rstrip('/')}, which"):
            write(embedder, source, folder, overwrite=True)
        (folder / name).rename(tmp_path / "moved")
        write(embedder, source, folder, overwrite=True)
        assert not list(folder.glob("*.feather"))

    def test_checksums_tell_files_apart(self, whole):
        checksums = read_vectors(whole, columns=["checksum"])["checksum"].to_pylist()
        assert len(set(checksums)) == NUM_IMAGES and {len(text) for text in checksums} == {16}

    @pytest.mark.parametrize("vector_dtype", ["float32", "float16"])
    def test_datasets_pandas_polars_and_duckdb_read_it_at_any_moment(
        self, embedder, source, tmp_path, vector_dtype
    ):
        datasets = pytest.importorskip("datasets")
        pandas = pytest.importorskip("pandas")
        polars = pytest.importorskip("polars")
        duckdb = pytest.importorskip("duckdb")
        folder = tmp_path / "v"
        write(embedder, source, folder, vector_dtype=vector_dtype)
        for path in folder.glob("part-0000[3-9]*"):
            path.unlink()  # as in the middle of a run
        files = sorted(folder.glob("part-*.parquet"))
        rows = read_pandas = pandas.read_parquet(files)
        count = len(rows)
        assert list(read_pandas.columns) == ["path", "label", "checksum", "embedding"]
        assert polars.read_parquet(folder / "part-*.parquet").height == count
        query = f"select count(embedding[1]) from '{folder}/part-*.parquet'"
        assert duckdb.sql(query).fetchall() == [(count,)]
        for arguments in (
            {"path": str(folder)},
            {"path": "parquet", "data_files": f"{folder}/*.parquet"},
        ):
            loaded = datasets.load_dataset(**arguments, cache_dir=str(tmp_path / "cache"))
            assert loaded["train"].num_rows == count

    def test_a_run_without_a_complete_part_reads_as_an_empty_table(self, whole, tmp_path):
        rows, run = read_vectors(whole), Manifest.load(whole)
        assert run is not None
        replace(run, parts=[]).save(tmp_path)
        assert read_vectors(tmp_path).schema.equals(rows.schema)
        assert read_vectors(tmp_path, columns=["embedding"]).num_rows == 0

    def test_skipped_images_are_listed_while_a_run_goes_on(
        self, tiny_checkpoint, source, whole, tmp_path, monkeypatch
    ):
        embedder = Embedder.from_pretrained(tiny_checkpoint, device="cpu", batch_size=BATCH)
        compute, calls = embedder.embed_tokens, iter(range(30))

        def fail_late(pixel_values):
            if next(calls, None) is None:
                raise RuntimeError("the device is lost")
            return compute(pixel_values)

        monkeypatch.setattr(embedder, "embed_tokens", fail_late)
        with pytest.raises(RuntimeError, match="the device is lost"):
            write(embedder, source, tmp_path / "v")
        header, *skipped = (tmp_path / "v" / "skipped.csv").read_text().splitlines()
        assert header == "path,reason" and len(skipped) == 1 and "0101_empty" in skipped[0]
        monkeypatch.undo()
        write(embedder, source, tmp_path / "v", resume=True)
        assert_equal(tmp_path / "v", whole)


class TestResume:
    def test_25_kills_lose_double_and_change_nothing(
        self, embedder, source, whole, tmp_path, monkeypatch
    ):
        # Ctrl-C while a row group was written doubled its rows; here each batch is one.
        monkeypatch.setattr(parts, "VALUES_PER_ROW_GROUP", 1)
        rng, kills, folder = random.Random(0), 0, tmp_path / "v"
        while kills < 25:
            process = start_fork(write, embedder, source, folder, resume=True)
            process.join(rng.uniform(0.01, 0.2))
            if process.exitcode is None:
                os.kill(process.pid, rng.choice([signal.SIGKILL, signal.SIGINT]))
                kills += 1
            process.join()
            done = check_readable(folder) if folder.exists() else 0
            if done == len(source) and kills < 25:
                if process.exitcode == 0:
                    assert_equal(folder, whole)
                shutil.rmtree(folder)
        write(embedder, source, folder, resume=True)
        assert_equal(folder, whole)

    def test_a_part_between_rename_and_manifest_is_kept(self, embedder, source, whole, tmp_path):
        folder = tmp_path / "v"
        write(embedder, source, folder)
        manifest = Manifest.load(folder)
        manifest.parts.pop()
        manifest.save(folder)
        before = {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*")}
        write(embedder, source, folder, resume=True)
        assert {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*")} == before
        assert_equal(folder, whole)

    def test_a_part_whose_images_were_embedded_again_is_deleted(
        self, embedder, source, whole, tmp_path
    ):
        # it became rows that occur twice: in other readers at once, here when a part was lost
        def leave_a_part():  # as a process that is killed between the two
            shutil.copy(folder / "part-00001.parquet", folder / "part-00042.parquet")

        folder = tmp_path / "v"
        write(embedder, source, folder)
        parts = sorted(folder.glob("part-*"))
        options = {"resume": True, "vector_dtype": "float32", "metadata": None}
        leave_a_part()
        write(embedder, source, folder, resume=True)
        assert sorted(folder.glob("part-*")) == parts
        write_folder(open_folder(embedder, source, folder, **options), source, leave_a_part)
        assert sorted(folder.glob("part-*")) == parts
        assert_equal(folder, whole)

    def test_a_run_that_was_killed_at_its_start_is_resumed(self, embedder, source, whole, tmp_path):
        folder = tmp_path / "v"
        write(embedder, source, folder)
        for path in [*folder.glob("part-*"), folder / "manifest.json", folder / "skipped.csv"]:
            path.unlink()
        write(embedder, source, folder, resume=True)
        assert_equal(folder, whole)

    def test_a_folder_of_one_file_is_read_but_not_resumed(self, embedder, source, whole, tmp_path):
        folder = tmp_path / "v"
        shutil.copytree(whole, folder)
        (folder / "manifest.json").unlink()
        (folder / "part-00000.parquet").rename(folder / "embeddings.parquet")
        assert read_vectors(folder).equals(read_vectors(whole))
        with pytest.raises(FileExistsError, match="no run to go on with.*without parts"):
            write(embedder, source, folder, resume=True)
        write(embedder, source, folder, overwrite=True)
        assert_equal(folder, whole)

    @pytest.mark.parametrize("damage", ["truncate", "delete"])
    def test_a_damaged_part_is_written_again(self, damage, embedder, source, whole, tmp_path):
        folder = tmp_path / "v"
        write(embedder, source, folder)
        path = folder / "part-00003.parquet"
        if damage == "delete":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:500])
        write(embedder, source, folder, resume=True)
        assert_equal(folder, whole)

    def test_what_has_changed_is_refused_by_name(self, tiny_checkpoint, source, images, tmp_path):
        def embedder(**options):
            options = {"device": "cpu", "batch_size": BATCH, **options}
            return Embedder.from_pretrained(tiny_checkpoint, **options)

        folder = tmp_path / "v"
        write(embedder(), source, folder)
        for other, name in [
            (embedder(pooling="mean"), "pooling"),
            (embedder(normalize=True), "normalize"),
            (embedder(dtype="bfloat16"), "dtype"),
            (embedder(network="student"), "weights"),
            (embedder(pixel_range=(0, 4095)), "pixel_range"),
        ]:
            with pytest.raises(ValueError, match=f"cannot be resumed.*{name}"):
                write(other, source, folder, resume=True)
        with pytest.raises(ValueError, match="data"):
            write(embedder(), open_images(images / "a"), folder, resume=True)
        with pytest.raises(ValueError, match="vector_dtype .float32, now float16"):
            write(embedder(), source, folder, resume=True, vector_dtype="float16")
        report = write(embedder(batch_size=100), source, folder, resume=True)  # may change
        assert report.num_before == report.num_embedded == NUM_IMAGES

    def test_parts_that_another_process_adds_before_the_lock_are_kept(
        self, embedder, source, whole, tmp_path
    ):
        # The manifest was read, and even saved, before the lock: images were embedded twice.
        folder = tmp_path / "v"
        write(embedder, source, folder)
        manifest = Manifest.load(folder)
        manifest.parts.pop()  # written, but not in the manifest
        manifest.save(folder)
        (folder / manifest.parts.pop().file).unlink()
        before = (folder / "manifest.json").read_bytes()
        options = {"vector_dtype": "float32", "metadata": None}
        opened = [
            open_folder(embedder, source, folder, resume=True, **options),
            open_folder(embedder, source, folder, resume=False, **options),
        ]
        assert (folder / "manifest.json").read_bytes() == before
        write(embedder, source, folder, resume=True)

        def embed(late):
            embed_ranges(embedder, source, late.manifest.missing(), late)

        report = write_folder(opened[0], source, partial(embed, opened[0]))
        assert report.num_before == report.num_embedded == NUM_IMAGES
        assert_equal(folder, whole)
        write(embedder, source, folder, overwrite=True)
        for late in opened:
            with pytest.raises(FileExistsError, match="another run has begun"):
                write_folder(late, source, partial(embed, late))
        assert_equal(folder, whole)

    def test_vectors_are_not_called_complete_unless_each_image_has_one(
        self, embedder, source, tmp_path
    ):
        write(embedder, source, tmp_path / "v")
        (tmp_path / "v" / "part-00003.parquet").unlink()
        options = {"resume": True, "vector_dtype": "float32", "metadata": None}
        folder = open_folder(embedder, source, tmp_path / "v", **options)
        with pytest.raises(FileExistsError, match="changed the manifest.*with --resume"):
            write_folder(folder, source, lambda: None)
        parts = Manifest.load(tmp_path / "v").parts
        folder.manifest = replace(folder.manifest, parts=[*parts, replace(parts[0], stop=300)])
        with pytest.raises(FileExistsError, match="changed the manifest.*a new folder"):
            folder.finish([])

    @pytest.mark.parametrize("kind", ["folder", "zip", "parquet"])
    def test_images_of_the_same_names_and_another_content_are_refused(
        self, kind, embedder, tmp_path
    ):
        def images_of(name, seeds):
            folder = tmp_path / name
            folder.mkdir()
            for index, seed in enumerate(seeds):
                image_files.noise(16, 16, seed=seed).save(folder / f"{index:02}.png")
            (folder / "00.png").write_bytes(b"")  # skipped, so the first row is that of the second
            files = sorted(folder.iterdir())
            if kind == "zip":
                with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
                    for file in files:
                        archive.write(file, file.name)
                return open_images(tmp_path / f"{name}.zip")
            if kind == "parquet":
                table = pa.table({"image": [file.read_bytes() for file in files]})
                pq.write_table(table, tmp_path / f"{name}.parquet")
                return open_images(tmp_path / f"{name}.parquet")
            return open_images(folder)

        output, seeds = tmp_path / "v", list(range(24))
        write(embedder, images_of("before", seeds), output, part_images=BATCH)
        (output / "part-00001.parquet").unlink()
        for place in (1, 23, 16):  # at the ends of the parts
            name = place if kind == "parquet" else f"{place:02}.png"
            others = [99 if index == place else seed for index, seed in enumerate(seeds)]
            with pytest.raises(ValueError, match=f"cannot be resumed.*images \\({name} has"):
                write(embedder, images_of(f"other_{place}", others), output, resume=True)
        report = write(embedder, images_of("same", seeds), output, resume=True)
        assert (report.num_before, report.num_embedded) == (15, 23)

    def test_another_process_may_not_write_to_the_folder(self, embedder, source, tmp_path):
        folder = VectorFolder(tmp_path / "v", Manifest({}, {}), {})
        with folder.writing(), pytest.raises(FileExistsError, match="another process is writing"):
            write(embedder, source, tmp_path / "v", resume=True)
        write(embedder, source, tmp_path / "v")

    def test_a_full_disk_keeps_the_parts_before(self, embedder, source, whole, small_disk):
        folder = small_disk / "v"
        (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free - 2**16))
        with pytest.raises(OSError, match="space"):
            write(embedder, source, folder)
        assert 0 < check_readable(folder) < NUM_IMAGES
        (small_disk / "ballast").unlink()
        write(embedder, source, folder, resume=True)
        assert_equal(folder, whole)


def _words_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has ended
        return []


class TestSeveralProcesses:
    def start_group(self, embedder, source, folder, token):
        groups = [Group(rank, 2, rank, token, has_supervisor=False) for rank in range(2)]
        options = {"part_images": PART_IMAGES, "resume": True}
        return [
            start_fork(write_in_group, embedder, source, folder, group, **options)
            for group in groups
        ]

    def test_two_processes_write_the_same_vectors(self, embedder, source, whole, tmp_path):
        processes = self.start_group(embedder, source, tmp_path / "v", "1")
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0, 0]
        assert_equal(tmp_path / "v", whole)

    def test_the_progress_of_a_killed_group_is_not_counted_again(self, tmp_path):
        # images before the kill were counted twice
        folder = VectorFolder(tmp_path, Manifest({}, {}), {})
        (tmp_path / ".locks").mkdir()
        Progress(tmp_path, 2).counts[:] = 50
        start_group(folder, "token", 3)
        progress = Progress(tmp_path, 3)
        assert progress.counts.shape == (3, 2) and progress.total() == (0, 0)

    def test_kills_of_either_process_lose_double_and_change_nothing(
        self, embedder, source, whole, tmp_path
    ):
        rng, folder = random.Random(0), tmp_path / "v"
        for kill in range(25):
            processes = self.start_group(embedder, source, folder, str(kill))
            processes[0].join(rng.uniform(0.05, 0.3))
            killed = processes[rng.randrange(2)]
            killed.kill()
            if killed is processes[1]:
                processes[0].join(120)
                assert processes[0].exitcode == 0  # it takes over what the other one had
                assert_equal(folder, whole)
                shutil.rmtree(folder)
            else:
                processes[1].kill()
                check_readable(folder) if folder.exists() else None
            for process in processes:
                process.join()
        write(embedder, source, folder, resume=folder.exists())
        assert_equal(folder, whole)

    def test_the_command_restarts_a_process_that_is_killed(
        self, python_with_selfvit, tiny_checkpoint, images, whole, tmp_path
    ):
        folder, python = tmp_path / "v", str(python_with_selfvit)
        words = [python, "-m", "selfvit.cli", "embed", tiny_checkpoint, "--data", images]
        words += ["-o", folder, "--devices", 2, "--batch-size", BATCH, "--num-workers", 0]
        words += ["--device", "cpu"]
        command = subprocess.Popen(
            [str(word) for word in words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHON_EXEC": python},
        )
        deadline = time.monotonic() + 100
        started: list[psutil.Process] = []  # by the command, with its own arguments
        while len(started) < 2:
            assert command.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
            found = [one for one in psutil.process_iter() if str(folder) in _words_of(one)]
            started = [process for process in found if process.pid != command.pid]
        started[0].kill()
        stdout, errors = command.communicate(timeout=200)
        assert command.returncode == 0, errors
        assert errors.count("was killed (SIGKILL); it is started again") == 1
        assert f"{NUM_IMAGES} images embedded" in stdout
        assert_equal(folder, whole)

    def test_torchrun_starts_a_group(
        self, python_with_selfvit, tiny_checkpoint, images, whole, tmp_path
    ):
        words = ["--nproc-per-node", 2, "--master-port", free_port()]
        words += ["-m", "selfvit.embedding.embed", tiny_checkpoint]
        words += ["--data", images, "-o", tmp_path / "v", "--device", "cpu"]
        words += ["--batch-size", BATCH, "--num-workers", 0]
        launched = subprocess.run(
            [python_with_selfvit, "-m", "torch.distributed.run", *map(str, words)],
            capture_output=True,
            text=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHON_EXEC": str(python_with_selfvit),  # starts the processes of torchrun
            },
        )
        assert launched.returncode == 0, launched.stderr
        assert launched.stdout.count(f"{NUM_IMAGES} images embedded") == 1
        assert_equal(tmp_path / "v", whole)

    @pytest.mark.parametrize(
        "num_images, size, expected", [(100, 2, 8), (7, 2, 8), (10_000, 2, 48)]
    )
    def test_units_are_whole_batches_that_fit_into_a_part(self, num_images, size, expected):
        units = units_of(num_images, BATCH, size, PART_IMAGES)
        assert [unit.start for unit in units] == list(range(0, num_images, expected))
        assert units[-1].stop == num_images


class TestUpdate:
    @pytest.fixture
    def folder(self, images, tmp_path):
        shutil.copytree(images, tmp_path / "images")
        return tmp_path / "images"

    def update(self, embedder, folder, output):
        return update_embeddings(embedder, open_images(folder), output, progress=False)

    def test_only_new_and_changed_images_are_embedded(self, embedder, folder, tmp_path):
        output = tmp_path / "v"
        write(embedder, open_images(folder), output)
        before = {row["path"]: row for row in read_vectors(output).to_pylist()}
        for index in range(3):
            image_files.noise(16, 16, seed=1000 + index).save(folder / "a" / f"new_{index}.png")
        for name in ("a/0000.png", "b/0177.png"):  # same size and time, other content
            times = (folder / name).stat()
            content = bytearray((folder / name).read_bytes())
            image_files.noise(16, 16, seed=len(name) + content[-20]).save(folder / name)
            os.utime(folder / name, ns=(times.st_atime_ns, times.st_mtime_ns))
        (folder / "b" / "0201.png").unlink()
        (folder / "b" / "0300_text.png").unlink()
        (folder / "a" / "0176.png").write_bytes(b"")  # its vector was dropped and not counted
        report = self.update(embedder, folder, output)
        assert (report.num_new, report.num_changed, report.num_removed) == (3, 2, 2)
        assert report.num_kept == NUM_IMAGES - 4
        after = {row["path"]: row for row in read_vectors(output).to_pylist()}
        assert len(after) == NUM_IMAGES + 1 == read_vectors(output).num_rows
        write(embedder, open_images(folder), tmp_path / "fresh")
        fresh = {row["path"]: row for row in read_vectors(tmp_path / "fresh").to_pylist()}
        assert after.keys() == fresh.keys()
        for name, row in fresh.items():
            assert row["label"] == after[name]["label"]
            assert row["checksum"] == after[name]["checksum"]
            np.testing.assert_allclose(row["embedding"], after[name]["embedding"], atol=1e-5)
        assert sum(after[name] != before.get(name) for name in after) == 5
        skipped = (output / "skipped.csv").read_text().splitlines()
        assert len(skipped) == 3 and skipped[1].startswith("a/0101_empty.png")
        assert json.loads((output / "metadata.json").read_text())["num_embedded"] == NUM_IMAGES + 1
        again = self.update(embedder, folder, output)
        assert (again.num_new, again.num_changed, again.num_removed) == (0, 0, 0)
        with pytest.raises(ValueError, match="use --update"):
            write(embedder, open_images(folder), output, resume=True)

    def test_an_update_without_changes_keeps_parts_and_added_columns(
        self, embedder, folder, tmp_path
    ):
        # an unreadable image added a part without rows each time, and the columns were discarded
        output = tmp_path / "v"
        write(embedder, open_images(folder), output)
        write_columns(output, fingerprint_of(Manifest.load(output)), "map", {"x": range(300)})
        num_parts = len(Manifest.load(output).parts)
        skipped = sorted((output / "skipped.csv").read_text().splitlines())
        for _ in range(3):
            report = self.update(embedder, folder, output)
            assert (report.num_kept, len(report.skipped)) == (NUM_IMAGES, 2)
            assert "x" in read_vectors(output).column_names
            assert len(Manifest.load(output).parts) == num_parts + 1
            assert len(list(output.glob("part-*"))) == num_parts + 1
            assert sorted((output / "skipped.csv").read_text().splitlines()) == skipped

    def test_a_killed_update_continues_when_it_is_repeated(self, embedder, folder, tmp_path):
        output, rng = tmp_path / "v", random.Random(0)
        write(embedder, open_images(folder), output)
        for path in sorted(folder.rglob("*.png"))[::3]:
            path.unlink()
        for index in range(100):
            image_files.noise(16, 16, seed=2000 + index).save(folder / "b" / f"new_{index}.png")
        for _ in range(8):
            process = start_fork(self.update, embedder, folder, output)
            process.join(rng.uniform(0.05, 0.5))
            process.kill()
            process.join()
            names = read_vectors(output, columns=["path"])["path"].to_pylist()
            assert len(set(names)) == len(names)
        self.update(embedder, folder, output)
        write(embedder, open_images(folder), tmp_path / "fresh")
        fresh = read_vectors(tmp_path / "fresh", columns=["path", "checksum"]).sort_by("path")
        assert read_vectors(output, columns=["path", "checksum"]).sort_by("path").equals(fresh)

    def test_another_checkpoint_or_other_columns_are_refused(
        self, tiny_checkpoint, embedder, folder, tmp_path
    ):
        output = tmp_path / "v"
        with pytest.raises(FileNotFoundError, match="no vectors to update"):
            self.update(embedder, folder, output)
        write(embedder, open_images(folder), output)
        other = Embedder.from_pretrained(tiny_checkpoint, device="cpu", pooling="mean")
        with pytest.raises(ValueError, match="cannot be updated.*pooling"):
            self.update(other, folder, output)
        other = Embedder.from_pretrained(tiny_checkpoint, device="cpu")
        other.model.config.num_attention_heads *= 2  # the weights are the same
        with pytest.raises(ValueError, match="cannot be updated.*num_attention_heads"):
            self.update(other, folder, output)
        with pytest.raises(ValueError, match="has the columns path, label"):
            self.update(embedder, folder / "a", output)
