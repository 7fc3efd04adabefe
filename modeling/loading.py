"""Loading that accepts no surprises: every weight of the model comes from the checkpoint."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file, logging

ModelT = TypeVar("ModelT", bound=PreTrainedModel)

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")  # as save_pretrained writes
WHERE = ("revision", "token", "cache_dir", "local_files_only", "subfolder")


def load_strictly(
    model_class: type[ModelT],
    checkpoint: str | os.PathLike[str],
    *,
    new: tuple[str, ...] = (),
    **kwargs: Any,
) -> ModelT:
    """Load a selfvit checkpoint, and refuse it if its weights do not fit the model.

    transformers initialises what is missing at random and goes on, which shows only in the results.

    Args:
        model_class: class to load.
        checkpoint: folder, or Hub id.
        new: regular expressions of parameters that may be missing, and are then initialised: a new
            classifier's, say.
        kwargs: for `from_pretrained`: `dtype`, `network`, fields of the configuration.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError: if the folder does not exist, or is no checkpoint.
        ValueError: if the checkpoint is of another model type, or weights are missing, left over,
            of another shape or unreadable; the message names them. (Wrapped by `@strict` if a
            field of the configuration is out of range.)
    """
    where = {name: kwargs[name] for name in WHERE if name in kwargs}
    stored_config(checkpoint, **where)
    # transformers does not check fields that are set while loading
    config_class: Any = model_class.config_class
    config_class.from_pretrained(checkpoint, **kwargs).validate()
    try:
        if kwargs.get("network") == "student":
            _check_student(str(checkpoint), where)
        with quiet_loading():
            loaded: Any = model_class.from_pretrained(
                checkpoint, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
    except SafetensorError as error:
        raise ValueError(
            f"the weights in {str(checkpoint)!r} cannot be read ({error}); the file is damaged or "
            "was not written to its end. Copy or download it again."
        ) from error
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
    found = [f"{kind}: {_shortened(names)}" for kind, names in problems.items() if names]
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
        ValueError: if it is of another model type.
    """
    _check_folder(str(checkpoint))
    stored, _ = PreTrainedConfig.get_config_dict(str(checkpoint), **where)
    model_type = stored.get("model_type")
    if model_type != "selfvit":
        raise ValueError(
            f"{str(checkpoint)!r} is a {model_type!r} checkpoint; selfvit loads its own, whose "
            "config.json says 'selfvit'."
        )
    return stored


def _check_folder(checkpoint: str) -> None:
    folder = Path(checkpoint)
    if not folder.is_dir():
        if folder.exists():
            raise FileNotFoundError(f"{checkpoint!r} is a file; give the folder it lies in.")
        if checkpoint.startswith((".", "/", "~")) or checkpoint.count("/") > 1:
            raise FileNotFoundError(f"there is no folder {checkpoint!r}.")
        return  # a Hub id
    holds = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{checkpoint!r} is no checkpoint: it has no config.json. It holds {holds}."
        )
    if not any((folder / name).is_file() for name in WEIGHT_FILES):
        raise FileNotFoundError(
            f"{checkpoint!r} has a config.json and no {WEIGHT_FILES[0]}. It holds {holds}."
        )


def _check_student(checkpoint: str, where: dict[str, Any]) -> None:
    # An encoder that was saved by itself has names without a prefix, so it would load as a student.
    if not any(name.startswith("student.") for name in _stored_names(checkpoint, where)):
        raise ValueError(
            f"{checkpoint!r} has no student network; use network='teacher', which is its only "
            "encoder."
        )


def _stored_names(checkpoint: str, where: dict[str, Any]) -> list[str]:
    """Return the names of the weights, without reading them."""
    found = {"_raise_exceptions_for_missing_entries": False, **where}
    index = cached_file(checkpoint, "model.safetensors.index.json", **found)
    if index is not None:
        return list(json.loads(Path(index).read_text("utf-8"))["weight_map"])
    with safe_open(cached_file(checkpoint, "model.safetensors", **where), "pt") as weights:
        return list(weights.keys())


def _shortened(names: list[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


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


__all__ = ["load_strictly", "quiet_loading", "stored_config"]
