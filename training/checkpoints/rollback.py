"""Find the last good checkpoint of a run, and return to it after a collapse."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

from accelerate import PartialState

from ..config.run_config import RunConfig
from ..exceptions import CollapseError, NonFiniteError
from .run_folder import CHECKPOINTS, LOG_FILE, write_run


def newest_before(step: int, output: Path) -> Path | None:
    """Return the newest checkpoint of a run that was saved before a step, or None."""
    found = [path for path in _checkpoints(output) if _step_of(path) < step]
    return found[-1] if found else None


def check_finite(name: str, value: float, run: RunConfig, step: int) -> None:
    """Check a value before it can affect the weights.

    Args:
        name: Name of the value, such as "loss".
        value: The value.
        run: Configuration of the run.
        step: Optimizer step, counted from 1.

    Raises:
        NonFiniteError: If the value is infinite or not a number. It names the last checkpoint.
    """
    if not math.isfinite(value):
        raise NonFiniteError(
            name, value, step, run.recipe, newest_before(step, Path(run.start.output))
        )


def roll_back(run: RunConfig, collapse: CollapseError) -> RunConfig:
    """Prepare a run to resume from a checkpoint, once, at half the learning rate.

    Later checkpoints are deleted. `training.yaml` is rewritten with the lower rate, and so that the
    next collapse stops the run. The run can then be interrupted and resumed like any other.

    Args:
        run: Configuration of the run that collapsed.
        collapse: Error that names the checkpoint to return to.

    Returns:
        Configuration of the run to continue with.
    """
    output, kept = Path(run.start.output), collapse.kept
    assert kept is not None
    slower = run.replace(
        base_learning_rate=run.schedule.base_learning_rate / 2,
        on_collapse="stop",
        resume=False,
    )
    process = PartialState()
    if process.is_main_process:
        for path in _checkpoints(output):
            if _step_of(path) > _step_of(kept):
                shutil.rmtree(path)
        write_run(slower)
        line = {"step": _step_of(kept), "rolled_back": str(collapse)}
        with open(output / LOG_FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    process.wait_for_everyone()
    return slower.replace(resume=True)


def _checkpoints(output: Path) -> list[Path]:
    return sorted((output / CHECKPOINTS).glob("step-*"))


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


__all__ = ["check_finite", "newest_before", "roll_back"]
