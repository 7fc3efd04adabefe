"""What a run tells: progress bar, log.jsonl, trackers, pictures, unreadable images."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from PIL import Image
from tqdm.auto import tqdm

from ...atomic_output import atomic_output
from ..checkpoints.run_folder import LOG_FILE, PICTURES
from .trackers import log_figures, log_images


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
        self.skipped = self._skipped_before()
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

    def _skipped_before(self) -> dict[str, str]:
        if not self.skipped_file.exists():
            return {}
        with open(self.skipped_file, newline="", encoding="utf-8") as file:
            return {row["path"]: row["reason"] for row in csv.DictReader(file)}

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
            self._tell_trackers(lambda tracker: log_figures(tracker, figures, step))

    def show(self, step: int, pictures: dict[str, np.ndarray]) -> None:
        """Write pictures to OUT/images, and to the trackers.

        Args:
            step: that they are of, counted from 1.
            pictures: by name, each (H, W, 3) uint8.

        Raises:
            OSError: if they cannot be written.
        """
        if not self.enabled:
            return
        for name, picture in pictures.items():
            with atomic_output(
                self.output / PICTURES / f"step-{step:08d}-{name}.png"
            ) as unfinished:
                Image.fromarray(picture).save(unfinished, format="png")
        self._tell_trackers(lambda tracker: log_images(tracker, pictures, step))

    def _tell_trackers(self, tell: Callable[[GeneralTracker], None]) -> None:
        """Tell every tracker something; one that fails is left out from then on.

        log.jsonl has it all, and the client of a server that is gone may wait minutes each time.
        """
        for tracker in list(self.accelerator.trackers):
            try:
                tell(tracker)
            except Exception as error:  # whatever it is, the run is worth more
                self.accelerator.trackers.remove(tracker)
                self.warn(f"the tracker {tracker.name} failed, and gets nothing more: {error!r}")

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
        with open(self.skipped_file, "a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if self.skipped_file.stat().st_size == 0:
                writer.writerow(["path", "reason"])
            writer.writerows(new.items())
        for name, reason in new.items():
            self.bar.write(f"skipped {name}: {reason}")

    @property
    def skipped_file(self) -> Path:
        """List of unreadable images, which every process writes for itself."""
        suffix = "" if self.enabled else f"-{self.accelerator.process_index}"
        return self.output / f"skipped{suffix}.csv"

    def close(self) -> None:
        """Finish the bar and the trackers."""
        self.bar.close()
        self._tell_trackers(lambda tracker: tracker.finish())
        self.accelerator.trackers.clear()


__all__ = ["Reporter"]
