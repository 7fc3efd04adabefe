"""What kills runs, done to real ones: none loses more than the steps since its last save."""

import errno
import itertools
import json
import os
import re
import shutil
import signal

import pytest
import torch

from selfvit.training.checkpoints.checkpointer import is_disk_full
from selfvit.training.checkpoints.integrity import find_corruption
from selfvit.training.runtime.errors import translate_errors
from selfvit.training.train import main

from .processes import (
    AtLogLine,
    KilledInSave,
    NotedSaves,
    Wait,
    kill_a_worker,
    kill_self,
    start_training,
    start_two,
    wait_until,
)
from .tiny_runs import OBJECTIVES, arguments, log_of, weights_of

NUM_STEPS = 8
# 24 images in batches of 4 are 6 steps an epoch; every checkpoint replaces the one before
OPTIONS = (
    *("--max_steps", NUM_STEPS, "--batch_size", 4),
    *("--save_steps", 2, "--save_total_limit", 1),
    *("--save_code", "false"),  # fewer files, and the same moments of a save
)


@pytest.fixture(scope="module")
def unbroken(two_classes, tmp_path_factory):
    """Return the output of a run that nothing happened to, by objective and number of processes."""
    outputs = {}

    def output_of(objective, num_processes=1):
        key = (objective, num_processes)
        if key not in outputs:
            folder = tmp_path_factory.mktemp("unbroken")
            command = arguments(objective, two_classes, folder / "out", *OPTIONS)
            if num_processes == 1:
                processes = [start_training(command, folder / "printed.txt")]
            else:
                processes = start_two(command, folder)
            assert [process.exit_code() for process in processes] == [0] * num_processes
            outputs[key] = folder / "out"
        return outputs[key]

    return output_of


def assert_same_result(output, unbroken):
    assert log_of(output) == log_of(unbroken)
    assert sorted(path.name for path in output.iterdir()) == sorted(
        path.name for path in unbroken.iterdir()
    )
    assert (output / "checkpoints" / f"step-{NUM_STEPS:08d}").is_dir()
    for folder in ("", f"checkpoints/step-{NUM_STEPS:08d}"):
        ours, theirs = weights_of(output / folder), weights_of(unbroken / folder)
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert torch.equal(ours[name], tensor), name


def resume(command):
    main([*command, "--resume", "true"])


# Before the folder is made, in it, before trainer_state.json, before its new name, after it; the
# same of the next save, before the old one goes, while it goes; while the result takes its place.
# (As transformers 5.24 and Accelerate 1.15 write; the next test finds such moments by itself.)
POINTS_OF_A_SAVE = (0, 9, 21, 31, 32, 52, 62, 64, 67, 71, 75, 168)


@pytest.mark.parametrize(
    ("objective", "at"),
    [("dino", at) for at in POINTS_OF_A_SAVE]
    + list(itertools.product(sorted(OBJECTIVES.keys() - {"dino"}), (9, 50, 66))),
)
def test_a_run_killed_in_a_save_has_a_whole_checkpoint_and_resumes_to_the_same_result(
    objective, at, two_classes, unbroken, tmp_path
):
    command = arguments(objective, two_classes, tmp_path / "out", *OPTIONS)
    training = start_training(command, tmp_path / "printed.txt", KilledInSave(at=at))
    assert training.exit_code() == -signal.SIGKILL, training.printed
    checkpoints = sorted((tmp_path / "out" / "checkpoints").glob("step-*"))
    assert all(find_corruption(path) is None for path in checkpoints)
    resume(command)
    assert_same_result(tmp_path / "out", unbroken(objective))
    left = [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()]
    assert left == [f"step-{NUM_STEPS:08d}"]


def test_no_moment_of_a_save_is_without_a_whole_checkpoint(two_classes, tmp_path):
    command = arguments("mae", two_classes, tmp_path / "out", *OPTIONS)
    noted = tmp_path / "accesses.txt"
    training = start_training(command, tmp_path / "printed.txt", NotedSaves(path=noted))
    assert training.exit_code() == 0, training.printed
    accesses = [line.split() for line in noted.read_text().splitlines()]
    renamed = [number for number, (event, _) in enumerate(accesses) if event == "os.rename"]
    # the new names of the first checkpoint and of the second, and of the first when it goes
    first, second, removed = renamed[:3]
    moments = {first + 1, second, second + 1, removed, removed + 1, *range(first + 1, removed, 3)}
    for at in sorted(moments):
        shutil.rmtree(tmp_path / "out")
        training = start_training(command, tmp_path / "printed.txt", KilledInSave(at=at))
        assert training.exit_code() == -signal.SIGKILL
        checkpoints = sorted((tmp_path / "out" / "checkpoints").glob("step-*"))
        assert all(find_corruption(path) is None for path in checkpoints), at
        steps = [2] if at <= second else [2, 4] if at <= removed else [4]
        assert [path.name for path in checkpoints] == [f"step-{step:08d}" for step in steps], at


def test_a_run_killed_before_its_first_checkpoint_starts_over(two_classes, unbroken, tmp_path):
    command = arguments("dino", two_classes, tmp_path / "out", *OPTIONS)
    training = start_training(command, tmp_path / "printed.txt", AtLogLine(2, kill_self))
    assert training.exit_code() == -signal.SIGKILL
    assert len(log_of(tmp_path / "out")) == 1
    resume(command)
    assert_same_result(tmp_path / "out", unbroken("dino"))


def test_a_run_killed_as_it_began_does_not_take_its_folder_for_somebody_elses(
    two_classes, tmp_path
):
    (tmp_path / ".training.yaml.unfinished-1234abcd").write_text("recipe: di")
    main(arguments("mae", two_classes, tmp_path, *OPTIONS))
    assert (tmp_path / "config.json").exists()
    assert not list(tmp_path.glob(".*"))


def half_of(path):
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)


def nothing_of(path):
    os.truncate(path, 0)


def one_byte_of(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("model.safetensors", half_of, r"model.safetensors has \d+ bytes of \d+"),
        ("optimizer.bin", nothing_of, r"optimizer.bin has 0 bytes of \d+"),
        ("random_states_0.pkl", os.unlink, "random_states_0.pkl is missing"),
        ("model.safetensors", one_byte_of, "other content than was saved"),
        ("trainer_state.json", half_of, "trainer_state.json is cut short"),
        ("trainer_state.json", os.unlink, "trainer_state.json is missing"),
    ],
)
def test_resume_passes_over_a_broken_checkpoint_and_says_so(
    name, damage, reason, two_classes, unbroken, tmp_path, capsys
):
    output = tmp_path / "out"
    options = (*OPTIONS, "--save_total_limit", 2)
    main(arguments("pmsn", two_classes, output, *options))
    newest = output / "checkpoints" / f"step-{NUM_STEPS:08d}"
    damage(newest / name)
    (output / "config.json").unlink()  # as if it had been killed at its end
    resume(arguments("pmsn", two_classes, output, *OPTIONS))
    printed = capsys.readouterr().out
    assert f"passed over: {newest} is broken" in printed
    assert find_corruption(newest) is None
    assert re.search(reason, printed)
    assert_same_result(output, unbroken("pmsn"))


def test_resume_without_any_whole_checkpoint_is_an_error_that_names_them(two_classes, tmp_path):
    command = arguments("mae", two_classes, tmp_path, *OPTIONS)
    main(command)
    half_of(tmp_path / "checkpoints" / f"step-{NUM_STEPS:08d}" / "optimizer.bin")
    with pytest.raises(ValueError, match=r"no checkpoint is whole: .*step-00000008.*optimizer.bin"):
        resume(command)
    shutil.rmtree(tmp_path / "checkpoints")
    resume(command)
    assert (tmp_path / "checkpoints" / f"step-{NUM_STEPS:08d}").is_dir()


def test_a_later_checkpoint_of_a_lost_branch_never_counts_as_the_last_one(two_classes, tmp_path):
    # It used to: with one to keep, the broken one was kept and the new one pruned.
    output = tmp_path / "out"
    main(arguments("dino", two_classes, output, *OPTIONS, "--save_total_limit", 9))
    late = output / "checkpoints" / "step-00000008"
    half_of(late / "model.safetensors")
    (output / "config.json").unlink()
    command = arguments("dino", two_classes, output, *OPTIONS, "--save_steps", 1)
    training = start_training(
        [*command, "--resume", "true"], tmp_path / "printed.txt", AtLogLine(2, kill_self)
    )
    assert training.exit_code() == -signal.SIGKILL
    checkpoints = sorted((output / "checkpoints").glob("step-*"))
    assert [path.name for path in checkpoints] == ["step-00000007"]
    assert find_corruption(checkpoints[0]) is None


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_full_disk_is_named_and_costs_nothing_that_was_saved(
    objective, two_classes, unbroken, small_disk, tmp_path
):
    output = small_disk / "out"
    command = arguments(objective, two_classes, output, *OPTIONS)
    waits = Wait(tmp_path / "waits")
    training = start_training(command, tmp_path / "printed.txt", AtLogLine(4, waits))
    wait_until(waits.path.exists, training)
    saved = output / "checkpoints" / "step-00000002"
    size = sum(path.stat().st_size for path in saved.rglob("*"))
    # room for the log, and for a part of the next checkpoint
    free = shutil.disk_usage(small_disk).free
    fill(small_disk / "ballast", free - size // 2)
    waits.path.unlink()
    assert training.exit_code() == 2
    assert f"the disk of {output} is full" in training.printed
    assert "unfinished-00000004 could not be saved" in training.printed
    assert find_corruption(saved) is None
    assert [path.name for path in saved.parent.iterdir()] == ["step-00000002"]

    with pytest.raises(OSError, match="is full") as caught:  # it still is
        resume(command)
    assert caught.value.errno == errno.ENOSPC
    (small_disk / "ballast").unlink()
    resume(command)
    assert_same_result(output, unbroken(objective))


def fill(path, num_bytes):
    with open(path, "wb") as file:
        file.write(bytes(num_bytes))


@pytest.mark.parametrize("percent", [2, 30, 60, 90])
def test_wherever_in_a_save_the_disk_is_full_the_error_says_so(
    percent, two_classes, small_disk, tmp_path
):
    main(arguments("dino", two_classes, tmp_path / "whole", *OPTIONS))
    saved = tmp_path / "whole" / "checkpoints" / f"step-{NUM_STEPS:08d}"
    size = sum(path.stat().st_size for path in saved.rglob("*"))
    fill(small_disk / "ballast", shutil.disk_usage(small_disk).free - size * percent // 100 - 16384)
    with pytest.raises(OSError, match="is full") as caught:
        main(arguments("dino", two_classes, small_disk / "out", *OPTIONS))
    assert caught.value.errno == errno.ENOSPC
    assert not list((small_disk / "out" / "checkpoints").iterdir())


def test_other_errors_of_writing_are_not_taken_for_a_full_disk(tmp_path):
    assert not is_disk_full(PermissionError(errno.EACCES, "denied"), tmp_path)
    assert not is_disk_full(RuntimeError("PytorchStreamWriter failed"), tmp_path)
    wrapped = RuntimeError("outer")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert is_disk_full(wrapped, tmp_path)


@pytest.mark.parametrize(
    ("objective", "workers"),
    [*((objective, "fork") for objective in OBJECTIVES), ("dino", "forkserver")],
)
def test_a_worker_that_dies_ends_the_run_with_the_cause_and_costs_nothing_that_was_saved(
    objective, workers, two_classes, unbroken, tmp_path
):
    command = arguments(objective, two_classes, tmp_path / "out", *OPTIONS, "--num_workers", 2)
    hook = AtLogLine(3, kill_a_worker)  # so early that what is loaded by then does not suffice
    training = start_training(command, tmp_path / "printed.txt", hook, WORKERS=workers)
    assert training.exit_code() == 2, training.printed
    assert "a process that loads images died: DataLoader worker" in training.printed
    assert "use fewer --num_workers" in training.printed
    assert list((tmp_path / "out" / "checkpoints").glob("step-*"))
    resume(command)
    assert_same_result(tmp_path / "out", unbroken(objective))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("dead", [0, 1])
def test_when_one_of_two_processes_dies_the_other_ends_and_says_why(
    objective, dead, two_classes, unbroken, tmp_path
):
    # only the first process writes the log: the hook of the second counts its steps otherwise
    command = arguments(objective, two_classes, tmp_path / "out", *OPTIONS)
    waits = Wait(tmp_path / "waits")
    processes = start_two(command, tmp_path, hooks=(AtLogLine(5, waits), None))
    wait_until(waits.path.exists, processes[0])
    processes[dead].signal_group(signal.SIGKILL)
    waits.path.unlink()
    assert processes[dead].exit_code() == -signal.SIGKILL
    survivor = processes[1 - dead]
    assert survivor.exit_code() == 2
    assert "another process of this run died or hangs" in survivor.printed

    state = tmp_path / "out" / "checkpoints" / "step-00000004" / "trainer_state.json"
    assert json.loads(state.read_text())["num_processes"] == 2
    again = start_two([*command, "--resume", "true"], tmp_path)
    assert [process.exit_code() for process in again] == [0, 0], again[0].printed
    assert_same_result(tmp_path / "out", unbroken(objective, num_processes=2))


def test_other_runtime_errors_pass_as_they_are():
    with pytest.raises(RuntimeError, match="^mat1 and mat2") as caught, translate_errors():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert type(caught.value) is RuntimeError


def test_a_worker_whose_death_is_signalled_after_its_socket_closed_is_one_fault():
    def die_soon(number, frame):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    before = signal.signal(signal.SIGALRM, die_soon)
    try:
        with pytest.raises(ChildProcessError, match=r"pid 7\) is killed"), translate_errors():
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            raise ConnectionResetError("Connection reset by peer")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
