"""Build the model that a run trains."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from ..configuration.configuration_selfvit import SelfViTConfig
from ..modeling.checkpoints.loading import load_strictly
from ..modeling.checkpoints.resolve import resolve_checkpoint
from ..modeling.modeling_selfvit import SelfViTModel
from ..modeling.position_embeddings import resize_positions
from ..modeling.registry import TRAINABLE_CLASSES
from .channels import adaptation_rule, adapted_weights, check_adaptable
from .config.from_checkpoint import read_config
from .config.run_config import RunConfig
from .depth import spaced_blocks, weights_of_blocks
from .lora import add_adapters

MAE = "SelfViTForMAE"
MASK_TOKEN = r"mask_token$"


def build_trainable(run: RunConfig) -> Any:
    """Build the model to train: with random weights, a pretrained encoder, or a full checkpoint.

    If the encoder is never trained (`freeze_encoder_ratio` 1), its parameters do not require
    gradients, nor does a mask token that the objective does not use.

    Raises:
        ImportError: If adapters are to be trained and PEFT is not installed.
        ValueError: If the checkpoint has missing or unexpected tensors, or its patch embedding
            cannot be adapted to the channels, or adapters or Gram anchoring need a checkpoint and
            there is none.
    """
    if run.lora.lora_rank is not None and run.start.init_from is None:
        raise ValueError(
            f"--lora-rank ({run.lora.lora_rank}) keeps the encoder frozen, so its weights must be "
            "pretrained; give --init-from CHECKPOINT."
        )
    dinov2 = run.model.dinov2_config
    if dinov2 is not None and dinov2.gram_weight > 0 and run.start.init_from is None:
        raise ValueError(
            f"--gram-weight ({dinov2.gram_weight}) keeps patches close to those of the network "
            "that the run starts from; give --init-from CHECKPOINT, or --gram-weight 0."
        )
    check_start_channels(run)
    model = _starting_model(run)
    token = model.trained_encoder.embeddings.mask_token
    if token is not None and not model.uses_mask_token:
        token.requires_grad_(False)
    if run.schedule.freeze_encoder_ratio == 1:
        model.trained_encoder.requires_grad_(False)
    if run.lora.lora_rank is not None:
        add_adapters(model, run.lora, str(run.start.init_from))
    return model


def _starting_model(run: RunConfig) -> Any:
    model_class: Any = TRAINABLE_CLASSES[run.architecture]
    if run.start.init_from is None:
        return model_class(run.model)
    checkpoint = resolve_checkpoint(run.start.init_from)
    stored = read_config(run.start.init_from)
    config = _config_to_load(run.model, stored)
    if run.start.init_scope == "all":
        whole: Any = load_strictly(
            model_class,
            checkpoint,
            resizable=model_class.run_buffers,
            config=config,
            dtype=torch.float32,
        )
        if run.is_classifier:
            _sort_classes(whole.classifier, stored, run.model)
        if config is not run.model:
            fitted = _fitted_weights(whole.state_dict(), config, run.model)
            whole = model_class(run.model)
            whole.load_state_dict(fitted)
        whole.start_new_run()
        return whole
    model: Any = model_class(run.model)
    num_blocks = _deeper_start(run, stored.num_hidden_layers)
    to_load = config
    if num_blocks is not None:
        to_load = deepcopy(config)
        to_load.num_hidden_layers = num_blocks
    has_new_token = run.model.use_mask_token and not stored.use_mask_token
    encoder = load_strictly(
        SelfViTModel,
        checkpoint,
        new=(MASK_TOKEN,) if has_new_token else (),
        config=to_load,
        dtype=torch.float32,
    )
    weights: Any = encoder.state_dict()
    if num_blocks is not None:
        weights = weights_of_blocks(weights, spaced_blocks(num_blocks, run.model.num_hidden_layers))
    model.vit.load_state_dict(_fitted_weights(weights, config, run.model))
    model.init_student_from_teacher()
    return model


@torch.no_grad()
def _sort_classes(classifier: nn.Linear, stored: SelfViTConfig, wanted: SelfViTConfig) -> None:
    """Bring the classes of a stored classifier into the order of the data.

    Raises:
        ValueError: If they are not the classes of the data.
    """
    names, found = (list((config.id2label or {}).values()) for config in (stored, wanted))
    if names == found or names == [f"LABEL_{index}" for index in range(len(names))]:
        return
    if sorted(names) != sorted(found):
        raise ValueError(
            f"--init-scope all keeps the classifier, but its classes ({', '.join(names)}) are not "
            f"those of the data ({', '.join(found)}); leave it out for a new classifier."
        )
    order = [names.index(name) for name in found]
    for parameter in classifier.parameters():
        parameter.copy_(parameter[order].clone())


def _config_to_load(wanted: SelfViTConfig, stored: SelfViTConfig) -> SelfViTConfig:
    """Return the configuration of the run with the channels and the grid of the checkpoint."""
    same_grid = wanted.patch_size != stored.patch_size or wanted.grid_size == stored.grid_size
    if same_grid and wanted.num_channels == stored.num_channels:
        return wanted
    config = deepcopy(wanted)
    config.num_channels = stored.num_channels
    config.image_size = wanted.image_size if same_grid else stored.image_size
    return config


def _fitted_weights(
    weights: dict[str, Tensor], config: SelfViTConfig, wanted: SelfViTConfig
) -> dict[str, Tensor]:
    """Return weights with patch embeddings and positions that fit the wanted configuration.

    Positions are interpolated as in the forward pass, fixed ones too: if they were computed for a
    larger grid, neighboring patches would be farther apart than in pretraining.
    """
    if config.num_channels != wanted.num_channels:
        weights = adapted_weights(weights, wanted.num_channels)
    return resize_positions(
        weights, config.grid_size, wanted.grid_size, wanted.interpolate_antialias
    )


def _deeper_start(run: RunConfig, num_blocks: int) -> int | None:
    """Return the number of blocks of the checkpoint if a student takes only some, or None.

    Args:
        run: Run that starts from the checkpoint.
        num_blocks: Number of blocks of the checkpoint.

    Raises:
        ValueError: If the student trains adapters, which need all blocks of their base.
    """
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
