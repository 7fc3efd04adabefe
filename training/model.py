"""The model of a run: what it starts from, and how it is written for others to load."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from ..modeling.checkpoints.hub_revision import resolve_checkpoint
from ..modeling.checkpoints.loading import load_strictly
from ..modeling.modeling_selfvit import SelfViTModel
from ..modeling.registry import TRAINABLE_CLASSES
from .config.run_config import RunConfig
from .lora import (
    add_adapters,
)


def build_trainable(run: RunConfig) -> Any:
    """Build the model to train: from scratch, from an encoder, or from a whole checkpoint.

    An encoder that never trains (`freeze_encoder_ratio` 1) asks for no gradients.

    Raises:
        ImportError: if it is to get adapters, and PEFT is not installed.
        ValueError: if the checkpoint lacks a tensor or has one too many, or adapters are to be
            trained on random weights.
    """
    if run.lora.lora_rank is not None and run.start.init_from is None:
        raise ValueError(
            f"lora_rank ({run.lora.lora_rank}) trains adapters of weights that stand still, so "
            "these must be pretrained ones: give --init_from CHECKPOINT."
        )
    model = _starting_model(run)
    if run.schedule.freeze_encoder_ratio == 1:
        model.trained_encoder.requires_grad_(False)
    if run.lora.lora_rank is not None:
        add_adapters(model, run.lora, str(run.start.init_from))
    return model


def _starting_model(run: RunConfig) -> Any:
    model_class: type[PreTrainedModel] = TRAINABLE_CLASSES[run.architecture]
    if run.start.init_from is None:
        return model_class(run.model)
    checkpoint = resolve_checkpoint(run.start.init_from)
    if run.start.init_scope == "all":
        return load_strictly(model_class, checkpoint, config=run.model, dtype=torch.float32)
    model: Any = model_class(run.model)
    encoder = load_strictly(SelfViTModel, checkpoint, config=run.model, dtype=torch.float32)
    model.vit.load_state_dict(encoder.state_dict())
    model.init_student_from_teacher()
    return model


__all__ = ["build_trainable"]
