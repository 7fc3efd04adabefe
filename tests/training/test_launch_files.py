"""The launch files under examples/launch, read by Accelerate; those for a CPU are run."""

import json
import os
import subprocess
from functools import partial

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

from selfvit.training import run_folder

from .processes import start_several
from .sharded_runs import LAUNCH_FILES, environment_of, run_sharded
from .tiny_runs import arguments, start

FILES = sorted(LAUNCH_FILES.glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_accelerate_reads_each_launch_file_as_its_name_says(file):
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


def test_every_launch_file_says_whether_it_was_run():
    for file in FILES:
        assert "Status: " in file.read_text(), file
        assert isinstance(yaml.safe_load(file.read_text()), dict)


def test_the_launch_file_for_a_cpu_trains_in_two_processes(two_classes, tmp_path):
    options = ("--max_steps", 1, "--batch_size", 8, "--cpu", "true")
    command = arguments("mae", two_classes, tmp_path / "out", *options)
    launcher = ["-m", "accelerate.commands.launch", "--config_file"]
    process = start([*launcher, str(LAUNCH_FILES / "2_cpu_processes.yaml"), "-m"], command)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    state = tmp_path / "out" / "checkpoints" / "step-00000001" / "trainer_state.json"
    assert json.loads(state.read_text())["num_processes"] == 2


def test_the_slurm_script_is_a_shell_script_and_names_files_that_are_there():
    script = LAUNCH_FILES / "slurm_4_nodes.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert (LAUNCH_FILES / "4_nodes_ddp.yaml").name in script.read_text()


def test_a_dry_run_counts_the_share_of_a_process(two_classes, tmp_path):
    options = ("--max_steps", 1, "--batch_size", 8, "--dry_run", "true")
    run_sharded(arguments("dino", two_classes, tmp_path / "out", *options), tmp_path)
    printed = (tmp_path / "printed-0.txt").read_text()
    assert "blocks gathered" in printed and not (tmp_path / "out").exists()


def _work_in_a_folder_of_its_own(parent):
    run_folder.SECONDS_TO_APPEAR = 1.0
    folder = parent / os.environ["RANK"]
    folder.mkdir()
    os.chdir(folder)


def test_an_output_that_machines_do_not_share_is_named(two_classes, tmp_path):
    command = arguments("mae", two_classes, "out", "--max_steps", 1, "--batch_size", 8)
    before = partial(_work_in_a_folder_of_its_own, tmp_path)
    processes = start_several(command, tmp_path, (None, None), before)
    assert [process.exit_code() for process in processes] == [2, 2]
    assert "Choose an --output that all machines share" in processes[1].printed
