"""SIGTERM and Ctrl-C sent to real runs, which save their progress."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from selfvit.training.runtime.signals import StopSignal
from selfvit.training.train import main

from .processes import TIMEOUT, AtLogLine, Pause, start_training, start_two, wait_until
from .tiny_runs import OBJECTIVES, arguments, assert_equal_tensors, log_of, weights_of

OPTIONS = ("--max-steps", 9, "--batch-size", 4, "--save-steps", 100)


@dataclass
class AtFirstReportImage:
    """Call a function when the first image is opened after the checkpoint of the last step."""

    action: Callable[[], None]
    is_saved: bool = False

    def __call__(self, event, arguments):
        if event == "os.rename" and "step-00000002" in str(arguments[1]):
            self.is_saved = True
        elif self.is_saved and event == "open" and str(arguments[0]).endswith(".png"):
            self.is_saved = False
            self.action()


def assert_resumes_exactly(command, output, tmp_path):
    main([*command, "--resume"])
    uninterrupted = tmp_path / "uninterrupted"
    main([str(uninterrupted) if word == str(output) else word for word in command])
    assert log_of(output) == log_of(uninterrupted)
    assert_equal_tensors(weights_of(output), weights_of(uninterrupted))


def stopped_in_step(step, command, tmp_path, number, **environment):
    """Start a run, and signal it and its workers at the end of a step; return the process."""
    pause = Pause(tmp_path / "paused")
    training = start_training(
        command, tmp_path / "printed.txt", AtLogLine(step, pause), **environment
    )
    wait_until(pause.path.exists, training)
    training.signal_group(number)
    wait_until(lambda: "saving at the end of this step" in training.printed, training)
    pause.path.unlink()
    return training


@pytest.mark.parametrize(
    ("objective", "number", "exit_code", "workers"),
    [
        *((objective, signal.SIGTERM, 143, "fork") for objective in OBJECTIVES),
        ("dino", signal.SIGTERM, 143, "forkserver"),
        ("dino", signal.SIGINT, 130, "fork"),
    ],
)
def test_a_signal_to_a_run_and_its_workers_saves_a_checkpoint_and_sets_the_exit_code(
    objective, number, exit_code, workers, two_classes, tmp_path
):
    output = tmp_path / "out"
    command = arguments(objective, two_classes, output, *OPTIONS, "--num-workers", 2)
    training = stopped_in_step(3, command, tmp_path, number, WORKERS=workers)
    assert training.exit_code() == exit_code, training.printed
    message = f"stopped by {number.name} and saved after step 3 of 9; continue with --resume"
    assert message in training.printed
    assert "Traceback" not in training.printed
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step-00000003"]
    assert not (output / "config.json").exists()
    assert_resumes_exactly(command, output, tmp_path)


def test_a_second_ctrl_c_ends_the_run_at_once(two_classes, tmp_path):
    command = arguments("mae", two_classes, tmp_path / "out", *OPTIONS)
    pause = Pause(tmp_path / "paused")
    training = start_training(command, tmp_path / "printed.txt", AtLogLine(3, pause))
    wait_until(pause.path.exists, training)
    training.signal_group(signal.SIGINT)
    training.signal_group(signal.SIGINT)  # at the same moment, as from a terminal and torchrun
    wait_until(lambda: "Ctrl-C again" in training.printed, training)
    time.sleep(2.5)
    assert training.process.is_alive()
    training.signal_group(signal.SIGINT)
    assert training.exit_code() == 130
    assert "saved after" not in training.printed
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_ctrl_c_during_the_report_stops_measuring_and_saves_the_model(two_classes, tmp_path):
    # it printed "saving at the end of this step", measured to the end, and exited with 0
    output, pause = tmp_path / "out", Pause(tmp_path / "paused")
    steps = ("--max-steps", 2, "--report-images", 20)
    command = arguments("mae", two_classes, output, *OPTIONS, *steps)
    training = start_training(command, tmp_path / "printed.txt", AtFirstReportImage(pause))
    wait_until(pause.path.exists, training)
    training.signal_group(signal.SIGINT)
    assert training.exit_code() == 130, training.printed
    stops = "measuring stops, and the model is saved; press Ctrl-C again to stop at once"
    assert stops in training.printed and "at the end of this step" not in training.printed
    assert "stopped by SIGINT after the last step; the model is saved." in training.printed
    assert (output / "model.safetensors").exists() and not (output / "report.json").exists()


@pytest.mark.parametrize("signaled", [0, 1])
def test_two_processes_stop_at_the_same_step_if_either_is_signaled(signaled, two_classes, tmp_path):
    command = arguments("dino", two_classes, tmp_path / "out", *OPTIONS)
    pause = Pause(tmp_path / "paused")
    processes = start_two(command, tmp_path, hooks=(AtLogLine(3, pause), None))
    wait_until(pause.path.exists, processes[0])
    processes[signaled].signal_group(signal.SIGTERM)
    pause.path.unlink()
    assert [process.exit_code() for process in processes] == [143, 143]
    # the processes check for signals together at the end of each step, and the check of step 3 may
    # already be over in the other process
    (stopped,) = (tmp_path / "out" / "checkpoints").iterdir()
    assert stopped.name in ("step-00000003", "step-00000004")
    assert max(log_of(tmp_path / "out")) == int(stopped.name[-1])
    again = start_two([*command, "--resume"], tmp_path)
    assert [process.exit_code() for process in again] == [0, 0], again[0].printed


def test_sigterm_to_torchrun_saves_a_checkpoint(two_classes, tmp_path):
    # torchrun signals the process groups, including the workers of the DataLoader
    options = ("--max-steps", 100_000, "--num-workers", 1)
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
    deadline = time.monotonic() + TIMEOUT
    while not (log.exists() and len(log.read_text().splitlines()) > 3):
        if process.poll() is not None or time.monotonic() > deadline:
            process.terminate()
            pytest.fail(process.communicate(timeout=TIMEOUT)[0])
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode != 0
    assert "stopped by SIGTERM and saved after step" in printed, printed
    checkpoints = list((tmp_path / "out" / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == [f"step-{max(log_of(tmp_path / 'out')):08d}"]


@pytest.fixture
def default_ctrl_c_handler():
    """Install Python's default handler, because background jobs of a shell ignore Ctrl-C."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, inherited)


@pytest.mark.usefixtures("default_ctrl_c_handler")
def test_without_progress_to_save_a_signal_ends_the_run_at_once_and_handlers_are_restored():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(SystemExit) as caught, StopSignal():
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.code == 143
    with pytest.raises(KeyboardInterrupt), StopSignal():
        os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_background_job_still_ignores_ctrl_c():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignal():
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
