"""Keep the checkpoint with the best evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...atomic_output import atomic_output
from ...data.image_source import short_hash
from ...evaluation.evaluate import save_metrics
from ..checkpoints.model_writer import ModelWriter
from ..checkpoints.run_folder import BEST, BEST_FILE


class BestCheckpoint:
    """Keeps the model of the best evaluation so far in OUT/best, beside the last one.

    Args:
        writer: of the model in training.
        output: folder of the run.
        metric: name of the figure that decides; the first of equals stays.
        data: names what it is measured on (`Evaluation.data`).
    """

    def __init__(self, writer: ModelWriter, output: Path, metric: str | None, data: str):
        self.writer = writer
        self.folder = output / BEST
        self.metric = metric
        self.data = short_hash([data.encode()])

    def read(self) -> dict[str, Any] | None:
        """Return "step", "metric", "value" and "data" of the one that is kept, if any.

        One that was measured on other data, before a resume, does not count.
        """
        path = self.folder / BEST_FILE
        kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        return kept if kept is None or kept["data"] == self.data else None

    def offer(self, step: int, metrics: dict[str, float], card: Callable[[], str]) -> None:
        """Keep the model after some steps, with its card, if it is the best.

        For the main process alone.
        """
        if self.metric is None or self.metric not in metrics:
            return
        kept, value = self.read(), metrics[self.metric]
        if kept is not None and kept["metric"] == self.metric and kept["value"] >= value:
            return
        with atomic_output(self.folder) as unfinished:
            self.writer.write(unfinished, card())
            content = {"step": step, "metric": self.metric, "value": value, "data": self.data}
            save_metrics(content, unfinished / BEST_FILE)


__all__ = ["BestCheckpoint"]
