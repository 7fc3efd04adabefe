import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("sklearn")
from selfvit.cli import app

from .evaluation.test_evaluate import write_folder


def run(*arguments: str | Path | int):
    return CliRunner().invoke(app, ["evaluate", "--device", "cpu", *map(str, arguments)])


def test_evaluate_prints_a_table_and_writes_the_metrics(tiny_checkpoint, tmp_path):
    data = tmp_path / "data"
    write_folder(data / "train", 12)
    write_folder(data / "val", 6, seed=1)
    output = tmp_path / "new" / "metrics.json"
    result = run(
        *(tiny_checkpoint, "--num-workers", 0, "--output", output),
        *("--train", data, "--train-split", "train", "--test", data, "--test-split", "val"),
    )
    assert result.exit_code == 0, result.output
    metrics = json.loads(output.read_text())
    assert metrics["knn_10"] == 1 and metrics["num_train"] == 24 and metrics["num_test"] == 12
    assert "k-NN, k = 10" in result.stdout and "100.0 %" in result.stdout


def test_evaluate_without_test_images_gives_label_free_figures(tiny_checkpoint, tmp_path):
    train = write_folder(tmp_path, 3, names=("black",))
    result = run(tiny_checkpoint, "--num-workers", 0, "--train", train)
    assert result.exit_code == 0, result.output
    assert "RankMe" in result.stdout and "No accuracies" in result.stdout


def test_evaluate_takes_several_image_files(tiny_checkpoint, tmp_path):
    write_folder(tmp_path / "train", 3)
    files = sorted((tmp_path / "train").rglob("*.png"))
    result = run(tiny_checkpoint, "--num-workers", 0, "--train", *files)
    assert result.exit_code == 0, result.output
    row = next(line for line in result.stdout.splitlines() if line.startswith("training images"))
    assert row.split()[-1] == str(len(files)) == "6"


def test_images_that_are_train_and_test_are_left_out_once(tiny_checkpoint, tmp_path):
    """They were counted and listed twice."""
    data = write_folder(tmp_path / "data", 6)
    (data / "black" / "broken.png").write_bytes(b"no image")
    (data / "black" / "raw.nef").write_bytes(b"no image either")
    skipped, output = tmp_path / "skipped.csv", tmp_path / "metrics.json"
    words = ("--num-workers", 0, "--train", data, "--test", data)
    result = run(tiny_checkpoint, *words, "--skipped", skipped, "--output", output)
    assert result.exit_code == 0, result.output
    assert json.loads(output.read_text())["num_skipped"] == 2
    listed = skipped.read_text()
    assert listed.count("broken.png") == listed.count("raw.nef") == 1


@pytest.mark.parametrize("network", ["teacher", "student"])
def test_evaluate_takes_the_embedding_options(tiny_checkpoint, tmp_path, network, caplog):
    train = write_folder(tmp_path / "train", 4)
    result = run(
        *(tiny_checkpoint, "--num-workers", 0, "--train", train, "--test", train),
        *("--network", network, "--pooling", "cls+mean", "--batch-size", 3),
    )
    assert result.exit_code == 0, result.output
    assert "8 of 8 test images are also training images" in caplog.text


def test_evaluate_says_in_one_line_what_is_wrong(tiny_checkpoint, tmp_path):
    train = write_folder(tmp_path / "train", 2)
    test = write_folder(tmp_path / "test", 2, names=("black", "gray"))
    result = run(tiny_checkpoint, "--train", train, "--test", test)
    assert result.exit_code == 2
    assert "lacks gray" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
