"""Real runs that are killed or fail; each loses only the steps since its last checkpoint."""

import errno
import itertools
import json
import os
import re
import shutil
import signal

import pytest

from selfvit.training.checkpoints.checkpointer import is_disk_full
from selfvit.training.checkpoints.integrity import find_corruption
from selfvit.training.runtime.errors import translate_errors
from selfvit.training.train import main

from .processes import (
    AtLogLine,
    KillDuringSave,
    Pause,
    SaveRecorder,
    kill_a_worker,
    kill_self,
    start_training,
    start_two,
    wait_until,
)
from .tiny_runs import OBJECTIVES, arguments, assert_equal_tensors, log_of, weights_of

NUM_STEPS = 8
# 24 images in batches of 4 are 6 steps per epoch; each checkpoint replaces the previous one
OPTIONS = (
    *("--max-steps", NUM_STEPS, "--batch-size", 4),
    *("--save-steps", 2, "--save-total-limit", 1),
    "--no-save-code",  # fewer file accesses, and the same number in each save
)


@pytest.fixture(scope="module")
def uninterrupted(two_classes, tmp_path_factory):
    """Return a function from objective and number of processes to an uninterrupted run's output."""
    outputs = {}

    def output_of(objective, num_processes=1):
        key = (objective, num_processes)
        if key not in outputs:
            folder = tmp_path_factory.mktemp("uninterrupted")
            command = arguments(objective, two_classes, folder / "out", *OPTIONS)
            if num_processes == 1:
                processes = [start_training(command, folder / "printed.txt")]
            else:
                processes = start_two(command, folder)
            assert [process.exit_code() for process in processes] == [0] * num_processes
            outputs[key] = folder / "out"
        return outputs[key]

    return output_of


def assert_same_result(output, expected):
    assert log_of(output) == log_of(expected)
    assert sorted(path.name for path in output.iterdir()) == sorted(
        path.name for path in expected.iterdir()
    )
    assert (output / "checkpoints" / f"step-{NUM_STEPS:08d}").is_dir()
    for folder in ("", f"checkpoints/step-{NUM_STEPS:08d}"):
        assert_equal_tensors(weights_of(output / folder), weights_of(expected / folder))


def resume(command):
    main([*command, "--resume"])


# Numbers of file accesses to kill a run before: before the folder of the first checkpoint is
# created, while it is written, before trainer_state.json, before and after the folder is renamed;
# the same for the second checkpoint, before and during the removal of the first one; and while the
# result is moved into place. (With transformers 5.24 and Accelerate 1.15; the next test determines
# such numbers itself.)
POINTS_OF_A_SAVE = (0, 9, 21, 31, 32, 52, 62, 64, 67, 71, 75, 168)
BETWEEN_SAVES = None  # kill the run in step 5, within an epoch


@pytest.mark.parametrize(
    ("objective", "at"),
    [("dino", at) for at in (*POINTS_OF_A_SAVE, BETWEEN_SAVES)]
    + list(itertools.product(sorted(OBJECTIVES.keys() - {"dino"}), (50, BETWEEN_SAVES))),
)
def test_a_killed_run_has_an_intact_checkpoint_and_resumes_exactly(
    objective, at, two_classes, uninterrupted, tmp_path
):
    command = arguments(objective, two_classes, tmp_path / "out", *OPTIONS)
    hook = AtLogLine(5, kill_self) if at is BETWEEN_SAVES else KillDuringSave(at=at)
    training = start_training(command, tmp_path / "printed.txt", hook)
    assert training.exit_code() == -signal.SIGKILL, training.printed
    checkpoints = sorted((tmp_path / "out" / "checkpoints").glob("step-*"))
    assert all(find_corruption(path) is None for path in checkpoints)
    resume(command)
    assert_same_result(tmp_path / "out", uninterrupted(objective))
    left = [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()]
    assert left == [f"step-{NUM_STEPS:08d}"]


def test_there_is_an_intact_checkpoint_at_every_moment_of_a_save(two_classes, tmp_path):
    command = arguments("mae", two_classes, tmp_path / "out", *OPTIONS)
    recorded, copies = tmp_path / "accesses.txt", tmp_path / "copies"
    recorder = SaveRecorder(
        path=recorded, checkpoints=tmp_path / "out" / "checkpoints", copies=copies
    )
    training = start_training(command, tmp_path / "printed.txt", recorder)
    assert training.exit_code() == 0, training.printed
    accesses = [line.split() for line in recorded.read_text().splitlines()]
    renamed = [number for number, (event, _) in enumerate(accesses) if event == "os.rename"]
    # the first and the second checkpoint are renamed when complete, and the first to remove it
    first, second, removed = renamed[:3]
    for at in range(first + 1, removed + 2):
        checkpoints = sorted((copies / str(at)).glob("step-*"))
        assert all(find_corruption(path) is None for path in checkpoints), at
        steps = [2] if at <= second else [2, 4] if at <= removed else [4]
        assert [path.name for path in checkpoints] == [f"step-{step:08d}" for step in steps], at


def test_a_run_killed_before_its_first_checkpoint_resumes_from_the_start(
    two_classes, uninterrupted, tmp_path
):
    command = arguments("dino", two_classes, tmp_path / "out", *OPTIONS)
    training = start_training(command, tmp_path / "printed.txt", AtLogLine(2, kill_self))
    assert training.exit_code() == -signal.SIGKILL
    assert len(log_of(tmp_path / "out")) == 1
    resume(command)
    assert_same_result(tmp_path / "out", uninterrupted("dino"))


def test_a_run_can_start_in_a_folder_where_another_was_killed_at_its_start(two_classes, tmp_path):
    (tmp_path / ".training.yaml.unfinished-1234abcd").write_text("recipe: di")
    main(arguments("mae", two_classes, tmp_path, *OPTIONS))
    assert (tmp_path / "config.json").exists()
    assert not list(tmp_path.glob(".*"))


def truncate(path):
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("model.safetensors", truncate, r"model.safetensors has \d+ bytes instead of \d+"),
        ("optimizer.bin", empty, r"optimizer.bin has 0 bytes instead of \d+"),
        ("random_states_0.pkl", os.unlink, "random_states_0.pkl is missing"),
        ("model.safetensors", flip_a_bit, "the content of model.safetensors has changed"),
        ("trainer_state.json", truncate, "trainer_state.json is truncated"),
        ("trainer_state.json", os.unlink, "trainer_state.json is missing"),
    ],
)
def test_resume_skips_and_reports_a_corrupt_checkpoint(
    name, damage, reason, two_classes, uninterrupted, tmp_path, capsys
):
    output = tmp_path / "out"
    options = (*OPTIONS, "--save-total-limit", 2)
    main(arguments("pmsn", two_classes, output, *options))
    newest = output / "checkpoints" / f"step-{NUM_STEPS:08d}"
    damage(newest / name)
    (output / "config.json").unlink()  # as if the run had been killed at its end
    resume(arguments("pmsn", two_classes, output, *OPTIONS))
    printed = capsys.readouterr().out
    assert f"skipped: {newest} is corrupt" in printed
    assert find_corruption(newest) is None
    assert re.search(reason, printed)
    assert_same_result(output, uninterrupted("pmsn"))


def test_resume_with_only_corrupt_checkpoints_is_an_error_that_names_them(two_classes, tmp_path):
    command = arguments("mae", two_classes, tmp_path, *OPTIONS)
    main(command)
    truncate(tmp_path / "checkpoints" / f"step-{NUM_STEPS:08d}" / "optimizer.bin")
    with pytest.raises(
        ValueError, match=r"no checkpoint is intact: .*step-00000008.*optimizer.bin"
    ):
        resume(command)
    shutil.rmtree(tmp_path / "checkpoints")
    resume(command)
    assert (tmp_path / "checkpoints" / f"step-{NUM_STEPS:08d}").is_dir()


def test_a_corrupt_later_checkpoint_is_not_kept_in_place_of_a_new_one(two_classes, tmp_path):
    # With --save-total-limit 1, the corrupt checkpoint used to be kept and the new one deleted.
    output = tmp_path / "out"
    main(arguments("dino", two_classes, output, *OPTIONS, "--save-total-limit", 9))
    late = output / "checkpoints" / "step-00000008"
    truncate(late / "model.safetensors")
    (output / "config.json").unlink()
    command = arguments("dino", two_classes, output, *OPTIONS, "--save-steps", 1)
    training = start_training(
        [*command, "--resume"], tmp_path / "printed.txt", AtLogLine(2, kill_self)
    )
    assert training.exit_code() == -signal.SIGKILL
    checkpoints = sorted((output / "checkpoints").glob("step-*"))
    assert [path.name for path in checkpoints] == ["step-00000007"]
    assert find_corruption(checkpoints[0]) is None


@pytest.mark.parametrize("objective", ["dino", "mae"])
def test_a_full_disk_is_an_error_that_leaves_the_last_checkpoint_intact(
    objective, two_classes, uninterrupted, small_disk, tmp_path
):
    output = small_disk / "out"
    command = arguments(objective, two_classes, output, *OPTIONS)
    pause = Pause(tmp_path / "paused")
    training = start_training(command, tmp_path / "printed.txt", AtLogLine(4, pause))
    wait_until(pause.path.exists, training)
    saved = output / "checkpoints" / "step-00000002"
    size = sum(path.stat().st_size for path in saved.rglob("*"))
    # leave space for the log and for a part of the next checkpoint
    free = shutil.disk_usage(small_disk).free
    fill(small_disk / "ballast", free - size // 2)
    pause.path.unlink()
    assert training.exit_code() == 2
    assert f"the disk of {output} is full, or" in training.printed
    assert "unfinished-00000004 could not be saved" in training.printed
    assert find_corruption(saved) is None
    assert [path.name for path in saved.parent.iterdir()] == ["step-00000002"]

    with pytest.raises(OSError, match="is full") as caught:
        resume(command)
    assert caught.value.errno == errno.ENOSPC
    (small_disk / "ballast").unlink()
    resume(command)
    assert_same_result(output, uninterrupted(objective))


def fill(path, num_bytes):
    with open(path, "wb") as file:
        file.write(bytes(num_bytes))


@pytest.mark.parametrize("percent", [2, 30, 60, 90])
def test_a_disk_that_becomes_full_anywhere_in_a_save_is_an_error_that_says_so(
    percent, two_classes, small_disk, tmp_path
):
    main(arguments("dino", two_classes, tmp_path / "out", *OPTIONS))
    saved = tmp_path / "out" / "checkpoints" / f"step-{NUM_STEPS:08d}"
    size = sum(path.stat().st_size for path in saved.rglob("*"))
    fill(small_disk / "ballast", shutil.disk_usage(small_disk).free - size * percent // 100 - 16384)
    with pytest.raises(OSError, match="is full") as caught:
        main(arguments("dino", two_classes, small_disk / "out", *OPTIONS))
    assert caught.value.errno == errno.ENOSPC
    assert not list((small_disk / "out" / "checkpoints").iterdir())


def test_a_full_disk_is_distinguished_from_other_write_errors(tmp_path):
    assert not is_disk_full(PermissionError(errno.EACCES, "denied"), tmp_path)
    assert not is_disk_full(RuntimeError("PytorchStreamWriter failed"), tmp_path)
    wrapped = RuntimeError("outer")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert is_disk_full(wrapped, tmp_path)


@pytest.mark.parametrize(
    ("objective", "workers"),
    [("dino", "fork"), ("mae", "fork"), ("dino", "forkserver")],
)
def test_a_killed_worker_ends_the_run_with_the_cause_and_the_run_resumes_exactly(
    objective, workers, two_classes, uninterrupted, tmp_path
):
    command = arguments(objective, two_classes, tmp_path / "out", *OPTIONS, "--num-workers", 2)
    hook = AtLogLine(3, kill_a_worker)  # so early that the batches already loaded do not suffice
    training = start_training(command, tmp_path / "printed.txt", hook, WORKERS=workers)
    assert training.exit_code() == 2, training.printed
    assert "a process that loads images died: DataLoader worker" in training.printed
    assert "use fewer --num-workers" in training.printed
    assert list((tmp_path / "out" / "checkpoints").glob("step-*"))
    resume(command)
    assert_same_result(tmp_path / "out", uninterrupted(objective))


# For dino either process dies, for the other objectives one of the two.
@pytest.mark.parametrize(
    ("objective", "dead"),
    [("dino", 1), *((objective, index % 2) for index, objective in enumerate(OBJECTIVES))],
)
def test_if_one_of_two_processes_dies_the_other_ends_with_an_error(
    objective, dead, two_classes, uninterrupted, tmp_path
):
    # only the first process writes the log, so the hook is in the first process
    command = arguments(objective, two_classes, tmp_path / "out", *OPTIONS)
    pause = Pause(tmp_path / "paused")
    processes = start_two(command, tmp_path, hooks=(AtLogLine(5, pause), None))
    wait_until(pause.path.exists, processes[0])
    processes[dead].signal_group(signal.SIGKILL)
    pause.path.unlink()
    assert processes[dead].exit_code() == -signal.SIGKILL
    survivor = processes[1 - dead]
    assert survivor.exit_code() == 2
    assert "another process of this run died or hangs" in survivor.printed

    state = tmp_path / "out" / "checkpoints" / "step-00000004" / "trainer_state.json"
    assert json.loads(state.read_text())["num_processes"] == 2
    again = start_two([*command, "--resume"], tmp_path)
    assert [process.exit_code() for process in again] == [0, 0], again[0].printed
    assert_same_result(tmp_path / "out", uninterrupted(objective, num_processes=2))


def test_other_runtime_errors_are_not_translated():
    with pytest.raises(RuntimeError, match="^mat1 and mat2") as caught, translate_errors():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert type(caught.value) is RuntimeError


def test_a_closed_socket_and_the_delayed_signal_of_a_dead_worker_are_one_error():
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
