"""Write the model in training as a checkpoint that AutoModel opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from ...modeling.checkpoints.pretrained import write_checkpoint
from ...modeling.checkpoints.weight_files import WEIGHTS
from ...sharing.adapter_files import ADAPTER
from ..lora import has_adapters, load_unmerged, merged_weights, save_adapter, save_unmerged
from ..runtime.fsdp import FullModel


class ModelWriter:
    """Writes the model in training as a checkpoint that AutoModel opens, adapters merged.

    Args:
        model: Model in training.
        processor: Image processor to write beside it.
        save_code: Whether to write the code of the model too, about 0.1 MB. This includes the
            checkpoints for resuming, since users open them to inspect a run.
    """

    def __init__(self, model: FullModel, processor: Any, *, save_code: bool):
        self.full_model = model
        self.processor = processor
        self.save_code = save_code

    def write(self, folder: Path, card: str, *, to_resume: bool = False) -> None:
        """Write model, processor and card, as last gathered. Only the main process calls this.

        The card is part of each checkpoint because it names the license.

        Args:
            folder: Checkpoint folder.
            card: Content of README.md.
            to_resume: Whether `restore` reads the checkpoint. Merged weights do not give back the
                weights of base and adapters, so these are written too.
        """
        model = self.full_model.gathered
        adapted = has_adapters(model)
        weights = merged_weights(model) if adapted else None
        write_checkpoint(
            model, folder, self.processor, card, save_code=self.save_code, state_dict=weights
        )
        if adapted:
            save_adapter(model.vit, folder / ADAPTER)
        if adapted and to_resume:
            save_unmerged(model, folder)

    def restore(self, folder: Path) -> None:
        """Load a checkpoint strictly into the model in training. All processes call this."""
        if has_adapters(self.full_model.module):
            load_unmerged(self.full_model.module, folder)
        else:
            self.full_model.load(load_file(folder / WEIGHTS))


__all__ = ["ModelWriter"]
