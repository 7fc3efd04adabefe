"""Build the model that a run trains."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from ..modeling.checkpoints.hub_revision import resolve_checkpoint
from ..modeling.checkpoints.loading import load_strictly
from ..modeling.modeling_selfvit import SelfViTModel
from ..modeling.registry import TRAINABLE_CLASSES
from .config.run_config import RunConfig
from .lora import add_adapters


def build_trainable(run: RunConfig) -> Any:
    """Build the model to train: with random weights, a pretrained encoder, or a full checkpoint.

    If the encoder is never trained (`freeze_encoder_ratio` 1), its parameters do not require
    gradients.

    Raises:
        ImportError: If adapters are to be trained and PEFT is not installed.
        ValueError: If the checkpoint has missing or unexpected tensors, or adapters are to be
            trained without a checkpoint.
    """
    if run.lora.lora_rank is not None and run.start.init_from is None:
        raise ValueError(
            f"--lora-rank ({run.lora.lora_rank}) keeps the encoder frozen, so its weights must be "
            "pretrained; give --init-from CHECKPOINT."
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
