"""Check checkpoint folders, with errors that name the damaged or missing file and the fix."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.utils import CONFIG_NAME, cached_file

from ...configuration.format_version import VERSION
from .weight_files import INDEX, WEIGHTS, shard_names

# Arguments of both `from_pretrained` and `cached_file` that locate a checkpoint besides its name.
LOCATION_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "subfolder")
# Classes in config.json that have no objective, or only the encoder of one.
ENCODERS = ("SelfViTModel", "SelfViTForImageClassification", "SelfViTBackbone", "MAEEncoder")


def location_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that locate a checkpoint besides its name."""
    return {name: arguments[name] for name in LOCATION_ARGUMENTS if arguments.get(name) is not None}


@contextmanager
def translate_load_errors(
    checkpoint: str | os.PathLike[str], location: Mapping[str, Any]
) -> Iterator[None]:
    """Replace errors of reading by errors that name the file; other errors pass unchanged.

    Args:
        checkpoint: Folder or Hub id.
        location: Result of `location_arguments`.

    Raises:
        FileNotFoundError: If weights are missing in a folder.
        ValueError: If a file of weights is damaged.
    """
    try:
        yield
    except (OSError, SafetensorError, json.JSONDecodeError):
        check_folder(str(checkpoint), location.get("subfolder", ""))
        check_weights(str(checkpoint), location)
        raise


def check_folder(checkpoint: str, subfolder: str = "") -> None:
    """Check that a folder has the configuration and the weights of a checkpoint.

    Args:
        checkpoint: Folder or Hub id.
        subfolder: Folder of the checkpoint inside `checkpoint`.

    Raises:
        FileNotFoundError: If the folder does not exist or is not a checkpoint; the message lists
            its files. A name that may be a Hub id passes.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        if folder.exists():
            raise FileNotFoundError(f"{checkpoint!r} is a file; give the folder that contains it.")
        if checkpoint.startswith((".", "/", "~")) or checkpoint.count("/") > 1:
            raise FileNotFoundError(f"there is no folder {checkpoint!r}; check the path.")
        return  # a Hub id
    if subfolder:
        folder = folder / subfolder
        if not folder.is_dir():
            raise FileNotFoundError(f"{checkpoint!r} has no folder {subfolder!r}; check its name.")
        checkpoint = str(folder)
    contents = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "no files"
    if not (folder / CONFIG_NAME).is_file():
        raise FileNotFoundError(
            f"{checkpoint!r} is not a checkpoint: it has no config.json. It contains {contents}."
        )
    if not any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        raise FileNotFoundError(
            f"{checkpoint!r} has a config.json but no {WEIGHTS}: its weights are missing. It "
            f"contains {contents}. Copy or download the complete folder."
        )


def check_weights(checkpoint: str, location: Mapping[str, Any]) -> None:
    """Check that all files of weights exist and are complete, by reading their headers.

    Args:
        checkpoint: Folder or Hub id. For a Hub id, the downloaded files are checked.
        location: Result of `location_arguments`.

    Raises:
        FileNotFoundError: If a shard is missing.
        ValueError: If a file is damaged.
    """
    advice = "it is damaged or incomplete. Copy or download it again"
    is_folder = Path(checkpoint).is_dir()
    if not is_folder:
        advice += " (force_download=True)"
    for path in _local_weight_files(checkpoint, location, advice):
        if not is_folder and not path.exists():
            continue  # not downloaded, which has its own error
        try:
            with safe_open(path, "pt"):
                pass
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{str(path)!r} does not exist, but {INDEX} names it: some of the weights are "
                "missing. Copy or download all of them."
            ) from error
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{str(path)!r} cannot be read ({error}): {advice}.") from error


def _local_weight_files(checkpoint: str, location: Mapping[str, Any], advice: str) -> list[Path]:
    index = _local_file(checkpoint, INDEX, location)
    if index is None:
        single = _local_file(checkpoint, WEIGHTS, location)
        return [] if single is None else [single]
    try:
        shards = shard_names(index)
    except ValueError as error:
        raise ValueError(f"{str(index)!r} cannot be read ({error}): {advice}.") from error
    return [index.parent / shard for shard in shards]


def _local_file(checkpoint: str, name: str, location: Mapping[str, Any]) -> Path | None:
    """Return the path of a file in the folder or the download cache, or None."""
    local = {
        **location,
        "local_files_only": True,
        "_raise_exceptions_for_missing_entries": False,
    }
    try:
        found = cached_file(checkpoint, name, **local)
    except OSError:
        return None
    return None if found is None else Path(found)


def check_objective(
    model_class: type, checkpoint: str, architectures: Sequence[str] | None, settings: Any
) -> None:
    """Check that a checkpoint has the objective of the class that opens it.

    Args:
        model_class: Class of an objective.
        checkpoint: Folder or Hub id.
        architectures: `architectures` in config.json.
        settings: Settings of the objective in config.json, or None.

    Raises:
        ValueError: If the checkpoint contains only an encoder, or an unknown objective.
    """
    stored = (architectures or ["model of an unnamed class"])[0]
    if stored in ENCODERS:
        raise ValueError(
            f"{checkpoint!r} contains a {stored} according to its config.json: an encoder without "
            f"an objective, so {model_class.__name__} cannot continue its training. Open it with "
            "AutoModel, or start an objective from it: selfvit train RECIPE --init-from "
            f"{checkpoint} --data IMAGES --output RUN."
        )
    if settings is None:
        raise ValueError(
            f"{checkpoint!r} contains a {stored} according to its config.json, which selfvit "
            f"{VERSION} cannot open as {model_class.__name__}. If the objective is newer, install "
            "a newer version of selfvit. AutoModel opens its encoder."
        )


__all__ = [
    "check_folder",
    "check_objective",
    "check_weights",
    "location_arguments",
    "translate_load_errors",
]
