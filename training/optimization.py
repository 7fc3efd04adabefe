"""The optimizer, its parameter groups, and the schedules of learning rate and weight decay."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable
from typing import Any

import torch

from ..modeling.modeling_selfvit import SelfViTPreTrainedModel
from ..modeling.schedules import cosine_schedule
from .config.training_config import OptimizerConfig, ScheduleConfig


def layer_index(name: str, num_layers: int) -> int:
    """Return the depth of a parameter, for layer-wise learning rate decay.

    (BEiT, arXiv 2106.08254, Appendix; used by MAE for fine-tuning.)

    Args:
        name: Name of the parameter.
        num_layers: Number of blocks of the encoder.

    Returns:
        0 for the embeddings, index + 1 for a block, and `num_layers` + 1 for all others.
    """
    if match := re.search(r"(?:^|\.)vit\.layers\.([0-9]+)\.", name):
        return int(match[1]) + 1
    return 0 if re.search(r"(?:^|\.)vit\.embeddings\.", name) else num_layers + 1


# Classes of bitsandbytes (arXiv 2110.02861), by the value of --optimizer.
BITSANDBYTES = {
    "adamw_bnb_8bit": "AdamW8bit",
    "paged_adamw_32bit": "PagedAdamW32bit",
    "paged_adamw_8bit": "PagedAdamW8bit",
}


def check_optimizer(config: OptimizerConfig, device: torch.device) -> None:
    """Check that the optimizer is available, before anything is written.

    Raises:
        ImportError: If the optimizer is from bitsandbytes, which is not installed.
        ValueError: If the optimizer is paged and the device is the CPU.
    """
    name = config.optimizer
    if name not in BITSANDBYTES:
        return
    _bitsandbytes_optimizers(name)
    if name.startswith("paged_") and device.type == "cpu":
        raise ValueError(
            f"--optimizer ({name}) needs a GPU, because it extends GPU memory by CPU memory, but "
            "this run is on the CPU; use adamw_bnb_8bit or adamw_torch_fused."
        )


def _bitsandbytes_optimizers(name: str) -> Any:
    try:
        return importlib.import_module("bitsandbytes.optim")
    except ImportError as error:
        raise ImportError(
            f"--optimizer ({name}) needs bitsandbytes, which is not installed; use: pip install "
            "'selfvit[bitsandbytes]', or use adamw_torch_fused."
        ) from error


def build_optimizer(
    model: SelfViTPreTrainedModel, config: OptimizerConfig
) -> torch.optim.Optimizer:
    """Return AdamW with a parameter group for each learning rate scale, with and without decay.

    Weight decay is not applied to biases, norms and other vectors (DINO, main_dino.py), nor to the
    model's `undecayed_parameters`. Each group has two more entries, which `set_schedules` reads:
    `scale`, its factor of the learning rate, and `decays`, whether weight decay is applied.

    Args:
        model: Model to train; parameters that do not require gradients are left out.
        config: Optimizer, betas and layer decay.
    """
    num_layers = model.config.num_hidden_layers
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.trained_parameters():
        if not parameter.requires_grad:
            continue
        scale = config.layer_decay ** (num_layers + 1 - layer_index(name, num_layers))
        decays = parameter.dim() > 1 and not name.endswith(".bias")
        decays = decays and name not in model.undecayed_parameters
        group = groups.setdefault(
            (scale, decays), {"params": [], "scale": scale, "decays": decays, "weight_decay": 0.0}
        )
        group["params"].append(parameter)
    # The learning rate is set before each step, by `set_schedules`.
    settings: dict[str, Any] = {"lr": 0.0, "betas": (config.adam_beta1, config.adam_beta2)}
    name = config.optimizer
    if name in BITSANDBYTES:
        optimizer = getattr(_bitsandbytes_optimizers(name), BITSANDBYTES[name])
        return optimizer(list(groups.values()), **settings)
    return torch.optim.AdamW(list(groups.values()), fused=True, **settings)


def optimized_parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    """Return the parameters of all groups, in the order of the optimizer's state."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def state_bytes(parameters: Iterable[torch.Tensor], name: str) -> int:
    """Return the bytes of an optimizer's moments, two for each element.

    8-bit moments have a scale for each 256 elements, and tensors with fewer than 4,096 elements
    have 32-bit moments (arXiv 2110.02861, Sec. 2; the numbers are those of bitsandbytes 0.50).

    Args:
        parameters: Trained parameters, float32.
        name: Value of --optimizer.
    """
    in_8_bits = name.endswith("8bit")
    return sum(
        2 * (parameter.numel() + 4 * -(-parameter.numel() // 256))
        if in_8_bits and parameter.numel() >= 4096
        else 2 * parameter.nbytes
        for parameter in parameters
    )


def set_schedules(
    optimizer: torch.optim.Optimizer, schedule: ScheduleConfig, step: int, num_steps: int
) -> float:
    """Set the learning rate and weight decay of every group for a step.

    Args:
        optimizer: Optimizer from `build_optimizer`.
        schedule: Peak values, final values and warm-up.
        step: Optimizer step, counted from 0.
        num_steps: Number of optimizer steps of the run.

    Returns:
        The learning rate of groups whose scale is 1.
    """
    learning_rate = cosine_schedule(
        step,
        num_steps,
        schedule.learning_rate,
        schedule.final_learning_rate,
        num_warmup_steps=round(schedule.warmup_ratio * num_steps),
    )
    end = schedule.weight_decay if schedule.weight_decay_end is None else schedule.weight_decay_end
    weight_decay = cosine_schedule(step, num_steps, schedule.weight_decay, end)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["scale"]
        group["weight_decay"] = weight_decay if group["decays"] else 0.0
    return learning_rate


__all__ = [
    "build_optimizer",
    "check_optimizer",
    "layer_index",
    "optimized_parameters",
    "set_schedules",
    "state_bytes",
]
