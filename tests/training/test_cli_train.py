"""`selfvit train`: the command line around the training script."""

import pytest
from typer.testing import CliRunner

from selfvit.cli import app

from .tiny_runs import arguments


def run(*command):
    return CliRunner().invoke(app, ["train", *map(str, command)])


def test_a_finished_run_prints_the_path_of_the_model(image_folder, tmp_path):
    result = run(
        *arguments("dino", image_folder, tmp_path / "out", "--max-steps", 1, "--batch-size", 4)
    )
    assert result.exit_code == 0, result.output
    assert f"trained: {tmp_path / 'out'}" in result.output
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize("command", [(), ("--help",)])
def test_help_lists_the_recipes(command):
    result = run(*command)
    assert result.exit_code == 0
    assert "dino_vits16_in1k" in result.output and "classify" in result.output


def test_help_of_a_recipe_lists_options_of_every_section():
    result = run("dino_demo", "--help")
    assert result.exit_code == 0
    for name in ("--max-steps", "--num-local-views", "--hidden-size", "--teacher-momentum"):
        assert name in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--batch-size", 99), "batch_size (99) is larger than the dataset (7 images)"),
        (("--batch-size", 4, "--num-attention-heads", 5), "multiple of num_attention_heads"),
        (("--batch-size", 4, "--base-learning-rate", 1e30), "the loss of recipe dino_demo became"),
        (("--batch-sise", 4), "there is no option '--batch-sise'. Did you mean --batch-size"),
        (("--batch-size", "four"), "invalid int value: 'four'. selfvit train RECIPE --help"),
    ],
)
def test_an_error_is_a_single_line_and_exit_code_2(options, message, image_folder, tmp_path):
    command = arguments("dino", image_folder, tmp_path / "out", "--max-steps", 30, *options)
    result = run(*command, "--warmup-ratio", 0)
    assert result.exit_code == 2
    (line,) = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert message in line
    assert "usage:" not in result.output and "Traceback" not in result.output
