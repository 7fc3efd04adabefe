"""Push checkpoints in the background, and the result at the end.

A failed push never stops training.
"""

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
from ...sharing.publish import Target, publish, publish_files
from ...sharing.published_files import PublishedFiles, choose_files
from ..config.run_config import RunConfig
from ..exceptions import NotPublishedError
from ..state import TrainState
from .base import Callback


class HubPusher(Callback):
    """Pushes a run to the Hub; does nothing without a target.

    There is one push at a time: a checkpoint that is due while an earlier one is uploading is not
    pushed. A failed push is reported, and the next push contains all of its files.

    Args:
        run: Configuration of the run.
        target: Destination on the Hub, on the main process; None on the others.
    """

    def __init__(self, run: RunConfig, target: Target | None):
        self.output = Path(run.start.output)
        self.push_steps = run.hub.push_steps
        self.target = target
        self.snapshot = self.output / ".unfinished-push"
        self.upload: Future[None] | None = None
        self.shows_bars = not are_progress_bars_disabled()

    def on_step_end(self, state: TrainState) -> None:
        """Push a new checkpoint in the background if it is due; the last is part of the result."""
        if self.target is None or self.push_steps is None or state.checkpoint is None:
            return
        if state.step % self.push_steps or state.step == state.num_steps:
            return
        if self.upload is not None and not self.upload.done():
            tqdm.write(f"step {state.step} is not pushed: an earlier push is still uploading.")
            return
        if self.shows_bars:
            disable_progress_bars()  # they would overwrite the run's own bar
        try:
            files = self._snapshot(state.checkpoint)
        except (OSError, ValueError) as error:
            self._report_failure(state.step, error)
        else:
            self.upload = HfApi().run_as_future(
                self._push, state.step, state.num_steps, files, self.target
            )

    def _snapshot(self, folder: Path) -> PublishedFiles:
        """Link the files of a checkpoint, because it may be deleted during the upload.

        The files are checked here and not in the background: the check builds a model, which uses
        global state of torch and transformers that is not thread-safe.
        """
        files = choose_files(folder)
        shutil.rmtree(self.snapshot, ignore_errors=True)
        self.snapshot.mkdir()
        for name in files.sent:
            _link(folder / name, self.snapshot / name)
        return files

    def _push(self, step: int, num_steps: int, files: PublishedFiles, target: Target) -> None:
        message = f"Step {step} of {num_steps}"
        try:
            published = publish_files(self.snapshot, files, target, message, retries=0)
            tqdm.write(f"pushed step {step}: {published.url}")
        except Exception as error:  # a failed push must not end the run
            self._report_failure(step, error)

    def _report_failure(self, step: int, error: Exception) -> None:
        tqdm.write(f"warning: step {step} was not pushed: {error_message(error)}", file=sys.stderr)

    def on_result(self, state: TrainState) -> None:
        """Push the result, after a push that is still uploading.

        Raises:
            NotPublishedError: If it failed; the message contains the command that repeats it.
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


__all__ = ["HubPusher"]
