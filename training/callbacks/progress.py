"""Progress bar, log.jsonl and skipped.csv."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from accelerate.utils import gather_object
from PIL import Image
from tqdm.auto import tqdm

from ...atomic_output import atomic_output
from ...data.inventory import LeftOut, read_left_out, write_left_out
from ...data.pixel_format import PixelCheck
from ...errors import printable_line
from ...progress import progress_bar
from ..checkpoints.run_folder import LOG_FILE, PICTURES
from ..config.run_config import RunConfig
from ..state import TrainState
from .base import Callback
from .trackers import log_tracker_images, log_tracker_metrics

# Images of the data have more bits than a processor of transformers reads.
STOCK_PROCESSOR = (
    "{name} has more than eight bits, of which the stock image processor of this run's checkpoints "
    "reads eight: `selfvit embed` and selfvit.Embedder scale such files as this training does, "
    "pipelines of transformers do not."
)


class ProgressLogger(Callback):
    """Shows progress, and writes metrics, pictures and unreadable images; main process only.

    Every process writes the images that it could not read.

    Args:
        accelerator: Accelerator of the run, which holds the trackers.
        run: Configuration of the run.
        left_out: Images that were left out when the data was opened.
    """

    def __init__(self, accelerator: Accelerator, run: RunConfig, left_out: Sequence[LeftOut] = ()):
        self.accelerator = accelerator
        self.left_out = left_out
        self.enabled = accelerator.is_main_process
        self.output = Path(run.start.output)
        self.batch_size = run.schedule.batch_size
        self.log_steps = run.monitoring.log_steps
        self.skipped: dict[str, str] = {}
        self.pixel_check = PixelCheck()
        has_range = run.preprocessing.declared_range is not None
        self.has_stock_processor = not has_range and run.model.num_channels == 3
        self.started = time.perf_counter()
        self.start_step = 0
        self.bar: Any = None

    def on_train_begin(self, state: TrainState) -> None:
        """Remove lines of later steps of an interrupted run from the log, and open the bar."""
        self.skipped = self._read_skipped()
        if self.enabled:
            self.list_skipped([(image.name, image.reason) for image in self.left_out])
        self.start_step = state.step
        if self.enabled:
            self._truncate_log(state.step)
        self.started = time.perf_counter()
        if self.enabled:
            self.bar = progress_bar(
                total=state.num_steps, initial=state.step, unit="steps", description="training"
            )

    def on_step_end(self, state: TrainState) -> None:
        """Advance the bar, and log the metrics if they are due."""
        self.log_skipped(state.skipped)
        self._check_findings(state.findings)
        if self.bar is None:
            return
        rate = (state.step - self.start_step) * self.batch_size / self.seconds
        self.bar.update(1)
        self.bar.set_postfix(
            loss=f"{state.metrics['loss']:.4f}",
            lr=f"{state.metrics['learning_rate']:.2e}",
            images_per_second=f"{rate:.0f}",
            refresh=False,
        )
        if state.step % self.log_steps == 0 or state.step == state.num_steps:
            self.log_metrics(state.step, {**state.metrics, "images_per_second": rate})

    def on_train_end(self, state: TrainState) -> None:
        """Close the bar, so that what follows is printed below it."""
        self.close()
        if self.accelerator.num_processes > 1:
            own, *others = gather_object([self.pixel_check.warnings_by_kind()])
            found = {kind: text for other in others for kind, text in other.items()}
            for kind in found.keys() - own.keys():  # the main process has warned of its own
                self.warn(found[kind])

    def close(self) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()

    @property
    def seconds(self) -> float:
        """Seconds since the first step of this process."""
        return time.perf_counter() - self.started

    def log_metrics(self, step: int, metrics: dict[str, Any]) -> None:
        """Write a line to log.jsonl and to the trackers.

        Args:
            step: Number of optimizer steps done.
            metrics: Numbers or texts, by name.
        """
        if self.enabled:
            with open(self.output / LOG_FILE, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **metrics}) + "\n")
            self._for_trackers(lambda tracker: log_tracker_metrics(tracker, metrics, step))

    def log_images(self, step: int, images: dict[str, np.ndarray]) -> None:
        """Write pictures to OUTPUT/images and to the trackers.

        Args:
            step: Number of optimizer steps done.
            images: Pictures by name, each (H, W, 3) uint8.

        Raises:
            OSError: If they cannot be written.
        """
        if not self.enabled:
            return
        for name, image in images.items():
            path = self.output / PICTURES / f"step-{step:08d}-{name}.png"
            with atomic_output(path) as unfinished:
                Image.fromarray(image).save(unfinished, format="png")
        self._for_trackers(lambda tracker: log_tracker_images(tracker, images, step))

    def log_skipped(self, entries: list[tuple[str, str]]) -> None:
        """Print unreadable images and add them to skipped.csv, each once: (name, reason)."""
        for name, reason in self.list_skipped(entries).items():
            tqdm.write(printable_line(f"skipped {name}: {reason}"))

    def list_skipped(self, entries: list[tuple[str, str]]) -> dict[str, str]:
        """Add images to skipped.csv, each once, and return those that were added.

        Args:
            entries: Images: (name, reason).
        """
        new = {name: reason for name, reason in entries if name not in self.skipped}
        if not new:
            return new
        self.skipped.update(new)
        write_left_out(self.skipped_file, [LeftOut(name, reason) for name, reason in new.items()])
        return new

    def _check_findings(self, findings: list[tuple[str, Any]]) -> None:
        """Warn once of what files hold and is not read, and of bits that a pipeline lacks."""
        for name, found in findings:
            self.pixel_check.add(name, found)
        for warning in self.pixel_check.warnings_once():
            self.warn(warning)
        deep = [name for name, found in findings if found.ranges is not None]
        if deep and self.has_stock_processor:
            self.warn(STOCK_PROCESSOR.format(name=deep[0]))
            self.has_stock_processor = False

    def warn(self, message: str) -> None:
        """Print a warning above the bar."""
        if self.enabled:
            tqdm.write(f"warning: {message}")

    @property
    def skipped_file(self) -> Path:
        """List of unreadable images; each process writes its own."""
        suffix = "" if self.enabled else f"-{self.accelerator.process_index}"
        return self.output / f"skipped{suffix}.csv"

    def _truncate_log(self, step: int) -> None:
        path = self.output / LOG_FILE
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = []
        for line in lines:
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (json.JSONDecodeError, KeyError):  # incomplete, because the run was killed
                continue
        with atomic_output(path) as unfinished:
            unfinished.write_text("".join(kept), encoding="utf-8")

    def _read_skipped(self) -> dict[str, str]:
        return {entry.name: entry.reason for entry in read_left_out(self.skipped_file)}

    def _for_trackers(self, log: Callable[[GeneralTracker], None]) -> None:
        """Call a function for every tracker, and stop using a tracker that fails.

        log.jsonl has all metrics. A tracker whose server is gone may wait for minutes each time.
        """
        for tracker in list(self.accelerator.trackers):
            try:
                log(tracker)
            except Exception as error:  # a tracker must not end the run
                self.accelerator.trackers.remove(tracker)
                self.warn(f"the tracker {tracker.name} failed and is not used any more: {error!r}")


__all__ = ["ProgressLogger"]
