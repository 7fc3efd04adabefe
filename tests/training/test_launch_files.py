"""The launch files in examples/launch; docs/scaling.md runs the one for the CPU."""

import json
import os
import shutil
import subprocess
from functools import partial

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

from selfvit.training.checkpoints import run_folder

from .processes import (
    TIMEOUT,
    free_port,
    launched_environments,
    start_several,
    start_training,
)
from .sharded_runs import LAUNCH_FILES, environment_of, run_sharded
from .tiny_runs import arguments, start

ROOT = LAUNCH_FILES.parents[1]
FILES = sorted(LAUNCH_FILES.glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_launch_file_has_the_devices_and_the_strategy_of_its_name(file):
    config = load_config_from_file(str(file))  # an unknown name is an error
    number, unit, *rest = file.stem.split("_")
    assert config.num_processes == int(number) * (8 if unit == "nodes" else 1)
    assert config.num_machines == (int(number) if unit == "nodes" else 1)
    assert config.use_cpu == (unit == "cpu")
    expected = DistributedType.MULTI_GPU if config.num_processes > 1 else DistributedType.NO
    assert config.distributed_type == (DistributedType.FSDP if "fsdp2" in rest else expected)
    environment = environment_of(file)
    if "fsdp2" in rest:
        assert environment["FSDP_VERSION"] == "2"
        assert environment["FSDP_AUTO_WRAP_POLICY"] == "TRANSFORMER_BASED_WRAP"
    if unit == "nodes" and "fsdp2" in rest:
        sizes = [
            environment[f"PARALLELISM_CONFIG_DP_{name}_SIZE"] for name in ("REPLICATE", "SHARD")
        ]
        assert sizes == ["4", "8"]


def test_several_processes_without_a_process_group_are_an_error(two_classes, tmp_path):
    # without --cpu and without GPUs, each process used to train alone, in the same folder
    command = arguments("mae", two_classes, tmp_path / "out", "--max-steps", 1, "--batch-size", 6)
    no_gpu = {"ACCELERATE_USE_CPU": "false", "CUDA_VISIBLE_DEVICES": ""}
    for training in start_several(command, tmp_path, (None, None), **no_gpu):
        assert training.exit_code() == 2, training.printed
        assert "2 processes were launched" in training.printed and "give --cpu" in training.printed
    assert not (tmp_path / "out").exists()


def test_every_process_reports_an_output_folder_that_is_not_a_run(two_classes, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    command = arguments("mae", two_classes, tmp_path / "out", "--max-steps", 1, "--batch-size", 6)
    for training in start_several(command, tmp_path, (None, None)):
        assert training.exit_code() == 2, training.printed
        assert "holds something other than a run; choose another --output" in training.printed


def test_processes_that_see_different_images_are_an_error(two_classes, tmp_path):
    shutil.copytree(two_classes, tmp_path / "copy")
    next((tmp_path / "copy").rglob("*.png")).unlink()
    processes = [
        start_training(
            arguments("mae", data, tmp_path / "out", "--max-steps", 1, "--batch-size", 6),
            tmp_path / f"printed-{rank}.txt",
            **environment,
        )
        for rank, (data, environment) in enumerate(
            zip((two_classes, tmp_path / "copy"), launched_environments(2), strict=True)
        )
    ]
    for training in processes:
        assert training.exit_code() == 2, training.printed
        assert "the processes do not see the same images: rank 0 has 24 " in training.printed
        assert ", rank 1 has 23 " in training.printed
    assert not (tmp_path / "out").exists()


def test_an_error_under_a_launcher_is_one_line_without_traceback(
    python_with_selfvit, two_classes, tmp_path
):
    command = arguments("mae", two_classes, tmp_path / "out", "--max-steps", 1, "--batch-size", 98)
    file = str(LAUNCH_FILES / "2_cpu_processes.yaml")
    launcher = ["-m", "accelerate.commands.launch", "--config_file", file]
    launcher += ["--main_process_port", free_port(), "-m"]
    processes = {"PYTHON_EXEC": str(python_with_selfvit)}
    training = start(python_with_selfvit, launcher, [*command, "--cpu"], **processes)
    printed, _ = training.communicate(timeout=TIMEOUT)
    assert training.returncode != 0
    lines = [line for line in printed.splitlines() if line.startswith("error: ")]
    # the launcher may end the second process before it prints the same error
    assert lines and all("is larger than the dataset" in line for line in lines), printed
    assert "selfvit/training/train.py" not in printed  # no traceback but the launcher's own


def test_every_launch_file_has_a_status():
    for file in [*FILES, LAUNCH_FILES / "slurm_4_nodes.sh"]:
        assert "Status: " in file.read_text(), file


SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
for ((node = 0; node < SLURM_NNODES; node++)); do SLURM_NODEID=$node "$@" & done
for job in $(jobs -p); do wait "$job" || exit 1; done
"""


def test_the_slurm_script_trains_on_two_nodes_and_resumes_if_submitted_again(
    python_with_selfvit, two_classes, tmp_path
):
    # srun and scontrol are replaced by scripts that use this machine as every node
    add_command(tmp_path, "srun", SRUN)
    add_command(tmp_path, "scontrol", "#!/bin/bash\necho localhost\n")
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{python_with_selfvit.parent}:{os.environ['PATH']}",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "1",
        "SLURM_JOB_NODELIST": "node[0-1]",
        "PORT": free_port(),
        "ACCELERATE_USE_CPU": "true",
        "PYTHON_EXEC": str(python_with_selfvit),  # of the processes that the launchers start
    }
    out = tmp_path / "out"
    options = ("--max-steps", 1, "--batch-size", 8, "--mixed-precision", "no")
    script = ["bash", str(LAUNCH_FILES / "slurm_4_nodes.sh")]
    command = [*script, *arguments("mae", two_classes, out, *options)]

    def submit():
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    submit()
    state = out / "checkpoints" / "step-00000001" / "trainer_state.json"
    assert json.loads(state.read_text())["num_processes"] == 2
    add_command(tmp_path, "accelerate", '#!/bin/bash\necho "$@"\n')  # prints its arguments
    assert submit().count("--resume") == 2


def add_command(folder, name, text):
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def test_a_dry_run_with_fsdp_plans_the_memory_of_one_shard(two_classes, tmp_path):
    options = ("--max-steps", 1, "--batch-size", 8, "--dry-run")
    run_sharded(arguments("dino", two_classes, tmp_path / "out", *options), tmp_path)
    printed = (tmp_path / "printed-0.txt").read_text()
    assert "gathered blocks" in printed and not (tmp_path / "out").exists()


def _work_in_a_separate_folder(parent):
    run_folder.SECONDS_TO_APPEAR = 1.0
    folder = parent / os.environ["RANK"]
    folder.mkdir()
    os.chdir(folder)


def test_an_output_folder_that_is_not_shared_by_all_machines_is_an_error(two_classes, tmp_path):
    command = arguments("mae", two_classes, "out", "--max-steps", 1, "--batch-size", 8)
    before = partial(_work_in_a_separate_folder, tmp_path)
    processes = start_several(command, tmp_path, (None, None), before)
    assert [process.exit_code() for process in processes] == [2, 2]
    assert "choose an --output that all machines share" in processes[1].printed
