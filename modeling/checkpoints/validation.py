"""Why a checkpoint does not open, in words that name the file and what to do."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file

from ...configuration.format_version import VERSION
from .weight_files import INDEX, WEIGHTS, shard_names

# Where a checkpoint lies, besides its name: what `from_pretrained` and `cached_file` both take.
WHERE = ("revision", "token", "cache_dir", "local_files_only", "subfolder")
# What config.json names where there is no objective, or no more of it than its encoder.
ENCODERS = ("SelfViTModel", "SelfViTForImageClassification", "SelfViTBackbone", "MAEEncoder")


def place_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the arguments of `from_pretrained` that say where a checkpoint lies."""
    return {name: arguments[name] for name in WHERE if arguments.get(name) is not None}


@contextmanager
def explained(checkpoint: str | os.PathLike[str], where: Mapping[str, Any]) -> Iterator[None]:
    """Say what is wrong with the files, where reading them fails; other errors stay as they are.

    Args:
        checkpoint: folder, or Hub id.
        where: as `place_of` gives it.

    Raises:
        FileNotFoundError: if a folder has no weights, or not all of them.
        ValueError: if a file of weights is damaged.
    """
    try:
        yield
    except (OSError, SafetensorError, json.JSONDecodeError):
        check_folder(str(checkpoint), where.get("subfolder", ""))
        check_weights(str(checkpoint), where)
        raise


def check_folder(checkpoint: str, subfolder: str = "") -> None:
    """Check that a folder is a checkpoint: that it has a configuration and weights.

    Args:
        checkpoint: folder, or Hub id.
        subfolder: of it, where the checkpoint lies.

    Raises:
        FileNotFoundError: if it is none, saying what it holds, or is not there; a name that may be
            a Hub id passes.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        if folder.exists():
            raise FileNotFoundError(f"{checkpoint!r} is a file; give the folder it lies in.")
        if checkpoint.startswith((".", "/", "~")) or checkpoint.count("/") > 1:
            raise FileNotFoundError(f"there is no folder {checkpoint!r}.")
        return  # a Hub id
    if subfolder:
        folder = folder / subfolder
        if not folder.is_dir():
            raise FileNotFoundError(f"{checkpoint!r} has no folder {subfolder!r}.")
        checkpoint = str(folder)
    holds = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{checkpoint!r} is no checkpoint: it has no config.json. It holds {holds}."
        )
    if not any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        raise FileNotFoundError(
            f"{checkpoint!r} has a config.json and no {WEIGHTS}: its weights are missing. It holds "
            f"{holds}. Copy or download all of it."
        )


def check_weights(checkpoint: str, where: Mapping[str, Any]) -> None:
    """Check that the files of weights are there and whole, by their headers.

    Args:
        checkpoint: folder, or Hub id; of this what was downloaded is looked at.
        where: as `place_of` gives it.

    Raises:
        FileNotFoundError: if one of several is missing.
        ValueError: if one is damaged.
    """
    again = "it is damaged, or was not written to its end. Copy or download it again"
    is_folder = Path(checkpoint).is_dir()
    if not is_folder:
        again += " (force_download=True)"
    for path in _weight_files(checkpoint, where, again):
        if not is_folder and not path.exists():
            continue  # not downloaded, which has a reason of its own
        try:
            with safe_open(path, "pt"):
                pass
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"there is no {str(path)!r}, which {INDEX} names: some of the weights are missing. "
                "Copy or download all of them."
            ) from error
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{str(path)!r} cannot be read ({error}): {again}.") from error


def _weight_files(checkpoint: str, where: Mapping[str, Any], again: str) -> list[Path]:
    index = _stored_file(checkpoint, INDEX, where)
    if index is None:
        single = _stored_file(checkpoint, WEIGHTS, where)
        return [] if single is None else [single]
    try:
        shards = shard_names(index)
    except ValueError as error:
        raise ValueError(f"{str(index)!r} cannot be read ({error}): {again}.") from error
    return [index.parent / shard for shard in shards]


def _stored_file(checkpoint: str, name: str, where: Mapping[str, Any]) -> Path | None:
    """Return a file of a checkpoint that is on this machine, or None."""
    here = {**where, "local_files_only": True, "_raise_exceptions_for_missing_entries": False}
    try:
        found = cached_file(checkpoint, name, **here)
    except OSError:
        return None
    return None if found is None else Path(found)


def check_objective(
    model_class: type, checkpoint: str, architectures: Sequence[str] | None, part: Any
) -> None:
    """Check that a checkpoint is one of the objective whose class is to open it.

    Args:
        model_class: of an objective.
        checkpoint: folder, or Hub id.
        architectures: as config.json has them.
        part: what config.json says of the objective, or None.

    Raises:
        ValueError: if it holds an encoder alone, or an objective that is not known.
    """
    holds = (architectures or ["no class by name"])[0]
    if holds in ENCODERS:
        raise ValueError(
            f"{checkpoint!r} holds a {holds}, as its config.json says: an encoder, without an "
            f"objective whose training {model_class.__name__} could go on with. Open it with "
            "AutoModel, or start an objective from it: selfvit train RECIPE --init_from "
            f"{checkpoint} --data FOLDER --output NEW."
        )
    if part is None:
        raise ValueError(
            f"{checkpoint!r} holds a {holds}, as its config.json says, which this selfvit "
            f"({VERSION}) does not open as a {model_class.__name__}. If it is a newer objective: "
            "pip install --upgrade selfvit. AutoModel opens its encoder."
        )


__all__ = ["check_folder", "check_objective", "check_weights", "explained", "place_of"]
