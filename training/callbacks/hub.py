"""A run on the Hub: checkpoints while it trains, the result at its end, and never in its way."""

from __future__ import annotations

import os
import shutil
import sys
from concurrent.futures import Future
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from tqdm.auto import tqdm

from ...sharing.hub_access import error_message
from ...sharing.publish import Target, check_target, publish, publish_files
from ...sharing.published_files import PublishedFiles, choose_files
from ..config.training_config import TrainingConfig
from ..exceptions import NotPublishedError


class HubPushes:
    """Pushes a run; does nothing for a run without `push_to_hub`, and in other processes.

    One push at a time: a checkpoint that is due while an earlier one still uploads is passed over.
    A push that fails is told, and ends nothing; the next has everything that it had.

    Args:
        training: where to push, and how often.
        num_steps: of the whole run.
        is_main_process: the one that pushes.

    Raises:
        PermissionError: if the Hub does not accept the token, or the user may not push there.
        ValueError: if the repository's name is not one, or it has to be private and is not.
        ConnectionError: if the Hub cannot be reached.
    """

    def __init__(self, training: TrainingConfig, num_steps: int, is_main_process: bool):
        self.output = Path(training.output)
        self.snapshot = self.output / ".unfinished-push"
        self.push_steps = training.push_steps
        self.num_steps = num_steps
        self.target: Target | None = None
        self.upload: Future[None] | None = None
        self.shows_bars = not are_progress_bars_disabled()
        if training.push_to_hub is not None and is_main_process:
            self.target = Target(
                training.push_to_hub,
                private=training.hub_private_repo,
                revision=training.hub_revision,
            )
            check_target(self.target)
            self.api = HfApi()

    def checkpoint(self, step: int, folder: Path | None) -> None:
        """Push a checkpoint in the background, if it is due; the last is left to `result`.

        Args:
            step: after which it was saved, counted from 1.
            folder: of the checkpoint.
        """
        if self.target is None or self.push_steps is None or folder is None:
            return
        if step % self.push_steps or step == self.num_steps:
            return
        if self.upload is not None and not self.upload.done():
            tqdm.write(f"step {step} is not pushed: an earlier push still uploads.")
            return
        if self.shows_bars:
            disable_progress_bars()  # they would break the run's own
        try:
            files = self._snapshot(folder)
        except (OSError, ValueError) as error:
            self._tell_failure(step, error)
        else:
            self.upload = self.api.run_as_future(self._push, step, files, self.target)

    def _snapshot(self, folder: Path) -> PublishedFiles:
        """Link a checkpoint's files beside it: it may be pruned while they upload.

        Checked here and not in the background: for the check a model is built, if only of names and
        shapes, and what torch and transformers keep meanwhile is not each thread's own.
        """
        files = choose_files(folder)
        shutil.rmtree(self.snapshot, ignore_errors=True)
        self.snapshot.mkdir()
        for name in files.sent:
            _link(folder / name, self.snapshot / name)
        return files

    def _push(self, step: int, files: PublishedFiles, target: Target) -> None:
        message = f"Step {step} of {self.num_steps}"
        try:
            published = publish_files(self.snapshot, files, target, message, retries=0)
            tqdm.write(f"pushed step {step}: {published.url}")
        except Exception as error:  # whatever it is, it is no reason to end the run
            self._tell_failure(step, error)

    def _tell_failure(self, step: int, error: Exception) -> None:
        tqdm.write(f"warning: step {step} was not pushed: {error_message(error)}", file=sys.stderr)

    def result(self) -> None:
        """Push the result, after a push that still runs.

        Raises:
            NotPublishedError: if it failed; the message has the command that repeats it.
        """
        if self.target is None:
            return
        if self.upload is not None:
            self.upload.result()
        shutil.rmtree(self.snapshot, ignore_errors=True)
        if self.shows_bars:
            enable_progress_bars()
        target = self.target
        try:
            published = publish(
                self.output, target.repo_id, private=target.private, revision=target.revision
            )
        except (OSError, ValueError) as error:
            command = target.command(self.output)
            repeat = "" if command in str(error) else f" Repeat: {command}"
            raise NotPublishedError(f"{error}{repeat}") from error
        print(f"published: {published.url}")


def _link(source: Path, place: Path) -> None:
    place.parent.mkdir(exist_ok=True)
    try:
        os.link(source, place)
    except OSError:  # not every file system has links
        shutil.copy2(source, place)


__all__ = ["HubPushes"]
