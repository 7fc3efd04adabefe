"""Runs with Accelerate's FSDP2 on the CPU, which Accelerate itself supports on GPUs only.

One thing is patched: `AcceleratorState` selects FSDP on the CPU as it does with several GPUs. The
rest is real: processes, gloo, the launch file in the repository, the environment that Accelerate
derives from it, its preparation of model and optimizer, and torch's `fully_shard`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env

from .processes import (
    FORKSERVER,
    TIMEOUT,
    Hook,
    TrainingProcess,
    free_port,
    start_several,
    start_training,
)

LAUNCH_FILES = Path(__file__).parents[2] / "examples" / "launch"
SHARDED = LAUNCH_FILES / "8_gpus_fsdp2.yaml"


def force_fsdp() -> None:
    """Patch AcceleratorState to select FSDP on the CPU if Accelerate is configured for it."""
    decide = AcceleratorState.__init__

    def decide_for_fsdp(self: Any, *args: Any, fsdp_plugin: Any = None, **options: Any) -> None:
        decide(self, *args, fsdp_plugin=fsdp_plugin, **options)
        if fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            if self.mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self.mixed_precision)
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = decide_for_fsdp  # type: ignore[method-assign]


def environment_of(launch_file: Path) -> dict[str, str]:
    """Return the environment variables that `accelerate launch` sets from a launch file."""
    parsed = launch_command_parser().parse_args(["--config_file", str(launch_file), "script.py"])
    before = dict(os.environ)  # Accelerate's functions change os.environ
    try:
        arguments, _, _ = _validate_launch_command(parsed)
        environment = prepare_multi_gpu_env(arguments)
        return {name: value for name, value in environment.items() if before.get(name) != value}
    finally:
        os.environ.clear()
        os.environ.update(before)


def start_sharded(
    command: list[str],
    folder: Path,
    hooks: tuple[Hook | None, ...] = (None, None),
    **changes: str,
) -> list[TrainingProcess]:
    """Start a sharded run with one process for each hook, in float32 unless `changes` set it."""
    environment = environment_of(SHARDED) | {"ACCELERATE_MIXED_PRECISION": "no"} | changes
    return start_several(command, folder, hooks, force_fsdp, **environment)


def call_sharded(function: Callable[..., None], *arguments: Any) -> None:
    """Call a function in two processes set up for sharding; it must create the Accelerator."""
    environment = environment_of(SHARDED) | {"ACCELERATE_MIXED_PRECISION": "no"}
    port = free_port()
    processes = []
    for rank in ("0", "1"):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_PORT": port}
        place |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}
        process = FORKSERVER.Process(target=_call, args=(environment | place, function, arguments))
        process.start()
        processes.append(process)
    for process in processes:
        process.join(TIMEOUT)
    assert [process.exitcode for process in processes] == [0, 0]


def _call(environment: dict[str, str], function: Callable[..., None], arguments: Any) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    force_fsdp()
    function(*arguments)


def run_sharded(command: list[str], folder: Path, num_processes: int = 2, **changes: str) -> None:
    """Run a sharded training run and check that all processes succeed."""
    processes = start_sharded(command, folder, (None,) * num_processes, **changes)
    codes = [process.exit_code() for process in processes]
    assert codes == [0] * num_processes, "\n".join(process.printed for process in processes)


def output_of_failed_run(command: list[str], folder: Path, **changes: str) -> str:
    """Return the output of a run of one process; check that the run fails."""
    environment = environment_of(SHARDED) | {"ACCELERATE_MIXED_PRECISION": "no"} | changes
    process = start_training(command, folder / "printed.txt", None, force_fsdp, **environment)
    assert process.exit_code() != 0
    return process.printed
