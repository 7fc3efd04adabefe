"""Checkpoints: whole or not there, loadable with AutoModel, and enough to resume exactly.

OUT/training.yaml                the run as it was started; can be run again
OUT/log.jsonl                    a line of figures every `log_steps`
OUT/checkpoints/step-00001000/   model, processor, card, optimizer, random states
OUT/config.json, model.safetensors, preprocessor_config.json, README.md   the result
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import PreTrainedModel

from ..atomic_output import atomic_output, flush_to_disk
from ..modeling.hub_revision import resolve_checkpoint
from ..modeling.loading import load_strictly
from ..modeling.modeling_selfvit import SelfViTModel
from ..modeling.remote_code import code_files
from ..sharing.provenance import CARD
from .run import Run

RUN_FILE = "training.yaml"
STATE_FILE = "trainer_state.json"
CHECKPOINTS = "checkpoints"


def check_output(run: Run) -> None:
    """Refuse the folder of a run where it is taken, or cannot be resumed. Writes nothing.

    Raises:
        FileExistsError: if the folder holds a run, and neither `resume` nor `overwrite` was
            given; or something that is not a run, whatever was given.
        FileNotFoundError: if there is nothing to resume.
        ValueError: if the run to resume was started with other values.
    """
    output = Path(run.training.output)
    holds_run = (output / RUN_FILE).is_file()
    holds_anything = output.exists() and (not output.is_dir() or any(output.iterdir()))
    if run.training.resume:
        if not holds_run:
            raise FileNotFoundError(f"{output} holds no run to resume; start one without --resume.")
        _check_same_run(run, Run.from_yaml((output / RUN_FILE).read_text(encoding="utf-8")))
        return
    if holds_anything and not holds_run:
        raise FileExistsError(f"{output} holds something else than a run; choose another --output.")
    if holds_run and not run.training.overwrite:
        raise FileExistsError(
            f"{output} already holds a run; go on with it by --resume, replace it by --overwrite, "
            "or choose another --output."
        )


def prepare_output(run: Run) -> None:
    """Make the folder of the run, if `check_output` allows it; for the main process alone."""
    check_output(run)
    if run.training.resume:
        return
    output = Path(run.training.output)
    if output.exists() and any(output.iterdir()):  # an earlier run, to be overwritten
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    with atomic_output(output / RUN_FILE) as unfinished:
        unfinished.write_text(run.to_yaml(), encoding="utf-8")


# Values that may differ between a run and its resume: they change no weight.
FREE_TO_CHANGE = {
    "output", "resume", "overwrite", "num_workers", "log_steps", "save_steps", "save_total_limit",
    "eval_steps", "eval_train", "eval_test", "eval_limit", "tracker", "activation_checkpointing",
    "save_code", "monitor_steps", "on_collapse", "license", "card_picture",
    "energy_meter", "dry_run",
}  # fmt: skip


def _check_same_run(run: Run, earlier: Run) -> None:
    now, then = _flat(run.to_dict()), _flat(earlier.to_dict())
    different = [
        f"{name}: {then.get(name)} then, {now.get(name)} now"
        for name in sorted(now.keys() | then.keys())
        if now.get(name) != then.get(name) and name.rpartition(".")[2] not in FREE_TO_CHANGE
    ]
    if different:
        raise ValueError(
            "--resume goes on with a run as it was started, but the values differ: "
            f"{'; '.join(different)}. Give the same ones, or start anew in another --output."
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(
            _flat(value, f"{prefix}{name}.")
            if isinstance(value, dict)
            else {f"{prefix}{name}": value}  # a name may be a number: those of id2label are
        )
    return flat


class Checkpointer:
    """Saves and loads the state of a run through Accelerate.

    Args:
        accelerator: with model and optimizer prepared.
        model: the one trained, unwrapped.
        processor: image processor to lay beside it.
        output: folder of the run.
        total_limit: how many resumable checkpoints are kept.
        save_code: whether the model's code lies in each folder. In the resumable ones too: they are
            opened to look at, and the code is some 0.1 MB.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: PreTrainedModel,
        processor: Any,
        output: Path,
        total_limit: int,
        save_code: bool = True,
    ):
        self.accelerator = accelerator
        self.model = model
        self.processor = processor
        self.folder = output / CHECKPOINTS
        self.output = output
        self.total_limit = total_limit
        self.save_code = save_code
        accelerator.register_save_state_pre_hook(self._save_model)
        accelerator.register_load_state_pre_hook(self._load_model)

    def _save_model(self, models: list[Any], weights: list[Any], folder: str) -> None:
        # Accelerate would write the model a second time, in a form that AutoModel cannot open
        weights.clear()
        if self.accelerator.is_main_process:
            self.model.save_pretrained(folder, save_code=self.save_code)
            self.processor.save_pretrained(folder)

    def _load_model(self, models: list[Any], folder: str) -> None:
        models.clear()
        # into the very parameters that the optimizer holds, and strictly
        self.model.load_state_dict(load_file(Path(folder) / "model.safetensors"))

    def newest(self) -> Path | None:
        """Return the newest whole checkpoint; unfinished ones have another name."""
        found = sorted(self.folder.glob("step-*/" + STATE_FILE))
        return found[-1].parent if found else None

    def save(self, state: dict[str, Any], card: str) -> None:
        """Save everything after step `state["step"]`; older ones go only when it is whole.

        The card goes along, since whoever trains on from here must learn of the licence.
        """
        final = self.folder / f"step-{state['step']:08d}"
        temporary = self.folder / f".unfinished-{state['step']:08d}"
        if self.accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(temporary), safe_serialization=True)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            (temporary / CARD).write_text(card, encoding="utf-8")
            (temporary / STATE_FILE).write_text(json.dumps(state, indent=2), encoding="utf-8")
            if final.exists():  # left by a run that was resumed from before it
                shutil.rmtree(final)
            flush_to_disk(temporary)
            os.replace(temporary, final)
            for old in sorted(self.folder.glob("step-*"))[: -self.total_limit]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def load(self, checkpoint: Path) -> dict[str, Any]:
        """Load everything; return the state that was saved with it."""
        self.accelerator.load_state(str(checkpoint))
        return json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))

    def save_result(self, card: str) -> None:
        """Write the trained model into the folder of the run, each file whole or not at all."""
        if self.accelerator.is_main_process:
            temporary = self.output / ".unfinished-result"
            shutil.rmtree(temporary, ignore_errors=True)
            self.model.save_pretrained(temporary, save_code=self.save_code)
            self.processor.save_pretrained(temporary)
            (temporary / CARD).write_text(card, encoding="utf-8")
            flush_to_disk(temporary)
            earlier = set(code_files(self.output))
            # config.json last: a folder with it has everything
            for path in sorted(temporary.iterdir(), key=lambda path: path.name == "config.json"):
                os.replace(path, self.output / path.name)
            temporary.rmdir()
            for module in earlier - set(code_files(self.output)):  # an earlier selfvit's
                module.unlink()
        self.accelerator.wait_for_everyone()


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


__all__ = [
    "CHECKPOINTS",
    "RUN_FILE",
    "Checkpointer",
    "build_trainable",
    "check_output",
    "prepare_output",
]
