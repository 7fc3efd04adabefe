"""Trackers, through Accelerate: which there are, where they write, what they are told of a run.

All that they write stays on this machine, unless the environment says otherwise:

| tracker     | writes to                       | elsewhere by                          |
| ----------- | ------------------------------- | ------------------------------------- |
| tensorboard | OUT/logs                        |                                       |
| wandb       | OUT/wandb, offline              | WANDB_MODE                            |
| trackio     | OUT/trackio, of the first run   | TRACKIO_DIR, TRACKIO_SPACE_ID,        |
|             | in a process                    | TRACKIO_SERVER_URL                    |
| mlflow      | OUT/mlflow, SQLite and pictures | MLFLOW_TRACKING_URI                   |

OUT/trackers.json names the run in each tracker, and a run that is resumed goes on in the same one.
Steps that it does again, since its last checkpoint, replace those before in TensorBoard; wandb
keeps the earlier ones, trackio and mlflow both. OUT/log.jsonl has them once.
"""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ...atomic_output import atomic_output
from ..checkpoints.run_folder import TRACKERS_FILE

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.tracking import GeneralTracker

    from ..config.run_config import Run

# These take the values of a resumed run, and trackio loses them otherwise; MLflow refuses others.
TOLD_AGAIN = ("wandb", "trackio")
PROJECT = "selfvit"


def start_trackers(accelerator: Accelerator, run: Run, start_step: int) -> None:
    """Open the trackers, and hand them the configuration; an error ends the run, at its start.

    Args:
        accelerator: made with `log_with`, the trackers.
        run: with its effective values.
        start_step: first step to do; above 0, a run is resumed.
    """
    if not accelerator.log_with or not accelerator.is_main_process:
        return
    output = Path(run.training.output)
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
        if tracker.name not in known or tracker.name in TOLD_AGAIN:
            tracker.store_init_configuration(plain_configuration(run, accelerator.num_processes))
        if tracker.name not in known:
            is_mlflow = tracker.name == "mlflow"  # the only one that names its runs itself
            ids[tracker.name] = tracker.tracker.info.run_id if is_mlflow else new_id
    with atomic_output(path) as unfinished:
        unfinished.write_text(json.dumps(ids, indent=2), encoding="utf-8")


def _settings(
    name: str, output: Path, known_id: str | None, new_id: str, start_step: int
) -> dict[str, Any]:
    """Return the arguments that Accelerate hands to a tracker; set what only its environment can.

    (TensorBoard, trackio and MLflow read the environment at their import, which comes after.)
    """
    if name == "tensorboard":
        return {"purge_step": start_step + 1} if start_step else {}
    if name == "wandb":
        mode = os.environ.get("WANDB_MODE", "offline")
        if mode == "offline":
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # would be sent all the same
        run_id = known_id or new_id
        return {"dir": str(output), "mode": mode, "id": run_id, "name": run_id, "resume": "allow"}
    if name == "trackio":
        os.environ.setdefault("TRACKIO_DIR", str((output / "trackio").resolve()))
        return {"name": known_id or new_id, "resume": "allow", "embed": False}
    return {**_mlflow_place(output / "mlflow"), "run_id": known_id, "run_name": new_id}


def _mlflow_place(folder: Path) -> dict[str, str]:
    """Tell MLflow where to write: to the environment's server or store, or else to a folder."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        mlflow.set_tracking_uri(uri)
        return {}
    folder = folder.resolve()
    folder.mkdir(exist_ok=True)
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    # set_tracking_uri lays it there: the next run of this process would take it for the user's
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    return {"logging_dir": (folder / "artifacts").as_uri()}


def plain_configuration(run: Run, num_processes: int) -> dict[str, Any]:
    """Return the effective values of a run by dotted name, each a number, a truth value or text."""
    values: dict[str, Any] = {"num_processes": num_processes}
    sections = run.to_dict()
    for name in ("id2label", "label2id"):  # thousands of values, and no choice of the run
        sections["model"].pop(name, None)
    pending = list(sections.items())
    while pending:
        name, value = pending.pop()
        if isinstance(value, dict):
            pending += [(f"{name}.{key}", inner) for key, inner in value.items()]
        else:
            values[name] = value if isinstance(value, bool | int | float) else str(value)
    return dict(sorted(values.items()))


def log_figures(tracker: GeneralTracker, figures: dict[str, Any], step: int) -> None:
    """Hand a tracker the figures of a step; MLflow, where words are no metrics, has them as tags.

    Args:
        tracker: of Accelerate, whose own method drops words for MLflow, with a warning.
        figures: by name, numbers or words: what a collapse is, and advice.
        step: of the optimizer, counted from 1.
    """
    if tracker.name == "mlflow":
        import mlflow

        words = {name: value for name, value in figures.items() if isinstance(value, str)}
        figures = {name: value for name, value in figures.items() if name not in words}
        mlflow.set_tags(words)
    tracker.log(figures, step=step)


def log_images(tracker: GeneralTracker, images: dict[str, np.ndarray], step: int) -> None:
    """Hand pictures to a tracker.

    Args:
        tracker: of Accelerate, whose own method some of them lack.
        images: by name, each (H, W, 3) uint8.
        step: of the optimizer, counted from 1.
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


__all__ = ["log_figures", "log_images", "plain_configuration", "start_trackers"]
