"""Save and load the optimizer state, sharded or not."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from accelerate.checkpointing import load_accelerator_state, save_accelerator_state
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from ..optimization import optimized_parameters
from ..runtime.fsdp import is_sharded

OPTIMIZER = "optimizer.bin"  # file of an unsharded state, as Accelerate names it
SHARDED_OPTIMIZER = "optimizer"  # folder of a sharded state, with a file for each process


def save_state(accelerator: Accelerator, model: nn.Module, optimizer: Any, folder: Path) -> None:
    """Save what a resume needs besides the model: optimizer, scaler, random states; collective.

    Args:
        accelerator: Accelerator that prepared the model and the optimizer.
        model: Model in training.
        optimizer: Optimizer as Accelerate prepared it.
        folder: Checkpoint folder, on a file system that all processes share.
    """
    if not is_sharded(accelerator):
        accelerator.save_state(str(folder), safe_serialization=True)
        return
    names = {parameter: name for name, parameter in model.named_parameters()}
    state = {
        f"{names[parameter]}.{key}": value
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }
    dcp.save(state, checkpoint_id=folder / SHARDED_OPTIMIZER)
    nothing: list[Any] = []
    save_accelerator_state(
        str(folder), nothing, nothing, nothing, nothing,
        accelerator.process_index, accelerator.step, accelerator.scaler,
    )  # fmt: skip


def load_state(accelerator: Accelerator, model: nn.Module, optimizer: Any, folder: Path) -> None:
    """Load what `save_state` saved; collective.

    A sharded state can be loaded into an unsharded model, an unsharded state into a sharded model,
    and a sharded state by a different number of processes.
    """
    was_sharded = (folder / SHARDED_OPTIMIZER).is_dir()
    if not was_sharded and not is_sharded(accelerator):
        accelerator.load_state(str(folder))
        return
    if was_sharded:
        _load_shards(model, optimizer, folder / SHARDED_OPTIMIZER)
    else:
        _load_unsharded(optimizer, folder / OPTIMIZER)
    nothing: list[Any] = []
    changed = load_accelerator_state(
        str(folder), nothing, nothing, nothing, nothing,
        accelerator.process_index, accelerator.scaler,
    )  # fmt: skip
    accelerator.step = changed.get("step", accelerator.step)


def _load_shards(model: nn.Module, optimizer: Any, folder: Path) -> None:
    """Load this process's shard of each tensor, regardless of how many processes saved them."""
    parameters = dict(model.named_parameters())
    saved: dict[str, Any] = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    state: dict[str, Tensor] = {}
    for name, metadata in saved.items():
        parameter = parameters[name.rpartition(".")[0]].detach()
        state[name] = (
            torch.zeros_like(parameter, dtype=metadata.properties.dtype)
            if metadata.size == parameter.shape
            else torch.zeros((), device=parameter.device)  # step count, a scalar
        )
    # A single process may load what several processes saved.
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    dcp.load(state, checkpoint_id=folder)
    optimizer.state.clear()
    for name, value in state.items():
        parameter_name, _, key = name.rpartition(".")
        optimizer.state[parameters[parameter_name]][key] = value


def _load_unsharded(optimizer: Any, file: Path) -> None:
    """Load the state of an unsharded run, and shard it if the parameters are sharded."""
    saved = torch.load(file, weights_only=True, map_location="cpu", mmap=True)["state"]
    parameters = optimized_parameters(optimizer)
    optimizer.state.clear()
    for index, values in saved.items():
        parameter = parameters[index]
        for key, value in values.items():
            value = value.to(parameter.device)
            if isinstance(parameter, DTensor) and value.shape == parameter.shape:
                value = distribute_tensor(value, parameter.device_mesh, parameter.placements)
            optimizer.state[parameter][key] = value


__all__ = ["load_state", "save_state"]
