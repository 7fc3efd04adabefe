"""The optimizer: which parameters learn how fast, and which decay."""

from __future__ import annotations

import re
from typing import Any

import torch

from ..modeling.modeling_selfvit import SelfViTPreTrainedModel
from ..modeling.schedules import cosine_schedule
from .run import TrainingConfig


def layer_index(name: str, num_layers: int) -> int:
    """Return the depth of a parameter: 0 for embeddings, block + 1, and above all blocks the rest.

    (BEiT, arXiv 2106.08254, Appendix; used by MAE for fine-tuning.)
    """
    if match := re.search(r"(?:^|\.)vit\.layers\.([0-9]+)\.", name):
        return int(match[1]) + 1
    return 0 if re.search(r"(?:^|\.)vit\.embeddings\.", name) else num_layers + 1


def build_optimizer(model: SelfViTPreTrainedModel, training: TrainingConfig) -> torch.optim.AdamW:
    """Return AdamW with one group for each pair of (layer's learning rate, decays or not).

    Biases, norms and other vectors do not decay (DINO, main_dino.py), nor what the model's
    `undecayed_parameters` names. Each group carries `scale`
    (its factor of the learning rate) and `decays`, which `set_schedules` reads.
    """
    num_layers = model.config.num_hidden_layers
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.trained_parameters():
        if not parameter.requires_grad:
            continue
        scale = training.layer_decay ** (num_layers + 1 - layer_index(name, num_layers))
        decays = parameter.dim() > 1 and not name.endswith(".bias")
        decays = decays and name not in model.undecayed_parameters
        group = groups.setdefault(
            (scale, decays), {"params": [], "scale": scale, "decays": decays, "weight_decay": 0.0}
        )
        group["params"].append(parameter)
    return torch.optim.AdamW(
        list(groups.values()),
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        fused=True,
    )


def set_schedules(
    optimizer: torch.optim.Optimizer, training: TrainingConfig, step: int, num_steps: int
) -> float:
    """Give every group its rate and weight decay of this step; return the learning rate."""
    learning_rate = cosine_schedule(
        step,
        num_steps,
        training.learning_rate,
        training.min_learning_rate,
        num_warmup_steps=round(training.warmup_ratio * num_steps),
    )
    end = training.weight_decay if training.weight_decay_end is None else training.weight_decay_end
    weight_decay = cosine_schedule(step, num_steps, training.weight_decay, end)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["scale"]
        group["weight_decay"] = weight_decay if group["decays"] else 0.0
    return learning_rate


__all__ = ["build_optimizer", "layer_index", "set_schedules"]
