"""Collapse detection in real runs of tiny models: both kinds of collapse, and healthy runs."""

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
from .processes import run_two
from .tiny_runs import OBJECTIVES, arguments, weights_of

SHORT = ("--max-steps", 100, "--batch-size", 12)
# Settings that cause each kind of collapse, by objective.
COLLAPSING = {
    ("dino", "constant"): (
        *("--center-momentum", 1, "--teacher-momentum", 0.5),
        *("--teacher-temperature", 0.02, "--warmup-teacher-temperature", 0.02),
    ),
    ("dino", "uniform"): ("--teacher-temperature", 0.5, "--warmup-teacher-temperature", 0.5),
    ("pmsn", "constant"): (
        *("--regularization-weight", 0, "--teacher-momentum", 0.5, "--teacher-temperature", 0.01),
        *("--base-learning-rate", 0.05),
    ),
    ("pmsn", "uniform"): ("--teacher-temperature", 0.5, "--base-learning-rate", 0.02),
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
    """Folder of 24 similar images; with two kinds of images, a collapse stops at two clusters."""
    folder = tmp_path_factory.mktemp("images")
    for index in range(24):
        noise(40, 36, index).save(folder / f"{index:02d}.png")
    return folder


def lines_of(output):
    """Return all lines of the log, without the metric that depends on time."""
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


def alarms_of(output):
    return [line for line in lines_of(output) if "collapse" in line]


@pytest.mark.parametrize(("objective", "kind"), COLLAPSING)
def test_a_collapse_is_detected_within_100_steps(objective, kind, images, tmp_path, capfd):
    options = (*SHORT, *COLLAPSING[objective, kind])
    main(arguments(objective, images, tmp_path / "out", *options))
    (alarm,) = alarms_of(tmp_path / "out")  # only one, although the collapse continues
    assert alarm["collapse"] == kind
    suggestions = alarm["advice"].partition("most likely first: ")[2]
    assert SUGGESTIONS[objective, kind] in suggestions.partition(";")[0]
    printed = capfd.readouterr().out
    assert printed.count(f"warning: {alarm['advice']}") == 1
    # the value is known to be risky, so there was a warning before the first step as well
    assert f"warning: this run risks a {kind} output" in printed


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_healthy_run_has_no_alarm_in_100_readings(objective, images, tmp_path):
    # Twice the steps in which a collapse is detected, and after each grace but that of MAE.
    # Three low readings in a row are an alarm, and here they are two steps apart.
    out = tmp_path / "out"
    options = ("--max-steps", 200, "--monitor-steps", 2, "--batch-size", 6)
    main(arguments(objective, images, out, *options))
    assert not alarms_of(out)
    assert sum("feature_std" in line for line in lines_of(out)) == 100


METRICS = {
    "dino": {
        *("teacher_entropy", "teacher_mean_entropy", "teacher_information", "prototypes_in_use"),
        *("kl_teacher_student", "student_teacher_cosine", "center_norm"),
    },
    "pmsn": {
        *("teacher_entropy", "teacher_mean_entropy", "teacher_information", "prototypes_in_use"),
        *("kl_teacher_student", "student_teacher_cosine"),
    },
    "dinov2": {
        *("teacher_entropy", "teacher_mean_entropy", "teacher_information", "prototypes_in_use"),
        *("kl_teacher_student", "student_teacher_cosine", "center_norm"),
    },
    "distill": {"student_teacher_cosine"},
    "lejepa": {"projection_std", "shared_variance"},
    "mae": {"explained"},
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_collapse_metrics_are_logged_and_do_not_change_the_training(objective, images, tmp_path):
    options = ("--max-steps", 4, "--batch-size", 6)
    main(arguments(objective, images, tmp_path / "with", *options, "--monitor-steps", 2))
    main(arguments(objective, images, tmp_path / "without", *options, "--monitor-steps", 100))
    first, second = weights_of(tmp_path / "with"), weights_of(tmp_path / "without")
    assert all(torch.equal(first[name], second[name]) for name in first)
    readings = [line for line in lines_of(tmp_path / "with") if "rankme" in line]
    assert [line.pop("step") for line in readings] == [2, 4]
    for line in readings:
        assert line.keys() == {*METRICS[objective], "feature_std", "rankme"}
        assert all(math.isfinite(value) for value in line.values())
    losses = [line for line in lines_of(tmp_path / "without") if "loss" in line]
    assert all(line["gradient_norm"] > 0 for line in losses)


def test_a_resumed_run_has_the_same_alarm_as_an_uninterrupted_one(images, tmp_path):
    # the checkpoint of step 30 is saved between the first low reading and the alarm
    options = ("--max-steps", 60, "--batch-size", 12, "--save-steps", 30, *CONSTANT)
    uninterrupted, resumed = tmp_path / "uninterrupted", tmp_path / "resumed"
    for output in (uninterrupted, resumed):
        main(arguments("dino", images, output, *options))
    assert [line["step"] > 30 for line in alarms_of(uninterrupted)] == [True]
    shutil.rmtree(resumed / "checkpoints" / "step-00000060")  # as if killed before step 60
    main(arguments("dino", images, resumed, *options, "--resume"))
    assert lines_of(resumed) == lines_of(uninterrupted)


def test_stop_reports_the_collapse_a_suggestion_and_the_last_good_checkpoint(images, tmp_path):
    out = tmp_path / "out"
    options = (*SHORT, *CONSTANT, "--on-collapse", "stop", "--save-steps", 5)
    command = arguments("dino", images, out, *options, "--save-total-limit", 99)
    result = CliRunner().invoke(app, ["train", *command])
    assert result.exit_code == 2
    assert "constant output" in result.output and "lower --center-momentum (now 1)" in result.output
    onset = int(alarms_of(out)[0]["advice"].partition("since step ")[2].partition(")")[0])
    kept = out / "checkpoints" / f"step-{onset - 5:08d}"
    assert kept.is_dir() and f"The last checkpoint before it is {kept}" in result.output
    assert not (out / "config.json").exists()


def test_stop_reports_that_no_checkpoint_precedes_the_collapse(images, tmp_path):
    command = arguments("dino", images, tmp_path, *SHORT, *CONSTANT, "--on-collapse", "stop")
    with pytest.raises(CollapseError, match="There is no checkpoint before it"):
        main(command)


def test_rollback_continues_once_from_before_the_collapse_with_half_the_learning_rate(
    images, tmp_path
):
    out = tmp_path / "out"
    options = (*SHORT, *CONSTANT, "--on-collapse", "rollback", "--save-steps", 5)
    with pytest.raises(CollapseError):  # the bad settings remain, so it collapses again
        main(arguments("dino", images, out, *options, "--save-total-limit", 1))
    lines = lines_of(out)
    (back,) = [line for line in lines if "rolled_back" in line]
    assert "constant output" in back["rolled_back"]
    rates = {line["step"]: line["learning_rate"] for line in lines if "loss" in line}
    peak = 0.004 * 12 / 256
    assert rates[11] == pytest.approx(peak if back["step"] >= 11 else peak / 2, rel=1e-3)
    assert rates[back["step"] + 1] < 0.51 * peak
    now = yaml.safe_load((out / "training.yaml").read_text())
    assert now["schedule"]["base_learning_rate"] == 0.002
    assert now["monitoring"]["on_collapse"] == "stop"


def test_a_rolled_back_run_keeps_the_micro_batches_of_its_start(images, tmp_path):
    # it used to continue with the requested micro-batches, which do not fit
    options = (*SHORT, *CONSTANT, "--save-steps", 5, "--save-total-limit", 99)
    command = arguments("dino", images, tmp_path, *options)
    first_run = ("--gradient-accumulation-steps", "3", "--on-collapse", "stop")
    resumed_run = ("--find-batch-size", "--on-collapse", "rollback", "--resume")
    for more in (first_run, resumed_run):
        with pytest.raises(CollapseError):
            main([*command, *more])
    now = yaml.safe_load((tmp_path / "training.yaml").read_text())
    assert now["monitoring"]["on_collapse"] == "stop"
    runtime = now["runtime"]
    assert (runtime["gradient_accumulation_steps"], runtime["find_batch_size"]) == (3, False)


def test_an_interrupted_run_after_a_rollback_resumes_exactly_from_its_training_yaml(
    images, tmp_path
):
    # with this learning rate and 55 steps, the run collapses, and at half the rate it does not yet
    options = ("--max-steps", 55, "--batch-size", 12, *CONSTANT, "--base-learning-rate", 0.0015)
    options = (*options, "--on-collapse", "rollback", "--save-steps", 15, "--save-total-limit", 9)
    uninterrupted, resumed = tmp_path / "uninterrupted", tmp_path / "resumed"
    main(arguments("dino", images, uninterrupted, *options))
    assert [line for line in lines_of(uninterrupted) if "rolled_back" in line]
    shutil.copytree(uninterrupted, resumed)
    for late in sorted((resumed / "checkpoints").iterdir())[-2:]:
        shutil.rmtree(late)
    main([str(resumed / "training.yaml"), "--output", str(resumed), "--resume"])
    assert lines_of(resumed) == lines_of(uninterrupted)
    first, second = weights_of(uninterrupted), weights_of(resumed)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_processes_have_the_metrics_of_one_process_and_stop_together(images, tmp_path):
    options = (*SHORT, *CONSTANT, "--on-collapse", "stop", "--drop-path-rate", 0)
    with pytest.raises(CollapseError):
        main(arguments("dino", images, tmp_path / "one", *options))
    command = arguments("dino", images, tmp_path / "two", *options)
    codes, printed = run_two(command, tmp_path)
    assert codes == [2, 2] and "\nerror: step" in printed, printed
    assert "another process of this run died" not in printed
    one, two = (
        [line for line in lines_of(tmp_path / n) if "rankme" in line] for n in ("one", "two")
    )
    assert two[0] == pytest.approx(one[0], rel=1e-2)


def test_no_recipe_has_settings_that_risk_a_collapse():
    assert {name: settings_at_risk(recipe(None, None)) for name, recipe in RECIPES.items()} == {
        name: [] for name in RECIPES
    }


def alarm_step(values, rate_shares):
    """Return the step of the first alarm over readings of every tenth step, or None."""
    state = MonitorState()
    for step, share in enumerate(rate_shares, start=1):
        state.add_step(share)
        if step % 10 == 0 and state.judge(step, {"teacher_information": values(step)}):
            return step
    return None


def test_a_metric_that_is_low_from_the_start_is_no_alarm_in_the_first_half_of_the_warmup():
    long_warm_up = [
        min(1.0, step / 12_510) for step in range(8000)
    ]  # ImageNet: 10 epochs of 1251 steps
    assert alarm_step(lambda step: 0.001, long_warm_up[:1000]) is None
    assert alarm_step(lambda step: 0.001, long_warm_up) == 6260
    assert alarm_step(lambda step: 0.001, [1.0] * 100) == 30


def test_a_metric_that_dropped_is_an_alarm_at_the_third_low_reading_at_any_learning_rate():
    assert alarm_step(lambda step: 0.3 if step < 50 else 0.001, [0.0] * 100) == 70
    # a reading above the threshold resets the count
    assert alarm_step(lambda step: 0.3 if step in (10, 40) else 0.001, [0.0] * 100) == 70


def test_using_only_two_prototypes_is_an_alarm_even_if_they_separate_two_classes():
    state = MonitorState()
    readings = [32.0, 4.4, 1.8, 1.6, 1.5]  # dino_demo without a center, steps 10 to 280
    signals = [{"teacher_information": 0.08, "prototypes_in_use": value} for value in readings]
    alarms = [state.judge(10 * index, reading) for index, reading in enumerate(signals)]
    assert alarms == [[], [], [], [], ["prototypes_in_use"]]


def test_a_low_metric_is_no_alarm_if_the_learning_rate_is_0(images, tmp_path):
    without_learning = ("--base-learning-rate", 0, "--min-learning-rate", 0)
    options = (*COLLAPSING["dino", "uniform"], *without_learning, "--monitor-steps", 1)
    main(arguments("dino", images, tmp_path, *options, "--max-steps", 40, "--batch-size", 12))
    assert not alarms_of(tmp_path)


def test_a_classifier_has_no_monitors(tmp_path, two_classes, tiny_checkpoint):
    command = [
        "classify", "--init-from", str(tiny_checkpoint), "--data", str(two_classes), "--output",
        str(tmp_path), "--max-steps", "2", "--batch-size", "6", "--monitor-steps", "1",
        "--num-workers", "0", "--tracker", "none",
    ]  # fmt: skip
    main(command)
    assert not [line for line in lines_of(tmp_path) if "rankme" in line]
