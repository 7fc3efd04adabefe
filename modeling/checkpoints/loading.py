"""Loading that accepts no surprises: every weight of the model comes from the checkpoint."""

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
from .validation import check_folder, check_objective, explained, place_of
from .weight_files import INDEX, WEIGHTS, weight_map

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ModelT = TypeVar("ModelT", bound=PreTrainedModel)


def load_strictly(
    model_class: type[ModelT],
    checkpoint: str | os.PathLike[str],
    *,
    new: tuple[str, ...] = (),
    **kwargs: Any,
) -> ModelT:
    """Load a selfvit checkpoint, and refuse it if its weights do not fit the model.

    transformers initializes what is missing at random and goes on, which shows only in the results.

    Args:
        model_class: class to load.
        checkpoint: folder, or Hub id.
        new: regular expressions of parameters that may be missing, and are then initialized: a new
            classifier's, say.
        kwargs: for `from_pretrained`: `dtype`, `network`, fields of the configuration.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError: if the folder does not exist, or is no checkpoint, or lacks a file.
        ValueError: if the checkpoint is of another model type, of a newer format or of another
            objective, or weights are missing, left over, of another shape or unreadable; the
            message names them. (Wrapped by `@strict` if a field of the configuration is out of
            range.)
    """
    where = place_of(kwargs)
    stored = stored_config(checkpoint, **where)
    objective = getattr(model_class, "objective_field", None)
    if objective is not None and not new:
        check_objective(
            model_class, str(checkpoint), stored.get("architectures"), stored.get(objective)
        )
    # transformers does not check fields that are set while loading
    config_class: Any = model_class.config_class
    config_class.from_pretrained(checkpoint, **kwargs).validate()
    if kwargs.get("network") == "student":
        _check_student(str(checkpoint), where)
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
        "not known to the model": sorted(info["unexpected_keys"]),
        "of another shape": [
            f"{name} {tuple(stored)} for {tuple(wanted)}"
            for name, stored, wanted in sorted(info["mismatched_keys"])
        ],
        "errors": [str(message) for message in info["error_msgs"]],
    }
    found = [f"{kind}: {shorten(names)}" for kind, names in problems.items() if names]
    if found:
        raise ValueError(
            f"the weights in {str(checkpoint)!r} do not fit {model_class.__name__}. "
            + "; ".join(found)
            + "."
        )
    return model


def stored_config(checkpoint: str | os.PathLike[str], **where: Any) -> dict[str, Any]:
    """Read what config.json says, before any class is chosen.

    Args:
        checkpoint: folder, or Hub id.
        where: as `from_pretrained` takes them: `revision`, `token`, ...

    Raises:
        FileNotFoundError: if the folder does not exist, or is no checkpoint.
        ValueError: if it is of another model type, or of a newer format.
    """
    check_folder(str(checkpoint), where.get("subfolder", ""))
    stored, _ = PreTrainedConfig.get_config_dict(str(checkpoint), **where)
    model_type = stored.get("model_type")
    if model_type != "selfvit":
        raise ValueError(
            f"{str(checkpoint)!r} is a {model_type!r} checkpoint; selfvit loads its own, whose "
            "config.json says 'selfvit'."
        )
    check_format(stored, checkpoint)
    return stored


def _check_student(checkpoint: str, where: dict[str, Any]) -> None:
    # An encoder that was saved by itself has names without a prefix, so it would load as a student.
    with explained(checkpoint, where):
        names = _stored_names(checkpoint, where)
    if not any(name.startswith("student.") for name in names):
        raise ValueError(
            f"{checkpoint!r} has no student network; use network='teacher', which is its only "
            "encoder."
        )


def _stored_names(checkpoint: str, where: dict[str, Any]) -> list[str]:
    """Return the names of the weights, without reading them."""
    found = {"_raise_exceptions_for_missing_entries": False, **where}
    index = cached_file(checkpoint, INDEX, **found)
    if index is not None:
        return list(weight_map(Path(index)))
    with safe_open(cached_file(checkpoint, WEIGHTS, **where), "pt") as weights:
        return list(weights.keys())


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence transformers' report of a load, which the errors here replace, and its bar.

    Not by `disable_progress_bar`: that is one switch with the bars of downloads.
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
