"""The model of a run: what it starts from, and how it is written for others to load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from .. import PRETRAINING_CLASSES
from ..modeling.checkpoint_faults import WEIGHTS
from ..modeling.hub_revision import resolve_checkpoint
from ..modeling.loading import load_strictly
from ..modeling.modeling_selfvit import SelfViTForImageClassification, SelfViTModel
from ..sharing.adapter_files import ADAPTER
from ..sharing.provenance import CARD
from .adapters import (
    add_adapters,
    has_adapters,
    load_unmerged,
    merged_weights,
    save_adapter,
    save_unmerged,
)
from .run import Run
from .sharding import WholeModel

TRAINABLE_CLASSES = {
    model_class.__name__: model_class
    for model_class in (*PRETRAINING_CLASSES, SelfViTForImageClassification)
}


def build_trainable(run: Run) -> Any:
    """Build the model to train: from scratch, from an encoder, or from a whole checkpoint.

    An encoder that never trains (`freeze_encoder_ratio` 1) asks for no gradients.

    Raises:
        ImportError: if it is to get adapters, and PEFT is not installed.
        ValueError: if the checkpoint lacks a tensor or has one too many, or adapters are to be
            trained on random weights.
    """
    training = run.training
    if training.lora_rank is not None and training.init_from is None:
        raise ValueError(
            f"lora_rank ({training.lora_rank}) trains adapters of weights that stand still, so "
            "these must be pretrained ones: give --init_from CHECKPOINT."
        )
    model = _starting_model(run)
    if training.freeze_encoder_ratio == 1:
        model.trained_encoder.requires_grad_(False)
    if training.lora_rank is not None:
        add_adapters(model, training)
    return model


def _starting_model(run: Run) -> Any:
    training = run.training
    model_class: type[PreTrainedModel] = TRAINABLE_CLASSES[run.architecture]
    if training.init_from is None:
        return model_class(run.model)
    checkpoint = resolve_checkpoint(training.init_from)
    if training.init_scope == "all":
        return load_strictly(model_class, checkpoint, config=run.model, dtype=torch.float32)
    model: Any = model_class(run.model)
    encoder = load_strictly(SelfViTModel, checkpoint, config=run.model, dtype=torch.float32)
    model.vit.load_state_dict(encoder.state_dict())
    model.restart_from_encoder()
    return model


class ModelWriter:
    """Writes the model in training as a checkpoint that AutoModel opens, adapters merged.

    Args:
        whole: the model trained.
        processor: image processor to lay beside it.
        save_code: whether the model's code is laid beside it, too. That is for checkpoints that a
            run resumes from as well: they are opened to look at, and it is some 0.1 MB.
    """

    def __init__(self, whole: WholeModel, processor: Any, *, save_code: bool):
        self.whole = whole
        self.processor = processor
        self.save_code = save_code

    def write(self, folder: Path, card: str, *, to_resume: bool = False) -> None:
        """Write model, processor and card, as last gathered; for the main process alone.

        The card goes along, since whoever trains on from here must learn of the licence.

        Args:
            folder: of the checkpoint.
            card: its README.md.
            to_resume: whether `restore` will read it: what is merged does not give back its parts.
        """
        model = self.whole.model
        adapted = has_adapters(model)
        weights = merged_weights(model) if adapted else None
        model.save_pretrained(folder, save_code=self.save_code, state_dict=weights)
        if adapted:
            save_adapter(model.vit, folder / ADAPTER)
        if adapted and to_resume:
            save_unmerged(model, folder)
        self.processor.save_pretrained(folder)
        (folder / CARD).write_text(card, encoding="utf-8")

    def restore(self, folder: Path) -> None:
        """Read a checkpoint into the model in training, strictly; for all processes together."""
        if has_adapters(self.whole.trained):
            load_unmerged(self.whole.trained, folder)
        else:
            self.whole.load(load_file(folder / WEIGHTS))


__all__ = ["TRAINABLE_CLASSES", "ModelWriter", "build_trainable"]
