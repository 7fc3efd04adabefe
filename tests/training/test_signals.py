"""SIGTERM and Ctrl-C, sent to real runs: all that was trained is saved."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from selfvit.training.runtime.signals import StopSignal
from selfvit.training.train import main

from .processes import PATIENCE, AtLogLine, Wait, start_training, start_two, wait_until
from .tiny_runs import OBJECTIVES, arguments, log_of, weights_of

OPTIONS = ("--max_steps", 9, "--batch_size", 4, "--save_steps", 100)


def assert_resumes_to_the_unbroken_run(command, output, tmp_path):
    main([*command, "--resume", "true"])
    unbroken = tmp_path / "unbroken"
    main([str(unbroken) if word == str(output) else word for word in command])
    assert log_of(output) == log_of(unbroken)
    for name, tensor in weights_of(unbroken).items():
        assert torch.equal(weights_of(output)[name], tensor), name


def stopped_in_step(step, command, tmp_path, number, **environment):
    """Start a run, signal it and its workers at the end of a step; return it when it has ended."""
    waits = Wait(tmp_path / "waits")
    training = start_training(
        command, tmp_path / "printed.txt", AtLogLine(step, waits), **environment
    )
    wait_until(waits.path.exists, training)
    training.signal_group(number)
    wait_until(lambda: "saves at the end of this step" in training.printed, training)
    waits.path.unlink()
    return training


@pytest.mark.parametrize(
    ("objective", "number", "exit_code", "workers"),
    [
        *((objective, signal.SIGTERM, 143, "fork") for objective in OBJECTIVES),
        ("dino", signal.SIGTERM, 143, "forkserver"),
        ("dino", signal.SIGINT, 130, "fork"),
    ],
)
def test_a_signal_to_a_run_and_its_workers_saves_the_step_and_exits_with_its_code(
    objective, number, exit_code, workers, two_classes, tmp_path
):
    output = tmp_path / "out"
    command = arguments(objective, two_classes, output, *OPTIONS, "--num_workers", 2)
    training = stopped_in_step(3, command, tmp_path, number, WORKERS=workers)
    assert training.exit_code() == exit_code, training.printed
    message = f"stopped by {number.name} and saved after step 3 of 9; go on with --resume true"
    assert message in training.printed
    assert "Traceback" not in training.printed
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step-00000003"]
    assert not (output / "config.json").exists()
    assert_resumes_to_the_unbroken_run(command, output, tmp_path)


def test_a_second_ctrl_c_ends_the_run_at_once(two_classes, tmp_path):
    command = arguments("mae", two_classes, tmp_path / "out", *OPTIONS)
    waits = Wait(tmp_path / "waits")
    training = start_training(command, tmp_path / "printed.txt", AtLogLine(3, waits))
    wait_until(waits.path.exists, training)
    training.signal_group(signal.SIGINT)
    training.signal_group(signal.SIGINT)  # at the same moment, as from a terminal and torchrun
    wait_until(lambda: "Ctrl-C again" in training.printed, training)
    time.sleep(2.5)
    assert training.process.is_alive()
    training.signal_group(signal.SIGINT)
    assert training.exit_code() == 130
    assert "saved after" not in training.printed
    assert not (tmp_path / "out" / "checkpoints").exists()


@pytest.mark.parametrize("signalled", [0, 1])
def test_two_processes_stop_at_the_same_step_whichever_is_signalled(
    signalled, two_classes, tmp_path
):
    command = arguments("dino", two_classes, tmp_path / "out", *OPTIONS)
    waits = Wait(tmp_path / "waits")
    processes = start_two(command, tmp_path, hooks=(AtLogLine(3, waits), None))
    wait_until(waits.path.exists, processes[0])
    processes[signalled].signal_group(signal.SIGTERM)
    waits.path.unlink()
    assert [process.exit_code() for process in processes] == [143, 143]
    # the other process may have asked already, at the end of step 3, whether anybody wants to stop
    (stopped,) = (tmp_path / "out" / "checkpoints").iterdir()
    assert stopped.name in ("step-00000003", "step-00000004")
    assert max(log_of(tmp_path / "out")) == int(stopped.name[-1])
    again = start_two([*command, "--resume", "true"], tmp_path)
    assert [process.exit_code() for process in again] == [0, 0], again[0].printed


def test_sigterm_to_torchrun_saves_too(two_classes, tmp_path):
    # torchrun signals the groups of its processes: workers of the DataLoader included
    options = ("--max_steps", 100_000, "--num_workers", 1)
    command = arguments("mae", two_classes, tmp_path / "out", *OPTIONS, *options)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    process = subprocess.Popen(
        [sys.executable, *launcher, "-m", "selfvit.training.train", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )
    log = tmp_path / "out" / "log.jsonl"
    deadline = time.monotonic() + PATIENCE
    while not (log.exists() and len(log.read_text().splitlines()) > 3):
        if process.poll() is not None or time.monotonic() > deadline:
            process.terminate()
            pytest.fail(process.communicate(timeout=PATIENCE)[0])
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert "stopped by SIGTERM and saved after step" in printed, printed
    checkpoints = list((tmp_path / "out" / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == [f"step-{max(log_of(tmp_path / 'out')):08d}"]


@pytest.fixture
def ctrl_c_as_in_a_terminal():
    """Python's own handler; a job in a shell script's background ignores Ctrl-C."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, inherited)


@pytest.mark.usefixtures("ctrl_c_as_in_a_terminal")
def test_handlers_come_back_and_a_signal_with_nothing_to_save_ends_at_once():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(SystemExit) as caught, StopSignal():
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.code == 143
    with pytest.raises(KeyboardInterrupt), StopSignal():
        os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_background_job_goes_on_ignoring_ctrl_c():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignal():
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
