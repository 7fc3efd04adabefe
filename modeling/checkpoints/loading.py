"""Strict loading: every weight of the model comes from the checkpoint."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file, logging

from ...configuration.format_version import check_format
from ...errors import shorten
from .validation import (
    check_folder,
    check_objective,
    location_arguments,
    translate_load_errors,
)
from .weight_files import INDEX, WEIGHTS, weight_map

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ModelT = TypeVar("ModelT", bound=PreTrainedModel)


def load_strictly(
    model_class: type[ModelT],
    checkpoint: str | os.PathLike[str],
    *,
    new: tuple[str, ...] = (),
    resizable: tuple[str, ...] = (),
    **kwargs: Any,
) -> ModelT:
    """Load a selfvit checkpoint, and raise an error if its weights do not fit the model.

    transformers initializes missing weights at random and continues, so the mistake shows only in
    the results.

    Args:
        model_class: Class of the model.
        checkpoint: Folder or Hub id.
        new: Regular expressions of parameters that may be missing and are then initialized, such as
            the weights of a new classifier.
        resizable: Names of buffers that may have another shape and are then initialized.
        kwargs: Keyword arguments for `from_pretrained`: `dtype`, `network`, fields of the
            configuration.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError: If the folder does not exist, is not a checkpoint, or lacks a file.
        ValueError: If the checkpoint has another model type, a newer format or another objective,
            or if weights are missing, unknown, of another shape or unreadable. The message names
            them. (For a field of the configuration that is out of range, `@strict` wraps the
            error.)
    """
    location = location_arguments(kwargs)
    stored = stored_config(checkpoint, **location)
    objective = getattr(model_class, "objective_field", None)
    if objective is not None and not new:
        check_objective(
            model_class, str(checkpoint), stored.get("architectures"), stored.get(objective)
        )
    # transformers does not validate fields that are passed to from_pretrained
    config_class: Any = model_class.config_class
    config_class.from_pretrained(checkpoint, **kwargs).validate()
    if kwargs.get("network") == "student":
        _check_student(str(checkpoint), location)
    with quiet_loading():
        loaded: Any = model_class.from_pretrained(
            checkpoint, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
    model, info = loaded
    missing = sorted(
        name
        for name in info["missing_keys"]
        if not any(re.search(pattern, name) for pattern in new)
    )
    problems = {
        "missing in the checkpoint": missing,
        "unknown to the model": sorted(info["unexpected_keys"]),
        "of another shape": [
            f"{name} {tuple(found)} instead of {tuple(expected)}"
            for name, found, expected in sorted(info["mismatched_keys"])
            if name not in resizable
        ],
        "errors": [str(message) for message in info["error_msgs"]],
    }
    listed = [f"{kind}: {shorten(names)}" for kind, names in problems.items() if names]
    if listed:
        raise ValueError(
            f"the weights in {str(checkpoint)!r} do not fit {model_class.__name__}. "
            + "; ".join(listed)
            + "."
        )
    return model


def stored_config(checkpoint: str | os.PathLike[str], **location: Any) -> dict[str, Any]:
    """Read config.json as a dictionary, before a class is chosen.

    Args:
        checkpoint: Folder or Hub id.
        location: Arguments of `from_pretrained` such as `revision` and `token`.

    Raises:
        FileNotFoundError: If the folder does not exist or is not a checkpoint.
        ValueError: If the checkpoint has another model type or a newer format.
    """
    check_folder(str(checkpoint), location.get("subfolder", ""))
    stored, _ = PreTrainedConfig.get_config_dict(str(checkpoint), **location)
    model_type = stored.get("model_type")
    if model_type != "selfvit":
        raise ValueError(
            f"{str(checkpoint)!r} is a {model_type!r} checkpoint; selfvit loads its own, with "
            "model_type 'selfvit' in config.json. selfvit convert converts some others."
        )
    check_format(stored, checkpoint)
    return stored


def _check_student(checkpoint: str, location: dict[str, Any]) -> None:
    # The weights of an encoder that was saved by itself have no prefix, so they would load as the
    # student's.
    with translate_load_errors(checkpoint, location):
        names = _stored_names(checkpoint, location)
    if not any(name.startswith("student.") for name in names):
        raise ValueError(
            f"{checkpoint!r} has no student network; use network='teacher', its only encoder."
        )


def _stored_names(checkpoint: str, location: dict[str, Any]) -> list[str]:
    """Return the names of the weights without reading the weights."""
    optional = {"_raise_exceptions_for_missing_entries": False, **location}
    index = cached_file(checkpoint, INDEX, **optional)
    if index is not None:
        return list(weight_map(Path(index)))
    with safe_open(cached_file(checkpoint, WEIGHTS, **location), "pt") as weights:
        return list(weights.keys())


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Turn off the load report and the load progress bar of transformers.

    `load_strictly` raises errors instead of the report. `disable_progress_bar` would turn off the
    progress bars of downloads too.
    """
    verbosity = logging.get_verbosity()
    hook = logging.set_tqdm_hook(
        lambda bar, args, kwargs: bar(*args, **{**kwargs, "disable": True})
    )
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.set_tqdm_hook(hook)


__all__ = ["DTYPES", "load_strictly", "quiet_loading", "stored_config"]
