import json
import platform
import subprocess

import pytest
import torch
import yaml

import selfvit
from selfvit.data.sources import open_images
from selfvit.training.checkpoints.environment import differences, environment
from selfvit.training.train import main

from .processes import start_training, start_two
from .tiny_runs import OBJECTIVES, arguments, log_of

OPTIONS = ("--max_steps", 4, "--batch_size", 6, "--save_steps", 2, "--seed", 7)


def state_of(folder):
    return json.loads((folder / "trainer_state.json").read_text())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_runs_of_one_seed_are_bit_identical_files_whatever_the_number_of_workers(
    objective, two_classes, tmp_path
):
    runs = {"first": 2, "again": 2, "alone": 0}
    for name, num_workers in runs.items():
        options = (*OPTIONS, "--num_workers", num_workers)
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
    assert log_of(tmp_path / "first") == log_of(tmp_path / "again") == log_of(tmp_path / "alone")


def test_every_checkpoint_and_the_result_say_what_they_were_made_with(two_classes, tmp_path):
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
        assert configuration["training"]["seed"] == 7
        assert configuration == yaml.safe_load((tmp_path / "training.yaml").read_text())
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_a_resume_says_which_versions_differ_from_those_it_was_started_with(
    two_classes, tmp_path, capsys
):
    command = arguments("mae", two_classes, tmp_path, *OPTIONS)
    main(command)
    capsys.readouterr()
    main([*command, "--resume", "true"])
    assert "warning" not in capsys.readouterr().out
    started_with = json.loads((tmp_path / "environment.json").read_text())
    started_with["versions"]["torch"] = "1.13.1"
    (tmp_path / "environment.json").write_text(json.dumps(started_with))
    for _ in range(2):  # the second time, too: it compares with the start
        main([*command, "--resume", "true"])
        printed = capsys.readouterr().out
        assert "numbers may differ" in printed
        assert f"torch 1.13.1 then, {torch.__version__} now" in printed


def test_a_resume_with_another_number_of_processes_says_so(two_classes, tmp_path, capsys):
    command = arguments("dino", two_classes, tmp_path / "out", *OPTIONS)
    assert [process.exit_code() for process in start_two(command, tmp_path)] == [0, 0]
    main([*command, "--resume", "true"])
    assert "number of processes 2 then, 1 now" in capsys.readouterr().out


def git(folder, *arguments):
    author = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    return subprocess.run(
        ["git", *author, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_the_git_revision_of_the_working_directory_is_noted_where_there_is_one(
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


def test_a_machine_without_git_notes_no_revision(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert environment()["git"] == {}


def test_only_what_changes_numbers_is_a_difference():
    then = {"versions": {"torch": "2.13.0"}, "git": {"working_directory": "abc"}}
    now = {"versions": {"torch": "2.13.0"}, "git": {"working_directory": "def"}}
    assert differences(then, now) == []
    now["git"]["selfvit"] = "123"
    assert differences(then, now) == ["git revision of selfvit None then, 123 now"]
