"""Keep the checkpoint with the best evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...atomic_output import atomic_output
from ...data.image_source import short_hash
from ...evaluation.evaluate import save_metrics
from ...sharing.published_files import BEST_FILE
from ..checkpoints.model_writer import ModelWriter
from ..checkpoints.run_folder import BEST


class BestCheckpoint:
    """Model of the best evaluation so far, in OUTPUT/best.

    Args:
        writer: Writer of the model in training.
        output: Run folder.
        metric: Name of the metric that decides, or None; the first of equal values is kept.
        data: Identifier of images and preprocessing of the evaluation (`Evaluation.data`).
    """

    def __init__(self, writer: ModelWriter, output: Path, metric: str | None, data: str):
        self.writer = writer
        self.folder = output / BEST
        self.metric = metric
        self.data = short_hash([data.encode()])

    def read(self) -> dict[str, Any] | None:
        """Return "step", "metric", "value" and "data" of the best evaluation, or None.

        An evaluation on other data, before a resume, does not count.
        """
        path = self.folder / BEST_FILE
        kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        return kept if kept is None or kept["data"] == self.data else None

    def offer(self, step: int, metrics: dict[str, float], card: Callable[[], str]) -> None:
        """Save the model with its card if it is the best so far; main process only.

        Args:
            step: Number of optimizer steps done.
            metrics: Metrics of the evaluation, by name.
            card: Function that renders the model card.
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
