"""The folder of a run: what lies in it, and whether a run may begin or go on there.

OUT/training.yaml                the run as it was started, and where its data is; can be run again
OUT/environment.json             versions and git revisions that it was started with
OUT/log.jsonl                    a line of figures every `log_steps`
OUT/images/                      pictures every `image_steps`
OUT/logs/, wandb/, mlflow/, trackio/
                                 of the trackers; OUT/trackers.json has the run's name in each
OUT/skipped.csv                  images that could not be read; skipped-N.csv, of process N
OUT/checkpoints/step-00001000/   model, processor, card, optimizer, random states; training.yaml,
                                 and trainer_state.json, which lists all files and is written last
OUT/checkpoints/step-.../unmerged.safetensors
                                 of a run with adapters: these, and the base beside them
OUT/best/                        model, processor and card of the best evaluation so far
OUT/report.json                  before and after, of a run that started from weights
OUT/config.json, model.safetensors, preprocessor_config.json, README.md, trainer_state.json
                                 the result
OUT/adapter/                     of a run with adapters: these alone, as PEFT reads them
"""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...atomic_output import atomic_output
from ...sharing.published_files import RUN_FILE
from ..config.run_config import Run
from .environment import environment

ENVIRONMENT_FILE = "environment.json"
CHECKPOINTS = "checkpoints"
SECONDS_TO_APPEAR = 60.0
# What a process that was killed may leave: half-written, replaced or half-deleted.
LEFTOVERS = (".unfinished-*", ".removed-*", ".*.unfinished-*", ".*.replaced-*")


def check_output(run: Run) -> None:
    """Refuse the folder of a run where it is taken, or cannot be resumed. Writes nothing.

    Raises:
        FileExistsError: if the folder holds a run, and neither `resume` nor `overwrite` was
            given; or something that is not a run, whatever was given.
        FileNotFoundError: if there is nothing to resume.
        ValueError: if the run to resume was started with other values, or what a run starts from
            would be overwritten by it.
    """
    output = Path(run.training.output)
    data = Path(run.training.data).expanduser()
    if data.is_dir() and _lies_in(output, data):
        raise ValueError(
            f"output ({output}) lies in data ({run.training.data}): pictures of the run would be "
            "images to train on; choose an --output outside of it."
        )
    holds_run = (output / RUN_FILE).is_file()
    holds_anything = output.exists() and (not output.is_dir() or any(_entries(output)))
    if run.training.resume:
        if not holds_run:
            raise FileNotFoundError(f"{output} holds no run to resume; start one without --resume.")
        _check_same_run(run, Run.from_yaml((output / RUN_FILE).read_text(encoding="utf-8")))
        return
    if holds_anything and not holds_run:
        raise FileExistsError(f"{output} holds something else than a run; choose another --output.")
    if holds_run and not run.training.overwrite:
        raise FileExistsError(
            f"{output} already holds a run; go on with it by --resume, replace it by --overwrite, "
            "or choose another --output."
        )
    start = run.training.init_from and Path(run.training.init_from).expanduser()
    if holds_run and start and start.exists() and _lies_in(start, output):
        raise ValueError(
            f"--overwrite would delete {run.training.init_from}, which the run starts from; choose "
            "another --output."
        )


def prepare_output(run: Run) -> None:
    """Make the folder of the run, if `check_output` allows it; for the main process alone."""
    check_output(run)
    output = Path(run.training.output)
    if run.training.resume:
        _remove_leftovers(output)
        if not (output / ENVIRONMENT_FILE).exists():
            _write_environment(output)
        return
    output.mkdir(parents=True, exist_ok=True)
    for path in output.iterdir():
        if path.name != RUN_FILE:  # by which a process that is killed here leaves a run
            _delete(path)
    _write_run(run, output)
    _write_environment(output)


def note_place_of_data(run: Run) -> None:
    """Write where the data of a resumed run is now, if it was moved; for the main process alone."""
    output = Path(run.training.output)
    started = Run.from_yaml((output / RUN_FILE).read_text(encoding="utf-8"))
    if started.training.data != run.training.data:
        training = replace(started.training, data=run.training.data)
        _write_run(replace(started, training=training), output)


def check_shared(output: Path) -> None:
    """Refuse a folder that the main process has made, and this one does not see.

    Raises:
        FileNotFoundError: if it does not appear within a minute, which network file systems take.
    """
    deadline = time.monotonic() + SECONDS_TO_APPEAR
    while not (output / RUN_FILE).is_file():
        if time.monotonic() > deadline:
            raise FileNotFoundError(
                f"{output.resolve()} of the main process is not there on {platform.node()}: all "
                "processes write into it. Choose an --output that all machines share."
            )
        time.sleep(0.1)


def _lies_in(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _entries(output: Path) -> Iterator[Path]:
    """Yield what lies there, but for what a run leaves that was killed as it began."""
    for path in output.iterdir():
        if not path.match(f".{RUN_FILE}.unfinished-*"):
            yield path


def _write_run(run: Run, output: Path) -> None:
    with atomic_output(output / RUN_FILE) as unfinished:
        unfinished.write_text(run.to_yaml(), encoding="utf-8")


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


# Values that may differ between a run and its resume: they change no weight.
FREE_TO_CHANGE = {
    "output", "resume", "overwrite", "num_workers", "log_steps", "save_steps", "save_total_limit",
    "eval_steps", "eval_train", "eval_test", "eval_limit", "tracker", "activation_checkpointing",
    "save_code", "monitor_steps", "on_collapse", "license", "card_picture",
    "energy_meter", "best_metric", "require_improvement", "data_timeout", "dry_run",
    "image_steps", "find_batch_size",
    "data",  # it may lie elsewhere by now; whether it is the same, its fingerprint says
}  # fmt: skip


def _check_same_run(run: Run, earlier: Run) -> None:
    now, then = _flat(run.to_dict()), _flat(earlier.to_dict())
    different = [
        f"{name}: {then.get(name)} then, {now.get(name)} now"
        for name in sorted(now.keys() | then.keys())
        if now.get(name) != then.get(name) and name.rpartition(".")[2] not in FREE_TO_CHANGE
    ]
    if different:
        raise ValueError(
            "--resume goes on with a run as it was started, but the values differ: "
            f"{'; '.join(different)}. Give the same ones, or start anew in another --output."
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(
            _flat(value, f"{prefix}{name}.")
            if isinstance(value, dict)
            else {f"{prefix}{name}": value}  # a name may be a number: those of id2label are
        )
    return flat


LOG_FILE = "log.jsonl"


PICTURES = "images"


REPORT_FILE = "report.json"


BEFORE_FILE = "before.npz"  # among the checkpoints: a run that is resumed needs it


BEST = "best"


BEST_FILE = "best.json"


TRACKERS_FILE = "trackers.json"


__all__ = [
    "CHECKPOINTS",
    "ENVIRONMENT_FILE",
    "LOG_FILE",
    "PICTURES",
    "TRACKERS_FILE",
    "check_output",
    "check_shared",
    "note_place_of_data",
    "prepare_output",
]
