import csv

import pytest
from typer.testing import CliRunner

from selfvit.cli import app
from selfvit.embedding.vectors.reader import read_vectors


class Embedded:
    """Result of `selfvit embed`: its exit code, its output, and what it wrote."""

    def __init__(self, result, output):
        self.code, self.text, self.output = result.exit_code, result.output, output

    @property
    def rows(self):
        return read_vectors(self.output).to_pylist()

    @property
    def labels(self):
        return [row.get("label") for row in self.rows]

    @property
    def skipped(self):
        with open(self.output / "skipped.csv", newline="", encoding="utf-8") as file:
            return {row["path"]: row["reason"] for row in csv.DictReader(file)}


@pytest.fixture
def embed(tiny_checkpoint, tmp_path):
    def command(data, *arguments):
        output = tmp_path / "vectors"
        words = data if isinstance(data, list) else [data]
        line = ["embed", tiny_checkpoint, "--data", *words, "--output", output, "--overwrite"]
        line += ["--device", "cpu", "--num-workers", 0, *arguments]
        return Embedded(CliRunner().invoke(app, [str(word) for word in line]), output)

    return command


@pytest.fixture
def data(tmp_path):
    """Folder for the input of a test, whose name names no split."""
    folder = tmp_path / "data"
    folder.mkdir()
    return folder
