"""FSDP2: parameters, gradients and optimizer state divided over processes, through Accelerate.

(PyTorch's `fully_shard`; the idea is ZeRO's, arXiv 1910.02054.) Each parameter is divided along its
first axis, student's and teacher's alike, so the teacher moves shard by shard. Buffers (the center,
running statistics) stay whole and equal in all processes.

A checkpoint holds the model whole, as safetensors that AutoModel opens, and the optimizer's state,
as large or twice as large, as the processes have it: each writes its own part, and only a resume
reads them.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, disable_fsdp_ram_efficient_loading
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.fsdp import MixedPrecisionPolicy


def is_sharded(accelerator: Accelerator) -> bool:
    """Say whether the model is, or will be when it is prepared, divided over processes."""
    return accelerator.distributed_type == DistributedType.FSDP


def num_shards(accelerator: Accelerator) -> int:
    """Return how many processes share one model: those of a machine, where machines have copies."""
    if not is_sharded(accelerator):
        return 1
    mesh = accelerator.parallelism_config
    return accelerator.num_processes // (1 if mesh is None else mesh.dp_replicate_size)


def configure_fsdp(accelerator: Accelerator, optimizer: str) -> None:
    """Fit Accelerate's FSDP configuration to these models; nothing without one.

    Raises:
        ValueError: if it asks for what does not go together with them, or with the run.
    """
    if not is_sharded(accelerator):
        return
    if optimizer != "adamw_torch_fused":
        raise ValueError(
            f"optimizer ({optimizer!r}) keeps states that FSDP2 cannot divide; use "
            "adamw_torch_fused, whose states are divided already."
        )
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ValueError(
            f"fsdp_version ({plugin.fsdp_version}) must be 2: version 1 flattens parameters, and a "
            "teacher cannot follow. Set fsdp_version: 2, as examples/launch/8_gpus_fsdp2.yaml has."
        )
    if plugin.activation_checkpointing:
        raise ValueError(
            "fsdp_activation_checkpointing recomputes blocks with another drop path; set it to "
            "false, and give --activation-checkpointing instead."
        )
    # It would build the model in one process only, which fails for models with buffers. Every
    # process builds it from the same seed or checkpoint, in the memory of its host.
    plugin.cpu_ram_efficient_loading = False
    disable_fsdp_ram_efficient_loading()
    if plugin.mixed_precision_policy is not None:
        # As with DDP, autocast decides what each operation runs in, so inputs stay as they are and
        # the loss is float32. Weights travel in half precision; gradients are summed in float32.
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=plugin.mixed_precision_policy.param_dtype,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        )
    # what a block returns is not changed in place
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor")


class FullModel:
    """The model in training as one process alone can use it, to write it or evaluate it.

    Where it is not sharded that is the model itself. Where it is, the main process has a copy on
    the CPU, which `gather` brings up to date.

    Args:
        accelerator: says whether the model will be sharded.
        module: The model, before Accelerate prepares it.
    """

    def __init__(self, accelerator: Accelerator, module: nn.Module):
        self.module: Any = module
        self.is_sharded = is_sharded(accelerator)
        self.is_copy = self.is_sharded and accelerator.is_main_process
        # other processes never compute with it
        self.gathered: Any = copy.deepcopy(module) if self.is_copy else module

    def gather(self) -> None:
        """Bring `gathered` up to date; collective."""
        if not self.is_sharded:
            return
        # empty in other processes
        state = get_model_state_dict(
            self.module, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
        )
        if self.is_copy:
            self.gathered.load_state_dict(state)

    def load(self, state: dict[str, Any]) -> None:
        """Load weights into the very parameters that the optimizer holds, strictly; collective.

        Args:
            state: all of them, whole, in every process: as of a file that is mapped to memory.

        Raises:
            RuntimeError: if a tensor is missing, one too many, or of another shape.
        """
        if not self.is_sharded:
            self.module.load_state_dict(state)
            return
        own = self.module.state_dict()
        shapes = [
            {name: tuple(tensor.shape) for name, tensor in part.items()} for part in (own, state)
        ]
        if shapes[0] != shapes[1]:  # of missing ones, torch would keep the old values
            different = sorted(dict(shapes[0].items() ^ shapes[1].items()))
            raise RuntimeError(f"the weights do not fit the model: {', '.join(different)}.")
        set_model_state_dict(self.module, state, options=StateDictOptions(full_state_dict=True))


__all__ = ["FullModel", "is_sharded", "num_shards", "configure_fsdp"]
