"""Run folder: its files, and checks whether a run may start or resume in it.

OUTPUT/training.yaml             all values of the run; it can be run again
OUTPUT/environment.json          versions and git revisions that it was started with
OUTPUT/log.jsonl                 a line of metrics every `log_steps`
OUTPUT/images/                   pictures every `image_steps`
OUTPUT/logs/, wandb/, mlflow/, trackio/
                                 written by the trackers; OUTPUT/trackers.json has the run's names
OUTPUT/skipped.csv               unreadable images; skipped-N.csv has those of rank N
OUTPUT/checkpoints/step-00001000/
                                 model, processor, card, optimizer, random states, training.yaml,
                                 and trainer_state.json, which lists all files and is written last
OUTPUT/checkpoints/step-.../unmerged.safetensors
                                 for a run with adapters: the adapters and the base, not merged
OUTPUT/best/                     model, processor and card of the best evaluation so far
OUTPUT/report.json               metrics before and after training, and of raw pixels
OUTPUT/config.json, model.safetensors, preprocessor_config.json, README.md, trainer_state.json
                                 the result, its code, and attention.png of the card
OUTPUT/adapter/                  for a run with adapters: the adapters alone, in PEFT's format
"""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

from ...atomic_output import atomic_output, is_named
from ...modeling.checkpoints.remote_code import code_files
from ...sharing.adapter_files import ADAPTER
from ...sharing.provenance import CARD
from ...sharing.published_files import (
    ENVIRONMENT_FILE,
    RUN_FILE,
    RUN_FILES,
    STATE_FILE,
    WEIGHT_FILES,
)
from ..config.run_config import RunConfig
from ..config.training_config import SECTIONS
from .environment import environment

CHECKPOINTS = "checkpoints"
LOG_FILE = "log.jsonl"
PICTURES = "images"
TRACKERS_FILE = "trackers.json"
BEST = "best"
CARD_PICTURE = "attention.png"
SECONDS_TO_APPEAR = 60.0
# Unfinished, replaced or partly deleted files that a killed process may leave.
LEFTOVERS = (".unfinished-*", ".replaced-*", ".removed-*", ".*.unfinished-*", ".*.replaced-*")
# Names of what a run writes, as patterns, besides the code; those of folders end with a slash.
RUN_ENTRIES = (
    *RUN_FILES,
    CONFIG_NAME,
    IMAGE_PROCESSOR_NAME,
    CARD,
    *WEIGHT_FILES,
    STATE_FILE,
    LOG_FILE,
    TRACKERS_FILE,
    CARD_PICTURE,
    "skipped.csv",
    "skipped-[0-9]*.csv",
    f"{CHECKPOINTS}/",
    f"{BEST}/",
    f"{PICTURES}/",
    f"{ADAPTER}/",
    "logs/",
    "wandb/",
    "mlflow/",
    "trackio/",
    *LEFTOVERS,
    *(f"{pattern}/" for pattern in LEFTOVERS),
)
# Values that may differ between a run and its resume, because they change no weight.
RESUMABLE_FIELDS = {
    entry.name
    for section in SECTIONS.values()
    for entry in fields(section)  # type: ignore[arg-type]
    if entry.metadata["resumable"]
} | {"teacher"}  # may have moved: its weights are compared, by teacher_revision


def check_run_folder(run: RunConfig) -> None:
    """Check that a run may start or resume in its output folder, without writing anything.

    Raises:
        FileExistsError: If the folder holds a run, and neither `resume` nor `overwrite` was given;
            or if it holds something other than a run.
        FileNotFoundError: If there is nothing to resume.
        ValueError: If the run to resume was started with other values, or if overwriting would
            delete the weights to start from.
    """
    output = Path(run.start.output)
    data = Path(run.data.name).expanduser()
    if data.is_dir() and _is_inside(output, data):
        raise ValueError(
            f"output ({output}) must lie outside of data ({run.data.name}), or the run would "
            "train on its own pictures; choose another --output."
        )
    holds_run = (output / RUN_FILE).is_file()
    holds_anything = output.exists() and (not output.is_dir() or any(_entries(output)))
    if run.start.resume:
        if not holds_run:
            raise FileNotFoundError(f"{output} holds no run to resume; start one without --resume.")
        _check_same_run(run, RunConfig.from_yaml((output / RUN_FILE).read_text(encoding="utf-8")))
        return
    if holds_anything and not holds_run:
        raise FileExistsError(
            f"{output} holds something other than a run; choose another --output."
        )
    if holds_run and not run.start.overwrite:
        raise FileExistsError(
            f"{output} already holds a run; continue it with --resume, replace it with "
            "--overwrite, or choose another --output."
        )
    start = run.start.init_from and Path(run.start.init_from).expanduser()
    if holds_run and start and start.exists() and _is_inside(start, output):
        raise ValueError(
            f"--overwrite would delete {run.start.init_from}, which the run starts from; choose "
            "another --output."
        )


def prepare_run_folder(run: RunConfig) -> None:
    """Create the run folder, or clean it up for a resume; on the main process only.

    Raises:
        OSError: As `check_run_folder`, or if the folder cannot be written.
        ValueError: As `check_run_folder`.
    """
    check_run_folder(run)
    output = Path(run.start.output)
    if run.start.resume:
        _remove_leftovers(output)
        if not (output / ENVIRONMENT_FILE).exists():
            _write_environment(output)
        return
    output.mkdir(parents=True, exist_ok=True)
    names = (*RUN_ENTRIES, *(path.name for path in code_files(output)))
    for path in list(output.iterdir()):
        # training.yaml is kept, so that a process killed here still leaves a run
        if path.name != RUN_FILE and is_named(path, names):
            _delete(path)
    write_run(run)
    _write_environment(output)


def write_run(run: RunConfig) -> None:
    """Write `training.yaml`."""
    with atomic_output(Path(run.start.output) / RUN_FILE) as unfinished:
        unfinished.write_text(run.to_yaml(), encoding="utf-8")


def update_data_path(run: RunConfig) -> None:
    """Record where the data of a resumed run is now, if it was moved; on the main process only."""
    path = Path(run.start.output) / RUN_FILE
    started = RunConfig.from_yaml(path.read_text(encoding="utf-8"))
    if started.data.data != run.data.data:
        moved = started.replace(data=run.data.data, output=run.start.output)
        with atomic_output(path) as unfinished:
            unfinished.write_text(moved.to_yaml(), encoding="utf-8")


def check_shared_filesystem(output: Path) -> None:
    """Check that this process sees the folder that the main process created.

    Raises:
        FileNotFoundError: If it does not appear within a minute, which network file systems take.
    """
    deadline = time.monotonic() + SECONDS_TO_APPEAR
    while not (output / RUN_FILE).is_file():
        if time.monotonic() > deadline:
            raise FileNotFoundError(
                f"{output.resolve()} of the main process is missing on {platform.node()}, and all "
                "processes write into it; choose an --output that all machines share."
            )
        time.sleep(0.1)


def _is_inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _entries(output: Path) -> Iterator[Path]:
    """Yield the contents of the folder, except files of a run that was killed at its start."""
    for path in output.iterdir():
        if not path.match(f".{RUN_FILE}.unfinished-*"):
            yield path


def _write_environment(output: Path) -> None:
    with atomic_output(output / ENVIRONMENT_FILE) as unfinished:
        unfinished.write_text(json.dumps(environment(), indent=2), encoding="utf-8")


def _remove_leftovers(output: Path) -> None:
    for folder in (output, output / CHECKPOINTS):
        for pattern in LEFTOVERS:
            for path in folder.glob(pattern):
                _delete(path)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _check_same_run(run: RunConfig, earlier: RunConfig) -> None:
    now, then = _flatten(run.to_dict()), _flatten(earlier.to_dict())
    different = [
        f"{name}: {then.get(name)} then, {now.get(name)} now"
        for name in sorted(now.keys() | then.keys())
        if now.get(name) != then.get(name) and name.rpartition(".")[2] not in RESUMABLE_FIELDS
    ]
    if different:
        raise ValueError(
            "--resume continues a run with the values it was started with, but these differ: "
            f"{'; '.join(different)}. Give the same values, or start a new run in another "
            f"--output; --init-from {run.start.output} --init-scope all starts from these weights."
        )


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(
            _flatten(value, f"{prefix}{name}.")
            if isinstance(value, dict)
            else {f"{prefix}{name}": value}  # a name may be a number, as in id2label
        )
    return flat


__all__ = [
    "BEST",
    "CARD_PICTURE",
    "CHECKPOINTS",
    "LOG_FILE",
    "PICTURES",
    "TRACKERS_FILE",
    "check_run_folder",
    "check_shared_filesystem",
    "prepare_run_folder",
    "update_data_path",
    "write_run",
]
