"""Write the model in training as a checkpoint that AutoModel opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from ...modeling.checkpoints.weight_files import WEIGHTS
from ...sharing.adapter_files import ADAPTER
from ...sharing.provenance import CARD
from ..lora import has_adapters, load_unmerged, merged_weights, save_adapter, save_unmerged
from ..runtime.fsdp import FullModel


class ModelWriter:
    """Writes the model in training as a checkpoint that AutoModel opens, adapters merged.

    Args:
        whole: the model trained.
        processor: image processor to lay beside it.
        save_code: whether the model's code is laid beside it, too. That is for checkpoints that a
            run resumes from as well: they are opened to look at, and it is some 0.1 MB.
    """

    def __init__(self, model: FullModel, processor: Any, *, save_code: bool):
        self.full_model = model
        self.processor = processor
        self.save_code = save_code

    def write(self, folder: Path, card: str, *, to_resume: bool = False) -> None:
        """Write model, processor and card, as last gathered; for the main process alone.

        The card goes along, since whoever trains on from here must learn of the license.

        Args:
            folder: of the checkpoint.
            card: its README.md.
            to_resume: whether `restore` will read it: what is merged does not give back its parts.
        """
        model = self.full_model.gathered
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
        if has_adapters(self.full_model.module):
            load_unmerged(self.full_model.module, folder)
        else:
            self.full_model.load(load_file(folder / WEIGHTS))


__all__ = ["ModelWriter"]
