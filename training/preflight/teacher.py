"""Preflight of a distillation: open the teacher, and complete the run by what it determines."""

# C channels · H, W pixels

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor
from transformers.utils import CONFIG_NAME

from ...configuration.configuration_distill import DistillConfig
from ...errors import one_line
from ...modeling.checkpoints.hub_revision import split_revision
from ...modeling.checkpoints.resolve import resolve_checkpoint
from ...modeling.frozen_teacher import FrozenTeacher, TeacherFeatures, open_teacher
from ...sharing.provenance import provenance_of
from ...sharing.published_files import RUN_FILE
from ..config.from_checkpoint import read_config
from ..config.run_config import STATISTICS, RunConfig
from ..depth import spaced_blocks


def with_teacher(run: RunConfig, say: Callable[[str], None]) -> RunConfig:
    """Return the run with what its teacher determines; runs without a teacher unchanged.

    The teacher determines its own revision, license and width, and the mean and std of the images.
    Without `teacher`, the checkpoint that the run starts from is the teacher. A student that starts
    from its teacher with the same number of blocks gets half of them. A resumed run uses the
    revision of its training.yaml.

    Args:
        run: Configuration of the run.
        say: Function that prints a line.

    Raises:
        FileNotFoundError: If the teacher cannot be found or opened.
        ValueError: If no teacher is named, or it does not fit the run.
    """
    if run.model.distill_config is None:
        return run
    name, revision = _teacher_of(run)
    teacher = open_teacher(name, revision)
    features = _features_of_an_image(name, teacher, run)
    card = provenance_of(split_revision(name)[0], name)
    license = card.license_name or card.license or run.model.distill_config.teacher_license
    width, (rows, columns) = features.class_tokens.shape[-1], features.grid
    size = sum(parameter.numel() for parameter in teacher.parameters())
    say(
        f"teacher: {name} ({teacher.model.config.model_type}, {size:,} parameters, width {width}, "
        f"{rows} x {columns} patches), revision {(teacher.revision or 'unknown')[:12]}, license "
        f"{license or 'unknown'}"
    )
    statistics = _statistics(name, teacher, run)
    say(f"mean and std of the teacher: {_options(statistics)}{_replaced(statistics, run)}")
    changes: dict[str, Any] = {
        "teacher": name,
        "teacher_revision": teacher.revision,
        "teacher_license": license,
        "teacher_hidden_size": width,
        **statistics,
    }
    num_blocks = _num_blocks_of_student(name, run)
    if num_blocks is not None:
        changes["num_hidden_layers"] = num_blocks
        kept = ", ".join(map(str, spaced_blocks(run.model.num_hidden_layers, num_blocks)))
        say(
            f"student: {num_blocks} of the teacher's {run.model.num_hidden_layers} blocks ({kept}, "
            "counted from 0); --num-hidden-layers N keeps another number"
        )
    return run.with_options(changes)


def _place(name: str) -> str:
    """Return the absolute path of a folder, as the working directory may change; a Hub id as is.

    Files of weights and models of timm, which AutoModel does not open, are converted first.
    """
    path = Path(name).expanduser()
    if (path / CONFIG_NAME).is_file():
        return os.path.abspath(path)
    return resolve_checkpoint(name) if path.exists() or "/" not in name else name


def _teacher_of(run: RunConfig) -> tuple[str, str | None]:
    """Return name and revision of the teacher; of a resumed run, the revision it started with."""
    distill = run.model.distill_config
    name = _place(distill.teacher or run.start.init_from or "") if _is_named(run) else ""
    stored = _stored(run)
    if stored is not None and (stored.teacher == name or Path(name).is_dir()):
        return name, stored.teacher_revision
    return name, distill.teacher_revision


def _is_named(run: RunConfig) -> bool:
    return bool(run.model.distill_config.teacher or run.start.init_from)


def _stored(run: RunConfig) -> DistillConfig | None:
    path = Path(run.start.output) / RUN_FILE
    if not (run.start.resume and path.is_file()):
        return None
    return RunConfig.from_yaml(path.read_text(encoding="utf-8")).model.distill_config


def _features_of_an_image(name: str, teacher: FrozenTeacher, run: RunConfig) -> TeacherFeatures:
    """Return the features of an image of the run's size, which must be the same each time."""
    shape = (run.model.num_channels, *run.model.image_height_width)
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    try:
        first, second = teacher(image), teacher(image)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"the teacher {name!r} cannot embed images of {shape[0]} channels and {shape[1]} x "
            f"{shape[2]} pixels: {one_line(error)}"
        ) from error
    if not (torch.equal(first.patches, second.patches) and first.patches.isfinite().all()):
        raise ValueError(
            f"the teacher {name!r} must give the same finite features for an image each time, and "
            "does not (MAE models of transformers hide patches at random); convert it with selfvit "
            "convert, or choose another teacher."
        )
    return first


def _statistics(name: str, teacher: FrozenTeacher, run: RunConfig) -> dict[str, list[float]]:
    """Return the teacher's mean and std by option, for pixels in 0 to 1.

    Raises:
        ValueError: If the teacher has no image processor, and the run no mean and std.
    """
    source, _ = split_revision(name)
    location = {} if Path(source).is_dir() else {"revision": teacher.revision}
    try:
        processor: Any = AutoImageProcessor.from_pretrained(source, **location)
    except (OSError, ValueError) as error:
        given = {option: getattr(run.preprocessing, option) for option in STATISTICS}
        if all(given.values()):
            return given
        raise ValueError(
            f"the teacher {name!r} has no preprocessor_config.json with the mean and std of its "
            "images; give --image-mean and --image-std."
        ) from error
    factor = getattr(processor, "rescale_factor", None) if processor.do_rescale else 1
    scale = 255 * (1 / 255 if factor is None else factor)
    normalizes, num_channels = processor.do_normalize, run.model.num_channels
    return {
        "image_mean": _per_channel(processor.image_mean if normalizes else 0, num_channels, scale),
        "image_std": _per_channel(processor.image_std if normalizes else 1, num_channels, scale),
    }


def _per_channel(values: Any, num_channels: int, scale: float) -> list[float]:
    """Return a value for each channel, divided by the scale of the pixels."""
    values = [values] * num_channels if isinstance(values, int | float) else values
    return [value / scale for value in values]


def _options(statistics: dict[str, list[float]]) -> str:
    return " ".join(
        f"--{name.replace('_', '-')} {' '.join(f'{value:.4g}' for value in values)}"
        for name, values in statistics.items()
    )


def _replaced(statistics: dict[str, list[float]], run: RunConfig) -> str:
    """Return the mean and std that those of the teacher replace, as the end of a line."""
    given = {name: getattr(run.preprocessing, name) for name in STATISTICS}
    if not all(given.values()) or given == statistics:
        return ""
    return f"; they replace {_options(given)}"


def _num_blocks_of_student(name: str, run: RunConfig) -> int | None:
    """Return half the teacher's blocks if the student starts from it and has all; otherwise None.

    A student equal to its teacher has nothing to learn.
    """
    start = run.start
    if start.init_from is None or start.init_scope == "all" or _place(start.init_from) != name:
        return None
    num_blocks = read_config(start.init_from).num_hidden_layers
    is_whole = run.model.num_hidden_layers == num_blocks
    return num_blocks // 2 if is_whole and num_blocks > 1 else None


__all__ = ["with_teacher"]
