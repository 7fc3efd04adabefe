"""Runs under Accelerate's FSDP2 on the CPU, which Accelerate itself offers for GPUs only.

What is forced: AcceleratorState is told that this is FSDP, as it decides by itself where it finds
several GPUs. All else is real: processes, gloo, the launch file that is shipped and what Accelerate
makes of it, its preparation of model and optimizer, torch's `fully_shard`.
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
    PATIENCE,
    Hook,
    TrainingProcess,
    free_port,
    start_several,
    start_training,
)

LAUNCH_FILES = Path(__file__).parents[2] / "examples" / "launch"
SHARDED = LAUNCH_FILES / "8_gpus_fsdp2.yaml"


def force_fsdp() -> None:
    """Make AcceleratorState take FSDP where Accelerate was configured for it, on a CPU too."""
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
    """Return what `accelerate launch` tells its processes of a launch file."""
    parsed = launch_command_parser().parse_args(["--config_file", str(launch_file), "script.py"])
    before = dict(os.environ)  # which Accelerate's functions write into
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
    """Start a run of some processes, sharded as the launch file says, in float32 unless changed."""
    environment = environment_of(SHARDED) | {"ACCELERATE_MIXED_PRECISION": "no"} | changes
    return start_several(command, folder, hooks, force_fsdp, **environment)


def call_sharded(function: Callable[..., None], *arguments: Any) -> None:
    """Call a function in each of two processes that are to shard; it makes its Accelerator."""
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
        process.join(PATIENCE)
    assert [process.exitcode for process in processes] == [0, 0]


def _call(environment: dict[str, str], function: Callable[..., None], arguments: Any) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    force_fsdp()
    function(*arguments)


def run_sharded(command: list[str], folder: Path, num_processes: int = 2, **changes: str) -> None:
    """Run it to its end."""
    processes = start_sharded(command, folder, (None,) * num_processes, **changes)
    codes = [process.exit_code() for process in processes]
    assert codes == [0] * num_processes, "\n".join(process.printed for process in processes)


def refusal_of(command: list[str], folder: Path, **changes: str) -> str:
    """Return what one process prints that ends with an error."""
    environment = environment_of(SHARDED) | {"ACCELERATE_MIXED_PRECISION": "no"} | changes
    process = start_training(command, folder / "printed.txt", None, force_fsdp, **environment)
    assert process.exit_code() != 0
    return process.printed
