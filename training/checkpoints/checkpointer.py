"""Checkpoints that are complete or absent, open with AutoModel, and resume a run exactly."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers.utils import CONFIG_NAME

from ...atomic_output import commit_output, flush_to_disk
from ...modeling.checkpoints.remote_code import code_files
from ...sharing.published_files import ENVIRONMENT_FILE, RUN_FILE, STATE_FILE
from ..config.run_config import RunConfig
from .environment import differences, environment
from .integrity import file_checksums, find_corruption, read_state
from .model_writer import ModelWriter
from .optimizer_state import load_state, save_state
from .run_folder import CHECKPOINTS

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Parts of the messages of errors that are no OSError; the third is torch's after a short write.
DISK_FULL_TEXTS = ("no space left", "quota exceeded", "unexpected pos", "file too large")

# What the launch of a run decides, and its configuration does not: field of the state -> its name.
SETTINGS = {"num_processes": "number of processes", "mixed_precision": "mixed precision"}


class Checkpointer:
    """Saves and loads the state of a run through Accelerate.

    Args:
        accelerator: Accelerator that prepared the model and the optimizer.
        optimizer: Optimizer as Accelerate prepared it.
        writer: Writer of the model in training.
        run: Configuration of the run; every checkpoint holds a copy.
    """

    def __init__(
        self, accelerator: Accelerator, optimizer: Any, writer: ModelWriter, run: RunConfig
    ):
        self.accelerator = accelerator
        self.optimizer = optimizer
        self.writer = writer
        self.run = run
        self.output = Path(run.start.output)
        self.folder = self.output / CHECKPOINTS
        self.state: dict[str, Any] = {}  # as last saved or loaded
        self.environment = environment()
        accelerator.register_save_state_pre_hook(_leave_out_model)
        accelerator.register_load_state_pre_hook(lambda models, folder: models.clear())

    def newest(self) -> Path | None:
        """Return the newest intact checkpoint, or None without any; print the corrupt ones.

        Raises:
            ValueError: If there are checkpoints, and all of them are corrupt.
        """
        corrupt = []
        for checkpoint in sorted(self.folder.glob("step-*"), reverse=True):
            reason = find_corruption(checkpoint)
            if reason is None:
                return checkpoint
            corrupt.append(f"{checkpoint} is corrupt ({reason})")
            self.accelerator.print(f"skipped: {corrupt[-1]}.")
        if corrupt:
            raise ValueError(
                f"no checkpoint is intact: {'; '.join(corrupt)}. Restore one from a backup, or "
                f"delete {self.folder} to resume from the first step."
            )
        return None

    def save(self, state: dict[str, Any], card: str, keep_before: int | None = None) -> Path:
        """Save a checkpoint after step `state["step"]`, then delete older ones; collective.

        Args:
            state: JSON values that a resume needs.
            card: Text of the model card.
            keep_before: Step; the newest checkpoint before it is kept in addition, because a
                rollback may need it.

        Returns:
            The folder of the checkpoint.

        Raises:
            OSError: If the checkpoint cannot be written. Earlier checkpoints are kept.
        """
        final = self.folder / f"step-{state['step']:08d}"
        temporary = self.folder / f".unfinished-{state['step']:08d}"
        self.state = {**state, **self._settings(), **self.environment}
        with self._removed_on_error(temporary):
            if self.accelerator.is_main_process:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            model = self.writer.full_model
            model.gather()
            save_state(self.accelerator, model.module, self.optimizer, temporary)
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                self.writer.write(temporary, card, to_resume=True)
                (temporary / RUN_FILE).write_text(self.run.to_yaml(), encoding="utf-8")
                _write_state(temporary, {**self.state, "files": file_checksums(temporary)})
                commit_output(temporary, final)  # replaces one of a run resumed from before it
                self._prune(final, keep_before)
        self.accelerator.wait_for_everyone()
        return final

    def _settings(self) -> dict[str, Any]:
        """Return what the launch of the run decides, and its configuration does not."""
        accelerator = self.accelerator
        values = (accelerator.num_processes, accelerator.mixed_precision)
        return dict(zip(SETTINGS, values, strict=True))

    @contextmanager
    def _removed_on_error(self, temporary: Path) -> Iterator[None]:
        """Remove an unfinished folder after an error, and explain a full disk."""
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
                f"the disk of {self.output} is full, or files may not be larger: "
                f"{temporary.name.lstrip('.')} could not be saved. Earlier checkpoints are intact; "
                "free some space, and continue with "
                "--resume",
            ) from error

    def _prune(self, newest: Path, keep_before: int | None) -> None:
        """Remove old checkpoints, and those after the newest, which an earlier attempt left."""
        checkpoints = sorted(self.folder.glob("step-*"))
        current = [path for path in checkpoints if path <= newest]
        kept = current[-self.run.checkpoints.save_total_limit :]
        if keep_before is not None:
            onset = self.folder / f"step-{keep_before:08d}"
            kept += [path for path in current if path < onset][-1:]
        for path in checkpoints:
            if path not in kept:
                self._remove(path)

    def _remove(self, checkpoint: Path) -> None:
        """Remove a checkpoint; rename it first, so that a partly removed one is never used."""
        if checkpoint.exists():
            removed = checkpoint.with_name(f".removed-{checkpoint.name}")
            os.replace(checkpoint, removed)
            shutil.rmtree(removed)

    def load(self, checkpoint: Path) -> dict[str, Any]:
        """Load a checkpoint; collective.

        Differences from the environment at the start of the run are printed, because they may
        change the results.

        Returns:
            The state that was saved with the checkpoint.
        """
        self.writer.restore(checkpoint)
        load_state(self.accelerator, self.writer.full_model.module, self.optimizer, checkpoint)
        self.state = read_state(checkpoint)
        del self.state["files"]
        started_with = json.loads((self.output / ENVIRONMENT_FILE).read_text(encoding="utf-8"))
        changes = differences(started_with, self.environment)
        for name, now in self._settings().items():
            then = self.state.get(name, now)  # checkpoints of earlier versions have no precision
            if then != now:
                changes.append(f"{SETTINGS[name]} {then} then, {now} now")
        if changes:
            self.accelerator.print(
                f"warning: {self.output} was started in another environment, so its numbers may "
                f"differ from those of an uninterrupted run: {'; '.join(changes)}."
            )
        return self.state

    def save_result(self, card: str) -> None:
        """Write the trained model, as last gathered, into the run folder; collective.

        `config.json` is replaced last, so a folder that has it is complete.
        """
        temporary = self.output / ".unfinished-result"
        is_main = self.accelerator.is_main_process
        with self._removed_on_error(temporary):
            if is_main:
                shutil.rmtree(temporary, ignore_errors=True)
                self.writer.write(temporary, card)
                _write_state(temporary, self.state)
                flush_to_disk(temporary)
        if is_main:
            earlier = set(code_files(self.output))
            for path in sorted(temporary.iterdir(), key=lambda path: path.name == CONFIG_NAME):
                if path.is_dir():  # a folder with contents cannot be replaced
                    shutil.rmtree(self.output / path.name, ignore_errors=True)
                os.replace(path, self.output / path.name)
            temporary.rmdir()
            for module in earlier - set(code_files(self.output)):  # code of an earlier version
                module.unlink()
        self.accelerator.wait_for_everyone()


def _leave_out_model(models: list[Any], weights: list[Any], folder: str) -> None:
    """Keep Accelerate from writing the model a second time, in a form AutoModel cannot open."""
    weights.clear()


def _write_state(folder: Path, state: dict[str, Any]) -> None:
    (folder / STATE_FILE).write_text(json.dumps(state, indent=2), encoding="utf-8")


def is_disk_full(error: BaseException, folder: Path) -> bool:
    """Return whether writing failed because the disk, or a quota, is full.

    torch and safetensors do not raise OSError, so their message and the free space are checked.
    """
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, OSError) and chain.errno in DISK_FULL:
            return True
        if any(sign in str(chain).lower() for sign in DISK_FULL_TEXTS):
            return True
        chain = chain.__cause__ or chain.__context__
    is_from_writer = type(error).__name__ == "SafetensorError" or any(
        name in str(error) for name in ("PytorchStreamWriter", "inline_container", "iostream error")
    )
    return is_from_writer and shutil.disk_usage(folder).free < 2**20


__all__ = ["Checkpointer", "is_disk_full"]
