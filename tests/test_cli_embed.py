import csv
import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from selfvit import SelfViTModel, __version__
from selfvit.cli import app
from selfvit.commands.embed import _group_of
from selfvit.data.image_source import ImageSource
from selfvit.data.sources import open_images
from selfvit.embedding.embedder import Embedder
from selfvit.embedding.vectors import parts
from selfvit.embedding.vectors.reader import read_vectors
from selfvit.embedding.vectors.writer import write_embeddings

from . import image_files


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("device", [None, "cuda"])
def test_each_process_of_a_group_has_its_own_gpu(device, tmp_path, monkeypatch):
    # "cuda" was the first GPU for all of them.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        assert _group_of(None, device, tmp_path)[2] == f"cuda:{rank}"
        assert _group_of(None, "cpu", tmp_path)[2] == "cpu"


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out" / "vectors"


@pytest.fixture
def embed(tiny_checkpoint, image_folder, output):
    def command(*arguments, model=tiny_checkpoint, data=image_folder):
        where = [model, "--data", data, "--output", output]
        return run("embed", *where, "--device", "cpu", "--num-workers", 0, *arguments)

    return command


def rows(output):
    return read_vectors(output).to_pylist()


def metadata(output):
    return json.loads((output / "metadata.json").read_text())


class BreaksInTheMiddle(ImageSource):
    """A real source whose disk fails, or whose user gives up, after some images."""

    def __init__(self, source, after, error):
        super().__init__(source.description, source.label_names, source.id_column)
        self.source, self.after, self.error = source, after, error

    @property
    def fingerprint(self):
        return self.source.fingerprint

    def __len__(self):
        return len(self.source)

    def __getitem__(self, position):
        if position >= self.after:
            raise self.error
        return self.source[position]


class TestOutput:
    def test_the_table_holds_path_label_and_vector(
        self, embed, output, tiny_checkpoint, image_folder
    ):
        result = embed()
        assert result.exit_code == 0, result.output
        assert "7 images embedded in" in result.stdout and str(output) in result.stdout
        schema = read_vectors(output).schema
        assert schema.names == ["path", "label", "checksum", "embedding"]
        assert schema.field("embedding").type == pa.list_(pa.float32(), 32)
        expected = Embedder.from_pretrained(tiny_checkpoint, device="cpu").embed(
            open_images(image_folder)
        )
        assert [row["path"] for row in rows(output)] == expected.ids
        assert [row["label"] for row in rows(output)] == ["cat"] * 3 + ["dog"] * 2 + ["owl"] * 2
        vectors = np.array([row["embedding"] for row in rows(output)], dtype=np.float32)
        np.testing.assert_array_equal(vectors, expected.vectors)

    def test_metadata_says_what_the_vectors_are(self, embed, output, tiny_checkpoint):
        options = ["--pooling", "cls+mean", "--normalize", "--dtype", "bfloat16"]
        assert embed(*options, "--network", "student", "--batch-size", 2).exit_code == 0
        facts = metadata(output)
        assert facts["model"] == str(tiny_checkpoint) and facts["selfvit_version"] == __version__
        wanted = {
            "network": "student", "pooling": "cls+mean", "normalize": True, "dtype": "bfloat16",
            "embedding_size": 64, "num_embedded": 7, "num_skipped": 0,
        }  # fmt: skip
        assert {name: facts[name] for name in wanted} == wanted
        vectors = np.array([row["embedding"] for row in rows(output)])
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)

    def test_a_dataset_has_ids_and_an_unlabeled_one_no_labels(self, embed, output, tmp_path):
        image_files.rgba_png(tmp_path / "a.png")
        table = pa.table({"image": [(tmp_path / "a.png").read_bytes()] * 2, "id": ["x", "y"]})
        pq.write_table(table, tmp_path / "a.parquet")
        assert embed(data=tmp_path / "a.parquet").exit_code == 0
        assert read_vectors(output).schema.names == ["id", "checksum", "embedding"]
        assert [row["id"] for row in rows(output)] == ["x", "y"]

    def test_large_tables_are_written_in_groups(self, embed, output, monkeypatch):
        monkeypatch.setattr(parts, "VALUES_PER_ROW_GROUP", 32 * 4)
        assert embed("--batch-size", 2).exit_code == 0
        assert pq.read_metadata(output / "part-00000.parquet").num_row_groups == 2
        assert len(rows(output)) == 7


@pytest.fixture(scope="module")
def awkward_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("awkward")
    image_files.write_all(folder)
    return folder


class TestAwkwardFiles:
    def test_every_file_is_embedded_or_skipped_with_its_reason(self, embed, output, awkward_folder):
        result = embed(data=awkward_folder)
        assert result.exit_code == 0, result.output
        assert sorted(row["path"] for row in rows(output)) == sorted(image_files.READABLE)
        with open(output / "skipped.csv", newline="") as file:
            reasons = {row["path"]: row["reason"] for row in csv.DictReader(file)}
        assert sorted(reasons) == sorted(image_files.UNREADABLE)
        for name, (_, reason) in image_files.UNREADABLE.items():
            assert reasons[name].startswith(reason)
        assert "6 images skipped" in result.stdout and str(output / "skipped.csv") in result.stdout
        assert metadata(output)["num_skipped"] == 6

    def test_strict_writes_and_exits_with_one(self, embed, output, awkward_folder):
        assert embed("--strict", data=awkward_folder).exit_code == 1
        assert len(rows(output)) == len(image_files.READABLE)

    def test_strict_without_skipped_images_exits_with_zero(self, embed, output):
        assert embed("--strict").exit_code == 0
        assert (output / "skipped.csv").read_text().splitlines() == ["path,reason"]

    def test_without_any_readable_image_there_is_no_output(self, embed, output, tmp_path):
        (tmp_path / "data").mkdir()
        image_files.empty_jpeg(tmp_path / "data" / "a.jpg")
        result = embed(data=tmp_path / "data")
        assert result.exit_code == 2
        assert "none of the 1 images can be read" in result.stderr and "empty file" in result.stderr
        assert list(output.parent.iterdir()) == []


class TestWholeOrNotAtAll:
    @pytest.mark.parametrize("error", [OSError("disk failed"), KeyboardInterrupt(), RuntimeError()])
    def test_an_error_in_the_middle_keeps_the_images_before(
        self, error, output, tiny_checkpoint, image_folder
    ):
        embedder = Embedder.from_pretrained(tiny_checkpoint, device="cpu", batch_size=2)
        source = BreaksInTheMiddle(open_images(image_folder), 5, error)
        with pytest.raises(type(error)):
            write_embeddings(embedder, source, output, progress=False)
        assert list(output.parent.iterdir()) == [output]
        assert sorted(path.name for path in output.iterdir()) == [
            "manifest.json",
            "metadata.json",
            "part-00000.parquet",
        ]
        assert len(rows(output)) == 4 and not metadata(output)["complete"]

    def test_an_error_while_overwriting_leaves_the_old(
        self, embed, output, tiny_checkpoint, image_folder
    ):
        embed()
        before = {path.name: path.read_bytes() for path in output.iterdir()}
        embedder = Embedder.from_pretrained(tiny_checkpoint, device="cpu", batch_size=2)
        source = BreaksInTheMiddle(open_images(image_folder), 5, OSError())
        with pytest.raises(OSError):
            write_embeddings(embedder, source, output, overwrite=True, progress=False)
        assert {path.name: path.read_bytes() for path in output.iterdir()} == before
        assert list(output.parent.iterdir()) == [output]

    def test_an_existing_output_is_refused_before_any_work(self, embed, output):
        embed()
        result = embed(model="/nowhere/model")
        assert result.exit_code == 2 and "is not empty" in result.stderr
        assert "--update to embed only what is new, or --overwrite" in result.stderr

    def test_an_unfinished_output_is_to_be_resumed(self, embed, output):
        embed()
        content = metadata(output) | {"complete": False}
        (output / "metadata.json").write_text(json.dumps(content))
        result = embed()
        assert result.exit_code == 2 and "or --resume to go on" in result.stderr

    def test_overwrite_replaces_an_earlier_output(self, embed, output):
        embed()
        assert embed("--overwrite", "--pooling", "mean").exit_code == 0
        assert metadata(output)["pooling"] == "mean"
        assert list(output.parent.iterdir()) == [output]

    def test_an_empty_folder_is_filled(self, embed, output):
        output.mkdir(parents=True)
        assert embed().exit_code == 0 and len(rows(output)) == 7

    @pytest.mark.parametrize("foreign", ["thesis.txt", "metadata.json"])
    def test_overwrite_never_deletes_what_it_did_not_write(self, foreign, embed, output):
        output.mkdir(parents=True)
        (output / foreign).write_text("{}")
        result = embed("--overwrite")
        assert result.exit_code == 2 and "is not replaced" in result.stderr
        assert (output / foreign).read_text() == "{}"

    def test_overwrite_spares_files_added_to_an_earlier_output(self, embed, output):
        embed()
        (output / "notes.md").write_text("x")
        result = embed("--overwrite")
        assert result.exit_code == 2 and "notes.md" in result.stderr
        assert len(rows(output)) == 7

    def test_the_folder_has_the_usual_permissions(self, embed, output):
        embed()
        other = output.parent / "other"
        other.mkdir()
        assert output.stat().st_mode == other.stat().st_mode


class TestErrors:
    @pytest.mark.parametrize(
        "wrong, message",
        [
            ({"data": "/nowhere/photos"}, "there is no folder or file '/nowhere/photos'"),
            ({"model": "/nowhere/model"}, "there is no folder '/nowhere/model'"),
        ],
    )
    def test_missing_folders_are_one_line(self, wrong, message, embed, output):
        result = embed(**wrong)
        assert result.exit_code == 2 and result.stdout == ""
        assert len(result.stderr.splitlines()) == 1 and message in result.stderr
        assert not output.exists()

    @pytest.mark.parametrize(
        "arguments, message",
        [
            (["--pooling", "max"], "pooling ('max') must be cls, mean"),
            (["--pooling", "concat:9"], "use at most concat:3"),
            (["--batch-size", "0"], "batch_size (0)"),
            (["--device", "cuda:99"], "device ('cuda:99')"),
            (["--split", "nope"], "without a subfolder 'nope'"),
        ],
    )
    def test_wrong_options_are_told(self, arguments, message, embed, output):
        result = embed(*arguments)
        assert result.exit_code == 2 and message in result.stderr
        assert not output.exists()

    def test_a_checkpoint_without_a_student_is_told(self, embed, tiny_checkpoint, tmp_path):
        SelfViTModel.from_pretrained(tiny_checkpoint).save_pretrained(tmp_path / "encoder")
        result = embed("--network", "student", model=tmp_path / "encoder")
        assert result.exit_code == 2 and "has no student network" in result.stderr

    def test_traceback_shows_where(self, embed, tmp_path):
        arguments = ["--traceback", "embed", "x", "--data", "/no", "--output", tmp_path / "o"]
        assert isinstance(run(*arguments).exception, FileNotFoundError)


def test_a_real_process_embeds_with_workers(tiny_checkpoint, image_folder, output):
    command = [sys.executable, "-m", "selfvit.cli", "embed", str(tiny_checkpoint)]
    command += ["--data", str(image_folder), "--output", str(output), "--num-workers", "2"]
    result = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr
    assert len(rows(output)) == 7
    assert "7 images embedded" in result.stdout and "images/s" in result.stderr


def test_help_and_version_answer():
    assert "embed" in run("--help").stdout
    assert "--pooling" in run("embed", "--help").stdout
    assert run("--version").stdout.strip() == __version__
