"""Errors of commands: one line, and none if the reader of the output has gone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from selfvit.cli import app


def run_without_reader(*words):
    """Run Python with a pipe as standard output that nobody reads; return code and errors."""
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run([sys.executable, *words], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    return result.returncode, result.stderr.decode()


def within(code):
    indented = "\n    ".join(code.splitlines())
    return f"from selfvit.errors import one_line_errors\nwith one_line_errors():\n    {indented}"


@pytest.mark.parametrize(
    "words",
    [
        ("-m", "selfvit.cli", "train"),  # it lists the recipes
        ("-c", within("print('short')")),  # written at the end only
        ("-c", within("for number in range(100_000):\n    print(number)")),
    ],
    ids=["command", "short", "long"],
)
def test_output_without_a_reader_ends_quietly(words):
    """It used to be `error: [Errno 32] Broken pipe`."""
    assert run_without_reader(*words) == (141, "")


def test_another_broken_pipe_is_an_error():
    code = within("raise BrokenPipeError('the server has closed the connection')")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == "error: the server has closed the connection\n"


@pytest.mark.parametrize(
    "words",
    [
        ("embed", "URL", "--data", "images", "--output", "out"),
        ("convert", "URL", "--output", "out"),
        ("train", "dino_finetune", "--init-from", "URL", "--data", "images", "--output", "out"),
        ("train", "distill", "--teacher", "URL", "--data", "images", "--output", "out"),
    ],
    ids=["embed", "convert", "start", "teacher"],
)
@pytest.mark.parametrize(
    ("url", "fix"),
    [
        ("https://huggingface.co/facebook/dinov2-small/tree/main", "use facebook/dinov2-small."),
        ("s3://bucket/model", "copy them to this machine."),
    ],
    ids=["hub", "s3"],
)
def test_a_url_in_place_of_weights_is_an_error_with_the_hub_id(words, url, fix, image_folder):
    given = {"URL": url, "images": str(image_folder)}
    result = CliRunner().invoke(app, [given.get(word, word) for word in words])
    assert result.exit_code == 2
    assert f"not from the URL {url!r}; {fix}" in " ".join(result.output.split())


def test_the_page_of_a_dataset_is_an_error_with_its_hub_id(tiny_checkpoint):
    page = "https://huggingface.co/datasets/uoft-cs/cifar10"
    result = CliRunner().invoke(
        app, ["embed", str(tiny_checkpoint), "--data", page, "--output", "out"]
    )
    assert result.exit_code == 2
    assert f"{page!r} is a page of the Hub; name the dataset uoft-cs/cifar10." in result.output
