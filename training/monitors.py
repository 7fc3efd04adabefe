"""What a run tells: progress bar, log.jsonl, trackers, unreadable images."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import time
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tqdm.auto import tqdm

from ..atomic_output import atomic_output

LOG_FILE = "log.jsonl"


def chosen_tracker(name: str) -> str | None:
    """Return the tracker for Accelerate; TensorBoard, the default, only where it is installed.

    Raises:
        ValueError: if another one is asked for, and is not installed.
    """
    if name == "none":
        return None
    if importlib.util.find_spec(name) is None:
        if name == "tensorboard":
            return None
        raise ValueError(f"tracker ({name!r}) is not installed: pip install {name}.")
    return name


def start_tracker(accelerator: Accelerator, output: Path) -> None:
    """Open the tracker, if there is one; what it writes lies in the folder of the run."""
    if not accelerator.log_with:
        return
    mode = os.environ.get("WANDB_MODE", "offline")  # nothing leaves the machine unasked
    accelerator.init_trackers("logs", init_kwargs={"wandb": {"dir": str(output), "mode": mode}})


class NonFiniteLossError(FloatingPointError):
    """The loss is infinite or not a number. Raised before it can spoil weights.

    Args:
        loss: the value.
        step: of the optimizer, counted from 1.
        recipe: name.
        kept: the last good checkpoint, or None.
    """

    def __init__(self, loss: float, step: int, recipe: str, kept: Path | None):
        good = f"the last good checkpoint is {kept}" if kept else "no checkpoint was saved before"
        super().__init__(
            f"the loss of recipe {recipe} became {loss} at step {step}; {good}. Try a lower "
            "base_learning_rate, a longer warmup_ratio, max_gradient_norm 1, or bf16 instead of "
            "fp16."
        )


class Reporter:
    """Progress for people and figures for programs; on the main process only.

    Args:
        accelerator: tells which process this is, and holds the trackers.
        output: folder of the run.
        start_step: first step to do; later lines of an interrupted run are dropped from the log.
        num_steps: of the whole run.
        batch_size: images an optimizer step.
        log_steps: steps between two lines.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        output: Path,
        *,
        start_step: int,
        num_steps: int,
        batch_size: int,
        log_steps: int,
    ):
        self.accelerator = accelerator
        self.enabled = accelerator.is_main_process
        self.output = output
        self.num_steps = num_steps
        self.batch_size = batch_size
        self.log_steps = log_steps
        self.skipped: dict[str, str] = {}
        self.started = time.perf_counter()
        self.start_step = start_step
        if self.enabled:
            self._keep_log_before(start_step)
        self.bar = tqdm(
            total=num_steps,
            initial=start_step,
            unit="step",
            disable=not self.enabled,
            smoothing=0.05,
        )

    def _keep_log_before(self, step: int) -> None:
        path = self.output / LOG_FILE
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = []
        for line in lines:
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (json.JSONDecodeError, KeyError):  # a line cut short when the run was killed
                continue
        with atomic_output(path) as unfinished:
            unfinished.write_text("".join(kept), encoding="utf-8")

    @property
    def seconds(self) -> float:
        """Since the loop started."""
        return time.perf_counter() - self.started

    def step(self, step: int, figures: dict[str, float]) -> None:
        """Report the end of a step, counted from 1."""
        if not self.enabled:
            return
        rate = (step - self.start_step) * self.batch_size / self.seconds
        self.bar.update(1)
        self.bar.set_postfix(
            loss=f"{figures['loss']:.4f}",
            lr=f"{figures['learning_rate']:.2e}",
            images_per_second=f"{rate:.0f}",
            refresh=False,
        )
        if step % self.log_steps == 0 or step == self.num_steps:
            self.record(step, {**figures, "images_per_second": rate})

    def record(self, step: int, figures: dict[str, Any]) -> None:
        """Write a line to the log, and to the trackers."""
        if self.enabled:
            with open(self.output / LOG_FILE, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **figures}) + "\n")
            self.accelerator.log(figures, step=step)

    def warn(self, message: str) -> None:
        """Say something above the bar."""
        if self.enabled:
            self.bar.write(f"warning: {message}")

    def skip(self, entries: list[tuple[str, str]]) -> None:
        """Note unreadable images in skipped.csv, each once."""
        new = {name: reason for name, reason in entries if name not in self.skipped}
        if not new:
            return
        self.skipped.update(new)
        path = self.output / f"skipped{self.suffix}.csv"
        with open(path, "a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if path.stat().st_size == 0:
                writer.writerow(["path", "reason"])
            writer.writerows(new.items())
        for name, reason in new.items():
            self.bar.write(f"skipped {name}: {reason}")

    @property
    def suffix(self) -> str:
        """Of files that every process writes for itself."""
        return "" if self.enabled else f"-{self.accelerator.process_index}"

    def close(self) -> None:
        """Finish the bar."""
        self.bar.close()


__all__ = ["LOG_FILE", "NonFiniteLossError", "Reporter", "chosen_tracker", "start_tracker"]
