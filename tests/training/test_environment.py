import json
import platform
import subprocess

import pytest
import torch
import yaml

import selfvit
from selfvit.data.sources import open_images
from selfvit.training.checkpoints import environment as environment_module
from selfvit.training.checkpoints.environment import differences, environment
from selfvit.training.train import main

from .processes import start_training, start_two
from .tiny_runs import OBJECTIVES, arguments, assert_equal_tensors, log_of, weights_of

OPTIONS = ("--max-steps", 4, "--batch-size", 6, "--save-steps", 2, "--seed", 7)


def state_of(folder):
    return json.loads((folder / "trainer_state.json").read_text())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_seed_determines_all_files_of_a_run_with_any_number_of_workers(
    objective, two_classes, tmp_path
):
    runs = {"first": 2, "without workers": 0}
    if objective == "dino":
        runs["second"] = 2
    for name, num_workers in runs.items():
        options = (*OPTIONS, "--num-workers", num_workers)
        command = arguments(objective, two_classes, tmp_path / name, *options)
        training = start_training(command, tmp_path / f"{name}.txt")
        assert training.exit_code() == 0, training.printed
    for step in (2, 4):
        files = {
            name: state_of(tmp_path / name / "checkpoints" / f"step-{step:08d}")["files"]
            for name in runs
        }
        for file in ("model.safetensors", "optimizer.bin", "random_states_0.pkl"):
            assert len({files[name][file]["crc32"] for name in runs}) == 1, (step, file)
    logs = [log_of(tmp_path / name) for name in runs]
    assert all(log == logs[0] for log in logs)
    for name in runs:
        assert_equal_tensors(weights_of(tmp_path / name), weights_of(tmp_path / "first"))
    if objective == "dino":
        main(arguments(objective, two_classes, tmp_path / "other seed", *OPTIONS, "--seed", 8))
        assert log_of(tmp_path / "other seed")[4]["loss"] != logs[0][4]["loss"]


def test_every_checkpoint_and_the_result_contain_versions_and_settings(two_classes, tmp_path):
    main(arguments("mae", two_classes, tmp_path, *OPTIONS))
    for folder in (tmp_path, *(tmp_path / "checkpoints").iterdir()):
        state = state_of(folder)
        assert state["versions"]["torch"] == torch.__version__
        assert state["versions"]["selfvit"] == selfvit.__version__
        assert state["versions"]["python"] == platform.python_version()
        assert {"transformers", "accelerate", "numpy", "Pillow"} < state["versions"].keys()
        assert "git" in state
        assert state["data"] == open_images(two_classes).fingerprint
        configuration = yaml.safe_load((folder / "training.yaml").read_text())
        assert configuration["start"]["seed"] == 7
        assert configuration == yaml.safe_load((tmp_path / "training.yaml").read_text())
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_a_resume_warns_of_versions_that_differ_from_the_start_of_the_run(
    two_classes, tmp_path, capsys
):
    command = arguments("mae", two_classes, tmp_path, *OPTIONS)
    main(command)
    capsys.readouterr()
    main([*command, "--resume"])
    assert "numbers may differ" not in capsys.readouterr().out
    started_with = json.loads((tmp_path / "environment.json").read_text())
    started_with["versions"]["torch"] = "1.13.1"
    (tmp_path / "environment.json").write_text(json.dumps(started_with))
    for _ in range(2):  # also at the second resume, because it compares with the start of the run
        main([*command, "--resume"])
        printed = capsys.readouterr().out
        assert "numbers may differ" in printed
        assert f"torch 1.13.1 then, {torch.__version__} now" in printed


def test_a_resume_warns_of_another_number_of_processes(two_classes, tmp_path, capsys):
    command = arguments("dino", two_classes, tmp_path / "out", *OPTIONS)
    assert [process.exit_code() for process in start_two(command, tmp_path)] == [0, 0]
    main([*command, "--resume"])
    assert "number of processes 2 then, 1 now" in capsys.readouterr().out


def git(folder, *arguments):
    author = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    return subprocess.run(
        ["git", *author, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_the_environment_contains_the_git_revision_of_the_working_directory_if_it_has_one(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert "working_directory" not in environment()["git"]
    try:
        git(tmp_path, "init")
    except OSError:
        pytest.skip("git is not installed")
    assert "working_directory" not in environment()["git"]  # nothing is committed
    (tmp_path / "notes.txt").write_text("one")
    git(tmp_path, "add", "notes.txt")
    git(tmp_path, "commit", "-m", "one")
    revision = git(tmp_path, "rev-parse", "HEAD")
    assert environment()["git"]["working_directory"] == revision
    (tmp_path / "notes.txt").write_text("two")
    assert environment()["git"]["working_directory"] == f"{revision}-dirty"


def test_without_git_the_environment_contains_no_revision(monkeypatch):
    monkeypatch.setenv("PATH", "")
    uncached = environment_module._package_revision.__wrapped__
    monkeypatch.setattr(environment_module, "_package_revision", uncached)
    assert environment()["git"] == {}


def test_only_versions_that_affect_results_are_differences():
    then = {"versions": {"torch": "2.13.0"}, "git": {"working_directory": "abc"}}
    now = {"versions": {"torch": "2.13.0"}, "git": {"working_directory": "def"}}
    assert differences(then, now) == []
    now["git"]["selfvit"] = "123"
    assert differences(then, now) == ["git revision of selfvit None then, 123 now"]
