"""Checkpoints: whole or not there, loadable with AutoModel, and enough to resume exactly."""

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

from ...atomic_output import flush_entry, flush_to_disk
from ...modeling.checkpoints.remote_code import code_files
from ...sharing.published_files import RUN_FILE, STATE_FILE
from ..config.run_config import Run
from .environment import differences, environment
from .integrity import describe_files, read_state, what_is_broken
from .model_writer import ModelWriter
from .optimizer_state import load_state, save_state
from .run_folder import CHECKPOINTS, ENVIRONMENT_FILE


class Checkpointer:
    """Saves and loads the state of a run through Accelerate.

    Args:
        accelerator: with model and optimizer prepared.
        optimizer: as prepared.
        writer: of the model that is trained.
        run: whose folder it is, and which is laid beside it, too.
    """

    def __init__(self, accelerator: Accelerator, optimizer: Any, writer: ModelWriter, run: Run):
        self.accelerator = accelerator
        self.optimizer = optimizer
        self.writer = writer
        self.run = run
        self.output = Path(run.training.output)
        self.folder = self.output / CHECKPOINTS
        self.state: dict[str, Any] = {}  # as last saved or loaded
        self.environment = environment()
        accelerator.register_save_state_pre_hook(_leave_out_model)
        accelerator.register_load_state_pre_hook(lambda models, folder: models.clear())

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
            model = self.writer.whole
            model.gather()
            save_state(self.accelerator, model.trained, self.optimizer, temporary)
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                self.writer.write(temporary, card, to_resume=True)
                (temporary / RUN_FILE).write_text(self.run.to_yaml(), encoding="utf-8")
                _write_state(temporary, {**self.state, "files": describe_files(temporary)})
                flush_to_disk(temporary)
                self._remove(final)  # left by a run that was resumed from before it
                os.replace(temporary, final)
                flush_entry(self.folder)
                self._prune(final, state["monitors"]["low_since"])
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

    def _prune(self, newest: Path, low_since: dict[str, int]) -> None:
        """Remove all but the last checkpoints up to the newest: later ones are of a lost branch.

        While monitors read low and may name a collapse, the newest from before it stays.
        """
        training = self.run.training
        checkpoints = sorted(self.folder.glob("step-*"))
        upcoming = [path for path in checkpoints if path <= newest]
        kept = upcoming[-training.save_total_limit :]
        if low_since and training.on_collapse != "warn":
            onset = self.folder / f"step-{min(low_since.values()):08d}"
            kept += [path for path in upcoming if path < onset][-1:]
        for path in checkpoints:
            if path not in kept:
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
        self.writer.restore(checkpoint)
        load_state(self.accelerator, self.writer.whole.trained, self.optimizer, checkpoint)
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
        """Write the trained model, as last gathered, into the folder of the run.

        Each file is there whole or not at all.
        """
        temporary = self.output / ".unfinished-result"
        is_main = self.accelerator.is_main_process
        with self._whole_or_not_at_all(temporary):
            if is_main:
                shutil.rmtree(temporary, ignore_errors=True)
                self.writer.write(temporary, card)
                _write_state(temporary, self.state)
                flush_to_disk(temporary)
        if is_main:
            earlier = set(code_files(self.output))
            # config.json last: a folder with it has everything
            for path in sorted(temporary.iterdir(), key=lambda path: path.name == "config.json"):
                if path.is_dir():  # a full folder is not replaced
                    shutil.rmtree(self.output / path.name, ignore_errors=True)
                os.replace(path, self.output / path.name)
            temporary.rmdir()
            for module in earlier - set(code_files(self.output)):  # an earlier selfvit's
                module.unlink()
        self.accelerator.wait_for_everyone()


def _leave_out_model(models: list[Any], weights: list[Any], folder: str) -> None:
    """Keep Accelerate from writing the model a second time, in a form AutoModel cannot open."""
    weights.clear()


def _write_state(folder: Path, state: dict[str, Any]) -> None:
    (folder / STATE_FILE).write_text(json.dumps(state, indent=2), encoding="utf-8")


DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_disk_full(error: BaseException, folder: Path) -> bool:
    """Say whether an error of writing is due to a full disk, or quota.

    torch and safetensors do not raise OSError: of theirs, the words and the free space tell.
    """
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, OSError) and chain.errno in DISK_FULL:
            return True
        if "No space left" in str(chain) or "quota exceeded" in str(chain).lower():
            return True
        chain = chain.__cause__ or chain.__context__
    is_of_a_writer = type(error).__name__ == "SafetensorError" or any(
        name in str(error) for name in ("PytorchStreamWriter", "inline_container", "iostream error")
    )
    return is_of_a_writer and shutil.disk_usage(folder).free < 2**20


__all__ = ["Checkpointer", "is_disk_full"]
