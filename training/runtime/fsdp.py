"""FSDP2: shard parameters, gradients and optimizer state over processes, with Accelerate.

(PyTorch's `fully_shard`, after ZeRO, arXiv 1910.02054.) Each parameter is sharded along its first
axis, in the student and the teacher alike, so the teacher is updated shard by shard. Buffers (the
center, running statistics) are not sharded and are equal in all processes.

A checkpoint has the full model, as safetensors that AutoModel opens. The optimizer's state, which
is as large or twice as large, is saved sharded: each process writes its own shard, and only a
resume reads them.
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
    """Return whether Accelerate shards the model over processes when it prepares it."""
    return accelerator.distributed_type == DistributedType.FSDP


def num_shards(accelerator: Accelerator) -> int:
    """Return the number of processes that one copy of the model is sharded over.

    With hybrid sharding each machine has a copy, sharded over its own processes.
    """
    if not is_sharded(accelerator):
        return 1
    mesh = accelerator.parallelism_config
    return accelerator.num_processes // (1 if mesh is None else mesh.dp_replicate_size)


def configure_fsdp(accelerator: Accelerator, optimizer: str) -> None:
    """Adapt Accelerate's FSDP configuration to selfvit's models; no effect without FSDP.

    Args:
        accelerator: Accelerator, before it prepares the model.
        optimizer: Value of --optimizer.

    Raises:
        ValueError: If the FSDP configuration does not support the models or the optimizer.
    """
    if not is_sharded(accelerator):
        return
    if optimizer != "adamw_torch_fused":
        raise ValueError(
            f"--optimizer ({optimizer}) has states that FSDP2 cannot shard; use adamw_torch_fused, "
            "whose states are sharded."
        )
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ValueError(
            f"fsdp_version ({plugin.fsdp_version}) must be 2, since version 1 flattens parameters "
            "and the teacher could not be updated; set fsdp_version: 2, as in "
            "examples/launch/8_gpus_fsdp2.yaml."
        )
    if plugin.activation_checkpointing:
        raise ValueError(
            "fsdp_activation_checkpointing must be false, since it would recompute blocks with a "
            "different drop path; give --activation-checkpointing instead."
        )
    # This option would build the model in one process only, which fails for models with buffers.
    # Here every process builds it from the same seed or checkpoint, in CPU memory.
    plugin.cpu_ram_efficient_loading = False
    disable_fsdp_ram_efficient_loading()
    if plugin.mixed_precision_policy is not None:
        # As with DDP, autocast chooses the dtype of each operation, so inputs are not cast and the
        # loss is float32. Weights are gathered in half precision, gradients reduced in float32.
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=plugin.mixed_precision_policy.param_dtype,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        )
    # The warning is about in-place changes of a block's output, which these models do not make.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor")


class FullModel:
    """Model in training, with full weights that one process can write or evaluate.

    Without sharding, `gathered` is the model itself. With sharding, it is a copy on the CPU of the
    main process, which `gather` updates.

    Args:
        accelerator: Accelerator, which determines whether the model is sharded.
        module: Model, before Accelerate prepares it.

    Attributes:
        module: Model in training, sharded or not.
        gathered: Model with full weights, as of the last `gather`; main process only.
    """

    def __init__(self, accelerator: Accelerator, module: nn.Module):
        self.module: Any = module
        self.is_sharded = is_sharded(accelerator)
        self.is_copy = self.is_sharded and accelerator.is_main_process
        # the other processes never use it
        self.gathered: Any = copy.deepcopy(module) if self.is_copy else module

    def gather(self) -> None:
        """Update `gathered` with the current weights; collective."""
        if not self.is_sharded:
            return
        # the state is empty in the other processes
        state = get_model_state_dict(
            self.module, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
        )
        if self.is_copy:
            self.gathered.load_state_dict(state)

    def load(self, state: dict[str, Any]) -> None:
        """Load weights in place, strictly, so that the optimizer keeps its parameters; collective.

        Args:
            state: Full weights by name, in every process, for example from a memory-mapped file.

        Raises:
            RuntimeError: If a tensor is missing, unexpected, or of another shape.
        """
        if not self.is_sharded:
            self.module.load_state_dict(state)
            return
        own = self.module.state_dict()
        shapes = [
            {name: tuple(tensor.shape) for name, tensor in part.items()} for part in (own, state)
        ]
        if shapes[0] != shapes[1]:  # torch would silently keep the values of missing tensors
            different = sorted(dict(shapes[0].items() ^ shapes[1].items()))
            raise RuntimeError(
                f"the weights do not match the model's names and shapes: {', '.join(different)}."
            )
        set_model_state_dict(self.module, state, options=StateDictOptions(full_state_dict=True))


__all__ = ["FullModel", "is_sharded", "num_shards", "configure_fsdp"]
