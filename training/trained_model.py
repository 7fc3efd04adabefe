"""The model of a run: what it starts from, and how it is written for others to load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from ..modeling.hub_revision import resolve_checkpoint
from ..modeling.loading import load_strictly
from ..modeling.modeling_selfvit import SelfViTModel
from ..sharing.provenance import CARD
from .run import Run
from .sharding import WholeModel


def build_trainable(run: Run, model_class: type[PreTrainedModel]) -> Any:
    """Build the model to train: from scratch, from an encoder, or from a whole checkpoint.

    Raises:
        ValueError: if the checkpoint lacks a tensor or has one too many.
    """
    training = run.training
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
    """Writes the model in training as a checkpoint that AutoModel opens.

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

    def write(self, folder: Path, card: str) -> None:
        """Write model, processor and card, as last gathered; for the main process alone.

        The card goes along, since whoever trains on from here must learn of the licence.
        """
        self.whole.model.save_pretrained(folder, save_code=self.save_code)
        self.processor.save_pretrained(folder)
        (folder / CARD).write_text(card, encoding="utf-8")

    def restore(self, folder: Path) -> None:
        """Read a checkpoint into the model in training; for all processes together."""
        self.whole.load(load_file(folder / "model.safetensors"))


__all__ = ["ModelWriter", "build_trainable"]
