"""Return a run to the last checkpoint before a collapse."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from accelerate import PartialState

from ...atomic_output import atomic_output
from ...sharing.published_files import RUN_FILE
from ..config.run_config import Run
from ..exceptions import CollapseError
from .run_folder import CHECKPOINTS, LOG_FILE


def newest_before(step: int, output: Path) -> Path | None:
    """Return the newest checkpoint of a run that was saved before a step; None without one."""
    found = [path for path in _checkpoints(output) if _step_of(path) < step]
    return found[-1] if found else None


def roll_back(run: Run, collapse: CollapseError) -> Run:
    """Make a run ready to be resumed from a checkpoint, once, at half the learning rate.

    Later checkpoints are deleted. training.yaml says what the run is from now on: the lower rate,
    and an end at the next collapse; so whatever interrupts it, it can be resumed exactly.

    Args:
        run: that collapsed.
        collapse: how; it names the checkpoint to go back to.

    Returns:
        the run to go on with.
    """
    training, output, kept = run.training, Path(run.training.output), collapse.kept
    assert kept is not None
    slower = replace(
        training,
        base_learning_rate=training.base_learning_rate / 2,
        min_learning_rate=min(training.min_learning_rate, training.learning_rate / 2),
        on_collapse="stop",
        resume=False,
    )
    changed = replace(run, training=slower)
    process = PartialState()
    if process.is_main_process:
        for path in _checkpoints(output):
            if _step_of(path) > _step_of(kept):
                shutil.rmtree(path)
        with atomic_output(output / RUN_FILE) as unfinished:
            unfinished.write_text(changed.to_yaml(), encoding="utf-8")
        line = {"step": _step_of(kept), "rolled_back": str(collapse)}
        with open(output / LOG_FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    process.wait_for_everyone()
    return replace(changed, training=replace(slower, resume=True))


def _checkpoints(output: Path) -> list[Path]:
    return sorted((output / CHECKPOINTS).glob("step-*"))


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


__all__ = ["newest_before", "roll_back"]
