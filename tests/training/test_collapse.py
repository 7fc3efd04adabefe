"""Collapse monitors, on real runs of tiny models: made to collapse both ways, and healthy ones."""

import json
import math
import shutil

import pytest
import torch
import yaml
from typer.testing import CliRunner

from selfvit.cli import app
from selfvit.training.callbacks.collapse import MonitorState
from selfvit.training.callbacks.collapse_advice import settings_at_risk
from selfvit.training.exceptions import CollapseError
from selfvit.training.recipes import RECIPES
from selfvit.training.train import main

from ..image_files import noise
from .tiny_runs import OBJECTIVES, arguments, start, weights_of

SHORT = ("--max_steps", 100, "--batch_size", 12)
# What is set badly, by objective and the collapse that comes of it.
COLLAPSING = {
    ("dino", "constant"): (
        *("--center_momentum", 1, "--teacher_momentum", 0.5),
        *("--teacher_temperature", 0.02, "--warmup_teacher_temperature", 0.02),
    ),
    ("dino", "uniform"): ("--teacher_temperature", 0.5, "--warmup_teacher_temperature", 0.5),
    ("pmsn", "constant"): (
        *("--regularization_weight", 0, "--teacher_momentum", 0.5, "--teacher_temperature", 0.01),
        *("--base_learning_rate", 0.05),
    ),
    ("pmsn", "uniform"): ("--teacher_temperature", 0.5, "--base_learning_rate", 0.02),
}
SUGGESTIONS = {
    ("dino", "constant"): "--center-momentum (now 1)",
    ("dino", "uniform"): "--teacher-temperature (now 0.5 and 0.5)",
    ("pmsn", "constant"): "--regularization-weight (now 0)",
    ("pmsn", "uniform"): "--teacher-temperature (now 0.5)",
}
CONSTANT = COLLAPSING["dino", "constant"]


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """24 images of one kind: two kinds would hold a collapse up at two clusters."""
    folder = tmp_path_factory.mktemp("images")
    for index in range(24):
        noise(40, 36, index).save(folder / f"{index:02d}.png")
    return folder


def lines_of(output):
    """Return all lines of the log, without what depends on time."""
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


def alarms_of(output):
    return [line for line in lines_of(output) if "collapse" in line]


@pytest.mark.parametrize(("objective", "kind"), COLLAPSING)
def test_a_run_made_to_collapse_is_caught_within_100_steps(
    objective, kind, images, tmp_path, capfd
):
    options = (*SHORT, *COLLAPSING[objective, kind])
    main(arguments(objective, images, tmp_path / "out", *options))
    (alarm,) = alarms_of(tmp_path / "out")  # one, though the collapse lasts
    assert alarm["collapse"] == kind
    suggestions = alarm["advice"].partition("likeliest first: ")[2]
    assert SUGGESTIONS[objective, kind] in suggestions.partition(";")[0]
    printed = capfd.readouterr().out
    assert printed.count(f"warning: {alarm['advice']}") == 1
    # the value is known to be a bad one, so it was named before the first step, too
    assert f"warning: this run risks a {kind} output" in printed


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_healthy_run_raises_no_alarm_in_1000_steps(objective, images, tmp_path):
    out = tmp_path / "out"
    main(arguments(objective, images, out, "--max_steps", 1000, "--batch_size", 6))
    assert not alarms_of(out)
    assert sum("feature_std" in line for line in lines_of(out)) == 100


FIGURES = {
    "dino": {
        *("teacher_entropy", "teacher_mean_entropy", "teacher_information", "prototypes_in_use"),
        *("kl_teacher_student", "student_teacher_cosine", "center_norm"),
    },
    "pmsn": {
        *("teacher_entropy", "teacher_mean_entropy", "teacher_information", "prototypes_in_use"),
        *("kl_teacher_student", "student_teacher_cosine"),
    },
    "mae": {"explained"},
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_figures_are_logged_and_cost_training_no_bit(objective, images, tmp_path):
    options = ("--max_steps", 4, "--batch_size", 6)
    main(arguments(objective, images, tmp_path / "read", *options, "--monitor_steps", 2))
    main(arguments(objective, images, tmp_path / "unread", *options, "--monitor_steps", 100))
    first, second = weights_of(tmp_path / "read"), weights_of(tmp_path / "unread")
    assert all(torch.equal(first[name], second[name]) for name in first)
    readings = [line for line in lines_of(tmp_path / "read") if "rankme" in line]
    assert [line.pop("step") for line in readings] == [2, 4]
    for line in readings:
        assert line.keys() == {*FIGURES[objective], "feature_std", "rankme"}
        assert all(math.isfinite(value) for value in line.values())
    losses = [line for line in lines_of(tmp_path / "unread") if "loss" in line]
    assert all(line["gradient_norm"] > 0 for line in losses)


def test_a_resumed_run_raises_the_alarm_of_the_unbroken_one(images, tmp_path):
    # the checkpoint at 30 lies between the first low reading and the alarm
    options = ("--max_steps", 60, "--batch_size", 12, "--save_steps", 30, *CONSTANT)
    for name in ("whole", "parts"):
        main(arguments("dino", images, tmp_path / name, *options))
    assert [line["step"] > 30 for line in alarms_of(tmp_path / "whole")] == [True]
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step-00000060")  # as if killed before
    main(arguments("dino", images, tmp_path / "parts", *options, "--resume", "true"))
    assert lines_of(tmp_path / "parts") == lines_of(tmp_path / "whole")


def test_stop_ends_the_run_with_what_was_seen_what_to_turn_and_what_is_left(images, tmp_path):
    out = tmp_path / "out"
    options = (*SHORT, *CONSTANT, "--on_collapse", "stop", "--save_steps", 5)
    command = arguments("dino", images, out, *options, "--save_total_limit", 99)
    result = CliRunner().invoke(app, ["train", *command])
    assert result.exit_code == 2
    assert "constant output" in result.output and "lower --center-momentum (now 1)" in result.output
    onset = int(alarms_of(out)[0]["advice"].partition("since step ")[2].partition(")")[0])
    kept = out / "checkpoints" / f"step-{onset - 5:08d}"
    assert kept.is_dir() and f"The last checkpoint from before is {kept}" in result.output
    assert not (out / "config.json").exists()


def test_stop_without_a_checkpoint_from_before_says_so(images, tmp_path):
    command = arguments("dino", images, tmp_path, *SHORT, *CONSTANT, "--on_collapse", "stop")
    with pytest.raises(CollapseError, match="No checkpoint is from before"):
        main(command)


def test_rollback_goes_on_once_from_before_at_half_the_learning_rate(images, tmp_path):
    out = tmp_path / "out"
    options = (*SHORT, *CONSTANT, "--on_collapse", "rollback", "--save_steps", 5)
    with pytest.raises(CollapseError):  # what was set badly still is
        main(arguments("dino", images, out, *options, "--save_total_limit", 1))
    lines = lines_of(out)
    (back,) = [line for line in lines if "rolled_back" in line]
    assert "constant output" in back["rolled_back"]
    rates = {line["step"]: line["learning_rate"] for line in lines if "loss" in line}
    peak = 0.004 * 12 / 256
    assert rates[11] == pytest.approx(peak if back["step"] >= 11 else peak / 2, rel=1e-3)
    assert rates[back["step"] + 1] < 0.51 * peak
    now = yaml.safe_load((out / "training.yaml").read_text())["training"]
    assert (now["base_learning_rate"], now["on_collapse"]) == (0.002, "stop")


def test_a_rolled_back_run_keeps_the_micro_batches_that_were_found_for_it(images, tmp_path):
    # it went on with those that were asked for, which do not fit
    options = (*SHORT, *CONSTANT, "--save_steps", 5, "--save_total_limit", 99)
    command = arguments("dino", images, tmp_path, *options)
    found = ("--gradient_accumulation_steps", "3", "--on_collapse", "stop")
    asked = ("--find_batch_size", "true", "--on_collapse", "rollback", "--resume", "true")
    for given in (found, asked):
        with pytest.raises(CollapseError):
            main([*command, *given])
    now = yaml.safe_load((tmp_path / "training.yaml").read_text())["training"]
    assert now["on_collapse"] == "stop"
    assert (now["gradient_accumulation_steps"], now["find_batch_size"]) == (3, False)


def test_a_run_rolled_back_and_interrupted_goes_on_from_its_yaml_exactly(images, tmp_path):
    # so slow, and 55 steps: it collapses at the full learning rate and not yet at half of it
    options = ("--max_steps", 55, "--batch_size", 12, *CONSTANT, "--base_learning_rate", 0.001)
    options = (*options, "--on_collapse", "rollback", "--save_steps", 15, "--save_total_limit", 9)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    main(arguments("dino", images, whole, *options))
    assert [line for line in lines_of(whole) if "rolled_back" in line]
    shutil.copytree(whole, parts)
    for late in sorted((parts / "checkpoints").iterdir())[-2:]:
        shutil.rmtree(late)
    main([str(parts / "training.yaml"), "--output", str(parts), "--resume", "true"])
    assert lines_of(parts) == lines_of(whole)
    first, second = weights_of(whole), weights_of(parts)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_processes_read_what_one_does_and_stop_together(images, tmp_path):
    options = (*SHORT, *CONSTANT, "--on_collapse", "stop", "--drop_path_rate", 0)
    with pytest.raises(CollapseError):
        main(arguments("dino", images, tmp_path / "one", *options))
    command = arguments("dino", images, tmp_path / "two", *options)
    launcher = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port 0"
    process = start([*launcher.split(), "-m"], command)
    printed, _ = process.communicate(timeout=300)
    # the launcher ends whom the first leaves behind
    assert process.returncode != 0 and "\nerror: step" in printed, printed
    assert "another process of this run died" not in printed
    one, two = (
        [line for line in lines_of(tmp_path / n) if "rankme" in line] for n in ("one", "two")
    )
    assert two[0] == pytest.approx(one[0], rel=1e-2)


def test_no_recipe_is_at_risk_by_its_settings():
    assert {name: settings_at_risk(recipe(None, None)) for name, recipe in RECIPES.items()} == {
        name: [] for name in RECIPES
    }


def alarm_step(values, rate_shares):
    """Return the step of the first alarm over readings of every tenth step, or None."""
    state = MonitorState()
    for step, share in enumerate(rate_shares, start=1):
        state.trained(share)
        if step % 10 == 0 and state.judge(step, {"teacher_information": values(step)}):
            return step
    return None


def test_a_signal_low_from_the_start_is_no_alarm_before_the_warm_up_is_half_over():
    long_warm_up = [
        min(1.0, step / 12_510) for step in range(8000)
    ]  # ImageNet's, 10 epochs of 1251
    assert alarm_step(lambda step: 0.001, long_warm_up[:1000]) is None
    assert alarm_step(lambda step: 0.001, long_warm_up) == 6260
    assert alarm_step(lambda step: 0.001, [1.0] * 100) == 30


def test_a_signal_that_fell_is_an_alarm_at_the_third_low_reading_whatever_the_rate():
    assert alarm_step(lambda step: 0.3 if step < 50 else 0.001, [0.0] * 100) == 70
    # one reading above the floor, and the count begins anew
    assert alarm_step(lambda step: 0.3 if step in (10, 40) else 0.001, [0.0] * 100) == 70


def test_two_prototypes_of_many_are_a_constant_output_though_they_tell_two_kinds_apart():
    state = MonitorState()
    readings = [32.0, 4.4, 1.8, 1.6, 1.5]  # dino_demo without a center, steps 10 to 280
    signals = [{"teacher_information": 0.08, "prototypes_in_use": value} for value in readings]
    alarms = [state.judge(10 * index, reading) for index, reading in enumerate(signals)]
    assert alarms == [[], [], [], [], ["prototypes_in_use"]]


def test_without_learning_a_low_signal_is_no_alarm(images, tmp_path):
    still = ("--base_learning_rate", 0, "--min_learning_rate", 0)
    options = (*SHORT, *COLLAPSING["dino", "uniform"], *still, "--monitor_steps", 1)
    main(arguments("dino", images, tmp_path, *options))
    assert not alarms_of(tmp_path)


def test_a_classifier_has_no_monitors(tmp_path, two_classes, tiny_checkpoint):
    command = [
        "classify", "--init_from", str(tiny_checkpoint), "--data", str(two_classes), "--output",
        str(tmp_path), "--max_steps", "2", "--batch_size", "6", "--monitor_steps", "1",
        "--num_workers", "0", "--tracker", "none",
    ]  # fmt: skip
    main(command)
    assert not [line for line in lines_of(tmp_path) if "rankme" in line]
