"""Build the model that a run trains."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from transformers import PreTrainedModel

from ..modeling.checkpoints.loading import load_strictly
from ..modeling.checkpoints.resolve import resolve_checkpoint
from ..modeling.modeling_selfvit import SelfViTModel
from ..modeling.registry import TRAINABLE_CLASSES
from .channels import adaptation_rule, adapted_weights, check_adaptable
from .config.from_checkpoint import read_config
from .config.run_config import RunConfig
from .depth import spaced_blocks, weights_of_blocks
from .lora import add_adapters

MAE = "SelfViTForMAE"


def build_trainable(run: RunConfig) -> Any:
    """Build the model to train: with random weights, a pretrained encoder, or a full checkpoint.

    If the encoder is never trained (`freeze_encoder_ratio` 1), its parameters do not require
    gradients.

    Raises:
        ImportError: If adapters are to be trained and PEFT is not installed.
        ValueError: If the checkpoint has missing or unexpected tensors, or adapters are to be
            trained without a checkpoint, or its patch embedding cannot be adapted to the channels.
    """
    if run.lora.lora_rank is not None and run.start.init_from is None:
        raise ValueError(
            f"--lora-rank ({run.lora.lora_rank}) keeps the encoder frozen, so its weights must be "
            "pretrained; give --init-from CHECKPOINT."
        )
    check_start_channels(run)
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
    config, num_channels = run.model, run.model.num_channels
    stored_channels = read_config(run.start.init_from).num_channels
    if stored_channels != num_channels:
        config = deepcopy(config)
        config.num_channels = stored_channels
    if run.start.init_scope == "all":
        stored = load_strictly(model_class, checkpoint, config=config, dtype=torch.float32)
        if stored_channels == num_channels:
            return stored
        adapted: Any = model_class(run.model)
        adapted.load_state_dict(adapted_weights(stored.state_dict(), num_channels))
        return adapted
    model: Any = model_class(run.model)
    num_blocks, num_wanted = _deeper_start(run), config.num_hidden_layers
    if num_blocks is not None:
        config = deepcopy(config)
        config.num_hidden_layers = num_blocks
    encoder = load_strictly(SelfViTModel, checkpoint, config=config, dtype=torch.float32)
    weights: Any = encoder.state_dict()
    if num_blocks is not None:
        weights = weights_of_blocks(weights, spaced_blocks(num_blocks, num_wanted))
    if stored_channels != num_channels:
        weights = adapted_weights(weights, num_channels)
    model.vit.load_state_dict(weights)
    model.init_student_from_teacher()
    return model


def _deeper_start(run: RunConfig) -> int | None:
    """Return the number of blocks of a checkpoint of which a student takes only some, or None.

    Raises:
        ValueError: If the student trains adapters, which need all blocks of their base.
    """
    num_blocks = read_config(str(run.start.init_from)).num_hidden_layers
    if run.model.distill_config is None or num_blocks <= run.model.num_hidden_layers:
        return None
    if run.lora.lora_rank is not None:
        raise ValueError(
            f"lora_rank ({run.lora.lora_rank}) adapts the encoder of --init-from with all its "
            f"{num_blocks} blocks, but the student has {run.model.num_hidden_layers}; leave out "
            "--lora-rank, or name another teacher with --teacher."
        )
    return num_blocks


def check_start_channels(run: RunConfig) -> None:
    """Check that the run can use the patch embedding of its checkpoint, if it starts from one.

    Raises:
        ValueError: If it has other channels and cannot be adapted.
    """
    if run.start.init_from is None:
        return
    stored, wanted = read_config(run.start.init_from).num_channels, run.model.num_channels
    if stored == wanted:
        return
    check_adaptable(stored, wanted)
    if run.start.init_scope == "all" and run.architecture == MAE:
        raise ValueError(
            f"init_scope (all) takes the decoder of MAE too, which predicts pixels of {stored} "
            f"channels, and num_channels is {wanted}; leave out --init-scope or --num-channels."
        )
    if run.lora.lora_rank is not None:
        raise ValueError(
            f"lora_rank ({run.lora.lora_rank}) keeps the weights of --init-from as they are, but "
            f"its {stored} channels must be adapted to num_channels ({wanted}); leave out "
            "--lora-rank or --num-channels."
        )


def channel_adaptation(run: RunConfig) -> str | None:
    """Return how the patch embedding was adapted to other channels, or None if it was not."""
    if run.start.init_from is None:
        return None
    stored = read_config(run.start.init_from).num_channels
    if stored == run.model.num_channels:
        return None
    return adaptation_rule(stored, run.model.num_channels)


__all__ = ["build_trainable", "channel_adaptation", "check_start_channels"]
