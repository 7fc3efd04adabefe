"""Train with the package's own `train` in a process of its own; measure CPU time and memory."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers.utils.logging import disable_progress_bar

from selfvit.data.image_source import ImageSource
from selfvit.data.workers import initialize_worker
from selfvit.embedding.embedder import Embedder
from selfvit.modeling.checkpoints.pretrained import write_checkpoint
from selfvit.training.config.arguments import build_run, open_request, request_with
from selfvit.training.config.run_config import RunConfig
from selfvit.training.exceptions import NonFiniteError
from selfvit.training.recipes import RECIPES
from selfvit.training.train import train

# One process and one thread, so that CPU time includes the augmentation; nothing that is not part
# of the training. The report of a run that starts from a checkpoint is not used, so it is short.
OPTIONS: dict[str, Any] = {
    "cpu": True,
    "mixed_precision": "no",
    "num_workers": 0,
    "tracker": "none",
    "energy_meter": "none",
    "image_steps": 0,
    "log_steps": 100,
    "monitor_steps": 1_000_000,
    "save_steps": 1_000_000,
    "save_code": False,
    "eval_limit": 16,
    "overwrite": True,
}
# Peak of memory is in KiB on Linux, and in bytes on macOS.
PEAK_UNIT = 1 if sys.platform == "darwin" else 1024
NUM_WARM_STEPS = 3  # the first steps are slower
# Parts of a run that determine its result.
SETTINGS = ("architecture", "model", "augmentation", "preprocessing", "schedule", "optimizer")
CARD = "---\nlibrary_name: transformers\n---\n"  # of the encoders


def run_of(recipe: str, source: ImageSource, output: Path, **options: Any) -> RunConfig:
    """Return the run of a recipe, as `selfvit train` builds it.

    Args:
        recipe: Name of the recipe.
        source: Training images.
        output: Run folder.
        options: Options of `selfvit train` by name, besides `OPTIONS`.
    """
    values = {**OPTIONS, "data": source.description, "output": str(output), **options}
    return build_run(request_with(open_request(recipe, RECIPES), values), len(source))


def settings_of(run: RunConfig) -> dict[str, Any]:
    """Return the values of a run that determine its result, besides its seed and its start."""
    return {name: value for name, value in run.to_dict().items() if name in SETTINGS}


def train_timed(run: RunConfig, source: ImageSource) -> dict[str, Any]:
    """Train in a process that is forked for it, so that its memory is that of this training.

    Args:
        run: Run with `num_workers` 0.
        source: Training images. Decoding them should cost next to nothing.

    Returns:
        "seconds" (CPU time of all steps: views, forward, backward, optimizer, teacher),
        "step_seconds" (median of a step), "num_steps", and "memory" (bytes that the process needed
        at most during the steps, in addition to what it had before training); or "diverged" with
        the message, if the loss is not finite.

    Raises:
        RuntimeError: If the training fails for another reason. Its output is in a file beside the
            run folder, with the extension .log.
    """
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(_train, (run, source))


def _train(run: RunConfig, source: ImageSource) -> dict[str, Any]:
    initialize_worker()
    ends, peak = [], 0
    memory_before = psutil.Process().memory_info().rss

    def step_ended(*_: Any) -> None:
        nonlocal peak
        ends.append(time.process_time())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * PEAK_UNIT

    log = Path(f"{run.start.output}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    hook = register_optimizer_step_post_hook(step_ended)
    try:
        with (
            open(log, "w", encoding="utf-8") as file,
            contextlib.redirect_stdout(file),
            contextlib.redirect_stderr(file),
        ):
            train(run, source)
    except NonFiniteError as error:
        return {"diverged": str(error)}
    except Exception as error:
        # errors with arguments of their own cannot be sent to another process
        raise RuntimeError(
            f"the training failed with {type(error).__name__}: {error} Its output is in {log}."
        ) from None
    finally:
        hook.remove()
    return {**times_of(ends), "memory": max(0, peak - memory_before)}


def times_of(ends: list[float]) -> dict[str, Any]:
    """Return "seconds", "step_seconds" and "num_steps" of a training.

    Args:
        ends: CPU time at the end of the optimizer's update of each step, at least two. A step
            counts from there to the next end, so the time of the first one is not known; it counts
            as the mean of the others.
    """
    seconds = [end - start for start, end in zip(ends, ends[1:], strict=False)]
    return {
        "seconds": sum(seconds) * len(ends) / len(seconds),
        "step_seconds": statistics.median(seconds[NUM_WARM_STEPS:] or seconds),
        "num_steps": len(ends),
    }


def steps_within(budget: float, step_seconds: float) -> int:
    """Return the number of steps that take about a budget, at least two.

    Args:
        budget: CPU seconds of a training.
        step_seconds: CPU seconds of a step.
    """
    return max(2, round(budget / step_seconds))


def write_encoder(embedder: Embedder, folder: Path) -> None:
    """Write an encoder and its image processor; another process may write the same at that time.

    Args:
        embedder: Embedder with the encoder.
        folder: Checkpoint folder.
    """
    disable_progress_bar()  # that of transformers when it writes files
    unfinished = folder.with_name(f".{folder.name}-{os.getpid()}")
    write_checkpoint(embedder.model, unfinished, embedder.processor, CARD, save_code=False)
    try:
        unfinished.rename(folder)
    except OSError:  # the other process was faster
        shutil.rmtree(unfinished)


def keep_encoder(output: Path, folder: Path) -> None:
    """Move the encoder of a run to a checkpoint folder of its own, and delete the rest of the run.

    Args:
        output: Run folder.
        folder: Checkpoint folder, which is replaced.
    """
    shutil.rmtree(folder, ignore_errors=True)
    write_encoder(Embedder.from_pretrained(output, device="cpu"), folder)
    shutil.rmtree(output)


__all__ = [
    "OPTIONS",
    "keep_encoder",
    "run_of",
    "settings_of",
    "steps_within",
    "times_of",
    "train_timed",
    "write_encoder",
]
