"""Write and restore the weights of the model in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from ...modeling.checkpoints.loading import quiet_loading
from ...modeling.checkpoints.pretrained import write_checkpoint
from ...modeling.checkpoints.weight_files import WEIGHTS
from ...sharing.adapter_files import ADAPTER
from ..lora import has_adapters, load_unmerged, merged_weights, save_adapter, save_unmerged
from ..runtime.fsdp import FullModel


class ModelWriter:
    """Writes the model in training as a checkpoint that AutoModel opens, with adapters merged.

    Args:
        model: Model in training, gathered.
        processor: Image processor to save with it.
        save_code: Whether to save the model's code with it, about 0.1 MB. Checkpoints to resume
            from have it, too, because they can also be opened for inspection.
    """

    def __init__(self, model: FullModel, processor: Any, *, save_code: bool):
        self.full_model = model
        self.processor = processor
        self.save_code = save_code

    def write(self, folder: Path, card: str, *, to_resume: bool = False) -> None:
        """Write the model, as last gathered, with processor and card; main process only.

        Every checkpoint has a card, because the card states the license of the weights, which a
        run that starts from the checkpoint must know.

        Args:
            folder: Checkpoint folder.
            card: Text of README.md.
            to_resume: Whether `restore` must be able to read the checkpoint. The model is then
                also written with unmerged adapters, which merged weights do not determine exactly.
        """
        model = self.full_model.gathered
        adapted = has_adapters(model)
        weights = merged_weights(model) if adapted else None
        with quiet_loading():  # a progress bar for each checkpoint would not help
            write_checkpoint(
                model, folder, self.processor, card, save_code=self.save_code, state_dict=weights
            )
        if adapted:
            save_adapter(model.vit, folder / ADAPTER)
        if adapted and to_resume:
            save_unmerged(model, folder)

    def restore(self, folder: Path) -> None:
        """Load a checkpoint into the model in training, strictly; collective."""
        if has_adapters(self.full_model.module):
            load_unmerged(self.full_model.module, folder)
        else:
            self.full_model.load(load_file(folder / WEIGHTS))


__all__ = ["ModelWriter"]
