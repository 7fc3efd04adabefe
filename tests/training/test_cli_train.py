"""`selfvit train`: the command line around the training script."""

import pytest
from typer.testing import CliRunner

from selfvit.cli import app

from .tiny_runs import arguments


def run(*command):
    return CliRunner().invoke(app, ["train", *map(str, command)])


def test_a_run_ends_by_saying_where_the_model_is(image_folder, tmp_path):
    result = run(
        *arguments("dino", image_folder, tmp_path / "out", "--max_steps", 1, "--batch_size", 4)
    )
    assert result.exit_code == 0, result.output
    assert f"trained: {tmp_path / 'out'}" in result.output
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize("command", [(), ("--help",)])
def test_help_lists_the_recipes(command):
    result = run(*command)
    assert result.exit_code == 0
    assert "dino_vits16_in1k" in result.output and "classify" in result.output


def test_help_of_a_recipe_lists_fields_of_every_section():
    result = run("dino_demo", "--help")
    assert result.exit_code == 0
    for name in ("--max-steps", "--num_local_views", "--hidden-size", "--teacher_momentum"):
        assert name in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--batch_size", 99), "batch_size (99) is larger than the data set (7 images)"),
        (("--batch_size", 4, "--num_attention_heads", 5), "multiple of num_attention_heads"),
        (("--batch_size", 4, "--base_learning_rate", 1e30), "the loss of recipe dino_demo became"),
        (("--batch-sise", 4), "'--batch-sise' is no option (near it: --batch_size, "),
        (("--batch_size", "four"), "invalid int value: 'four'. selfvit train RECIPE --help"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(options, message, image_folder, tmp_path):
    command = arguments("dino", image_folder, tmp_path / "out", "--max_steps", 30, *options)
    result = run(*command, "--warmup_ratio", 0)
    assert result.exit_code == 2
    (line,) = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert message in line
    assert "usage:" not in result.output and "Traceback" not in result.output


def test_a_run_is_recorded_for_tensorboard(image_folder, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "out"
    command = arguments("dino", image_folder, out, "--max_steps", 3, "--batch_size", 4)
    assert run(*command, "--tracker", "tensorboard").exit_code == 0
    events = EventAccumulator(str(out / "logs" / "selfvit"))
    events.Reload()
    assert {"loss", "learning_rate", "images_per_second"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
