"""Checkpoints: whole or not there, loadable with AutoModel, and enough to resume exactly.

OUT/training.yaml                the run as it was started; can be run again
OUT/environment.json             versions and git revisions that it was started with
OUT/log.jsonl                    a line of figures every `log_steps`
OUT/images/                      pictures every `image_steps`
OUT/trackers.json                the run's name in each tracker
OUT/checkpoints/step-00001000/   model, processor, card, optimizer, random states; training.yaml,
                                 and trainer_state.json, which lists all files and is written last
OUT/best/                        model, processor and card of the best evaluation so far
OUT/report.json                  before and after, of a run that started from weights
OUT/config.json, model.safetensors, preprocessor_config.json, README.md, trainer_state.json
                                 the result
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import PreTrainedModel

from ..atomic_output import atomic_output, flush_entry, flush_to_disk
from ..modeling.hub_revision import resolve_checkpoint
from ..modeling.loading import load_strictly
from ..modeling.modeling_selfvit import SelfViTModel
from ..modeling.remote_code import code_files
from ..sharing.provenance import CARD
from .environment import differences, environment
from .faults import is_disk_full
from .manifest import STATE_FILE, describe_files, read_state, what_is_broken
from .run import Run

RUN_FILE = "training.yaml"
ENVIRONMENT_FILE = "environment.json"
CHECKPOINTS = "checkpoints"
# What a process that was killed may leave: half-written, replaced or half-deleted.
LEFTOVERS = (".unfinished-*", ".removed-*", ".*.unfinished-*", ".*.replaced-*")


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
    holds_anything = output.exists() and (not output.is_dir() or any(_entries(output)))
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
    output = Path(run.training.output)
    if run.training.resume:
        _remove_leftovers(output)
        if not (output / ENVIRONMENT_FILE).exists():
            _write_environment(output)
        return
    output.mkdir(parents=True, exist_ok=True)
    for path in output.iterdir():
        if path.name != RUN_FILE:  # by which a process that is killed here leaves a run
            _delete(path)
    with atomic_output(output / RUN_FILE) as unfinished:
        unfinished.write_text(run.to_yaml(), encoding="utf-8")
    _write_environment(output)


def _entries(output: Path) -> Iterator[Path]:
    """Yield what lies there, but for what a run leaves that was killed as it began."""
    for path in output.iterdir():
        if not path.match(f".{RUN_FILE}.unfinished-*"):
            yield path


def _write_environment(output: Path) -> None:
    with atomic_output(output / ENVIRONMENT_FILE) as unfinished:
        unfinished.write_text(json.dumps(environment(), indent=2), encoding="utf-8")


def _remove_leftovers(output: Path) -> None:
    for folder in (output, output / CHECKPOINTS):
        for pattern in LEFTOVERS:
            for path in folder.glob(pattern):
                _delete(path)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


# Values that may differ between a run and its resume: they change no weight.
FREE_TO_CHANGE = {
    "output", "resume", "overwrite", "num_workers", "log_steps", "save_steps", "save_total_limit",
    "eval_steps", "eval_train", "eval_test", "eval_limit", "tracker", "activation_checkpointing",
    "save_code", "monitor_steps", "on_collapse", "license", "card_picture",
    "energy_meter", "best_metric", "require_improvement", "data_timeout", "dry_run",
    "image_steps", "find_batch_size",
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
        run: whose folder it is, and which is laid beside it, too. Its `save_code` is for the
            resumable checkpoints as well: they are opened to look at, and it is some 0.1 MB.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: PreTrainedModel,
        processor: Any,
        run: Run,
    ):
        self.accelerator = accelerator
        self.model = model
        self.processor = processor
        self.run = run
        self.output = Path(run.training.output)
        self.folder = self.output / CHECKPOINTS
        self.state: dict[str, Any] = {}  # as last saved or loaded
        self.environment = environment()
        accelerator.register_save_state_pre_hook(self._save_model)
        accelerator.register_load_state_pre_hook(self._load_model)

    def _save_model(self, models: list[Any], weights: list[Any], folder: str) -> None:
        # Accelerate would write the model a second time, in a form that AutoModel cannot open
        weights.clear()
        if self.accelerator.is_main_process:
            self.model.save_pretrained(folder, save_code=self.run.training.save_code)
            self.processor.save_pretrained(folder)

    def _load_model(self, models: list[Any], folder: str) -> None:
        models.clear()
        # into the very parameters that the optimizer holds, and strictly
        self.model.load_state_dict(load_file(Path(folder) / "model.safetensors"))

    def newest(self) -> Path | None:
        """Return the newest whole checkpoint, and say which were passed over; None without any.

        Raises:
            ValueError: if there are some, and all are broken.
        """
        broken = []
        for checkpoint in sorted(self.folder.glob("step-*"), reverse=True):
            fault = what_is_broken(checkpoint)
            if fault is None:
                return checkpoint
            broken.append(f"{checkpoint} is broken ({fault})")
            self.accelerator.print(f"passed over: {broken[-1]}.")
        if broken:
            raise ValueError(
                f"no checkpoint is whole: {'; '.join(broken)}. Bring one back, or delete "
                f"{self.folder} and resume from the first step."
            )
        return None

    def save(self, state: dict[str, Any], card: str) -> Path:
        """Save everything after step `state["step"]`; older ones go only when it is whole.

        The card goes along, since whoever trains on from here must learn of the licence.

        Returns:
            the folder.

        Raises:
            OSError: if it cannot be written; earlier checkpoints stay.
        """
        final = self.folder / f"step-{state['step']:08d}"
        temporary = self.folder / f".unfinished-{state['step']:08d}"
        self.state = {
            **state,
            "num_processes": self.accelerator.num_processes,
            **self.environment,
        }
        with self._whole_or_not_at_all(temporary):
            if self.accelerator.is_main_process:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self.accelerator.save_state(str(temporary), safe_serialization=True)
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                (temporary / CARD).write_text(card, encoding="utf-8")
                (temporary / RUN_FILE).write_text(self.run.to_yaml(), encoding="utf-8")
                _write_state(temporary, {**self.state, "files": describe_files(temporary)})
                flush_to_disk(temporary)
                self._remove(final)  # left by a run that was resumed from before it
                os.replace(temporary, final)
                flush_entry(self.folder)
                self._prune(final)
        self.accelerator.wait_for_everyone()
        return final

    @contextmanager
    def _whole_or_not_at_all(self, temporary: Path) -> Iterator[None]:
        """After an error, the folder that was written into is gone, and a full disk is named."""
        try:
            yield
        except BaseException as error:
            is_full = is_disk_full(error, self.output)
            if self.accelerator.is_main_process:
                shutil.rmtree(temporary, ignore_errors=True)
            if not is_full:
                raise
            raise OSError(
                errno.ENOSPC,
                f"the disk of {self.output} is full: {temporary.name.lstrip('.')} could not be "
                "saved. Earlier checkpoints are as they were: free some space, and go on with "
                "--resume true",
            ) from error

    def _prune(self, newest: Path) -> None:
        """Remove all but the last checkpoints up to the newest: later ones are of a lost branch."""
        checkpoints = sorted(self.folder.glob("step-*"))
        kept = [path for path in checkpoints if path <= newest]
        for path in checkpoints:
            if path not in kept[-self.run.training.save_total_limit :]:
                self._remove(path)

    def _remove(self, checkpoint: Path) -> None:
        """Remove a checkpoint, under a name that is not taken for one when half is left of it."""
        if checkpoint.exists():
            removed = checkpoint.with_name(f".removed-{checkpoint.name}")
            os.replace(checkpoint, removed)
            shutil.rmtree(removed)

    def load(self, checkpoint: Path) -> dict[str, Any]:
        """Load everything; return the state that was saved with it.

        Says what differs from when the run was started, or from when it was saved, as then numbers
        may differ, too.
        """
        self.accelerator.load_state(str(checkpoint))
        self.state = read_state(checkpoint)
        del self.state["files"]
        started_with = json.loads((self.output / ENVIRONMENT_FILE).read_text(encoding="utf-8"))
        changes = differences(started_with, self.environment)
        then, now = self.state["num_processes"], self.accelerator.num_processes
        if then != now:
            changes.append(f"number of processes {then} then, {now} now")
        if changes:
            self.accelerator.print(
                f"warning: {self.output} was started otherwise, so its numbers may differ from "
                f"those of an unbroken run: {'; '.join(changes)}."
            )
        return self.state

    def save_result(self, card: str) -> None:
        """Write the trained model into the folder of the run, each file whole or not at all."""
        temporary = self.output / ".unfinished-result"
        is_main = self.accelerator.is_main_process
        with self._whole_or_not_at_all(temporary):
            if is_main:
                shutil.rmtree(temporary, ignore_errors=True)
                self.model.save_pretrained(temporary, save_code=self.run.training.save_code)
                self.processor.save_pretrained(temporary)
                (temporary / CARD).write_text(card, encoding="utf-8")
                _write_state(temporary, self.state)
                flush_to_disk(temporary)
        if is_main:
            earlier = set(code_files(self.output))
            # config.json last: a folder with it has everything
            for path in sorted(temporary.iterdir(), key=lambda path: path.name == "config.json"):
                os.replace(path, self.output / path.name)
            temporary.rmdir()
            for module in earlier - set(code_files(self.output)):  # an earlier selfvit's
                module.unlink()
        self.accelerator.wait_for_everyone()


def _write_state(folder: Path, state: dict[str, Any]) -> None:
    (folder / STATE_FILE).write_text(json.dumps(state, indent=2), encoding="utf-8")


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
