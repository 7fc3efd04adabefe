"""Experiment trackers, through Accelerate.

All data stays on this machine, unless environment variables say otherwise:

| tracker     | writes to                          | environment variable                      |
| ----------- | ---------------------------------- | ----------------------------------------- |
| tensorboard | OUTPUT/logs                        |                                           |
| wandb       | OUTPUT/wandb, offline              | WANDB_MODE                                |
| trackio     | OUTPUT/trackio of the first run of | TRACKIO_DIR, TRACKIO_SPACE_ID,            |
|             | a process                          | TRACKIO_SERVER_URL                        |
| mlflow      | OUTPUT/mlflow (SQLite, pictures)   | MLFLOW_TRACKING_URI                       |

OUTPUT/trackers.json has the name of the run in each tracker; a resumed run continues the same one.
Steps that a resumed run repeats replace the earlier ones in TensorBoard; wandb keeps the earlier
ones, and trackio and mlflow keep both. OUTPUT/log.jsonl has every step once.
"""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from PIL import Image

from ...atomic_output import atomic_output
from ..checkpoints.run_folder import TRACKERS_FILE
from ..config.run_config import RunConfig
from ..state import TrainState
from .base import Callback

# Trackers that receive the configuration again on resume: trackio would lose it. MLflow refuses
# changed values.
RESEND_ON_RESUME = ("wandb", "trackio")
PROJECT = "selfvit"


class Trackers(Callback):
    """Opens and closes the trackers; main process only.

    Args:
        accelerator: Accelerator with `log_with` set to the trackers.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator

    def on_train_begin(self, state: TrainState) -> None:
        """Open the trackers and send them the configuration; an error ends the run here."""
        start_trackers(self.accelerator, state.run, state.step)

    def on_train_end(self, state: TrainState) -> None:
        """Close the trackers, because all metrics are logged."""
        self.close()

    def close(self) -> None:
        """Close the trackers; a failure is reported and does not raise an error."""
        for tracker in self.accelerator.trackers:
            try:
                tracker.finish()
            except Exception as error:  # a tracker must not end the run
                self.accelerator.print(f"warning: the tracker {tracker.name} failed: {error!r}")
        self.accelerator.trackers.clear()


def start_trackers(accelerator: Accelerator, run: RunConfig, start_step: int) -> None:
    """Open the trackers and send them the configuration.

    Args:
        accelerator: Accelerator with `log_with` set to the trackers.
        run: Configuration of the run.
        start_step: Number of optimizer steps done; above 0 for a resumed run.
    """
    if not accelerator.log_with or not accelerator.is_main_process:
        return
    output = Path(run.start.output)
    path = output / TRACKERS_FILE
    known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    names = [str(name) for name in accelerator.log_with]
    new_id = f"{output.resolve().name}-{uuid.uuid4().hex[:8]}"
    accelerator.project_configuration.logging_dir = str(output / "logs")
    accelerator.init_trackers(
        PROJECT,
        init_kwargs={
            name: _settings(name, output, known.get(name), new_id, start_step) for name in names
        },
    )
    ids = dict(known)
    for tracker in accelerator.trackers:
        if tracker.name not in known or tracker.name in RESEND_ON_RESUME:
            tracker.store_init_configuration(plain_configuration(run, accelerator.num_processes))
        if tracker.name not in known:
            is_mlflow = tracker.name == "mlflow"  # it names its runs itself
            ids[tracker.name] = tracker.tracker.info.run_id if is_mlflow else new_id
    with atomic_output(path) as unfinished:
        unfinished.write_text(json.dumps(ids, indent=2), encoding="utf-8")


def _settings(
    name: str, output: Path, known_id: str | None, new_id: str, start_step: int
) -> dict[str, Any]:
    """Return the arguments of a tracker; set environment variables where there is no argument.

    The trackers are imported later, and read the environment at their import.
    """
    if name == "tensorboard":
        return {"purge_step": start_step + 1} if start_step else {}
    if name == "wandb":
        mode = os.environ.get("WANDB_MODE", "offline")
        if mode == "offline":
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # sent offline, too
        run_id = known_id or new_id
        return {"dir": str(output), "mode": mode, "id": run_id, "name": run_id, "resume": "allow"}
    if name == "trackio":
        os.environ.setdefault("TRACKIO_DIR", str((output / "trackio").resolve()))
        return {"name": known_id or new_id, "resume": "allow", "embed": False}
    return {**_mlflow_place(output / "mlflow"), "run_id": known_id, "run_name": new_id}


def _mlflow_place(folder: Path) -> dict[str, str]:
    """Set where MLflow writes: MLFLOW_TRACKING_URI, or else a folder."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        mlflow.set_tracking_uri(uri)
        return {}
    folder = folder.resolve()
    folder.mkdir(exist_ok=True)
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    # set by set_tracking_uri; the next run of this process would take it for the user's
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    return {"logging_dir": (folder / "artifacts").as_uri()}


def plain_configuration(run: RunConfig, num_processes: int) -> dict[str, Any]:
    """Return the values of a run by dotted name, each a number, a boolean or a text."""
    values: dict[str, Any] = {"num_processes": num_processes}
    sections = run.to_dict()
    for name in ("id2label", "label2id"):  # thousands of values, which the data decides
        sections["model"].pop(name, None)
    pending = list(sections.items())
    while pending:
        name, value = pending.pop()
        if isinstance(value, dict):
            pending += [(f"{name}.{key}", inner) for key, inner in value.items()]
        else:
            values[name] = value if isinstance(value, bool | int | float) else str(value)
    return dict(sorted(values.items()))


def log_tracker_metrics(tracker: GeneralTracker, metrics: dict[str, Any], step: int) -> None:
    """Log metrics to a tracker; MLflow, whose metrics are numbers, gets texts as tags.

    Args:
        tracker: A tracker of Accelerate, which would drop texts for MLflow.
        metrics: Numbers or texts, by name.
        step: Number of optimizer steps done.
    """
    if tracker.name == "mlflow":
        import mlflow

        texts = {name: value for name, value in metrics.items() if isinstance(value, str)}
        metrics = {name: value for name, value in metrics.items() if name not in texts}
        mlflow.set_tags(texts)
    tracker.log(metrics, step=step)


def log_tracker_images(tracker: GeneralTracker, images: dict[str, np.ndarray], step: int) -> None:
    """Log pictures to a tracker.

    Args:
        tracker: A tracker of Accelerate; not all of them have a method for pictures.
        images: Pictures by name, each (H, W, 3) uint8.
        step: Number of optimizer steps done.
    """
    if tracker.name == "tensorboard":
        batches = {name: image[None] for name, image in images.items()}
        tracker.log_images(batches, step=step, dataformats="NHWC")  # type: ignore[attr-defined]
    elif tracker.name == "wandb":
        lists = {name: [image] for name, image in images.items()}
        tracker.log_images(lists, step=step)  # type: ignore[attr-defined]
    elif tracker.name == "trackio":
        import trackio

        tracker.log({name: trackio.Image(image) for name, image in images.items()}, step=step)
    elif tracker.name == "mlflow":
        import mlflow

        for name, image in images.items():
            mlflow.log_image(Image.fromarray(image), key=name, step=step)


__all__ = [
    "Trackers",
    "log_tracker_images",
    "log_tracker_metrics",
    "plain_configuration",
    "start_trackers",
]
