"""Find the checkpoint that a name stands for, and convert weights that are not selfvit's."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from transformers.utils import CONFIG_NAME, cached_file

from ...errors import hub_id_in
from .hub_revision import download_revision, split_revision
from .weight_files import INDEXES, SINGLE_FILES

_converters: list[Callable[[str], str]] = []  # at most one


def set_converter(convert: Callable[[str], str]) -> None:
    """Set the function that converts other weights: from their name to a checkpoint's folder.

    Conversion lies above this folder, so the package passes it in.
    """
    _converters[:] = [convert]


def resolve_checkpoint(checkpoint: str | os.PathLike[str]) -> str:
    """Return a folder or Hub id that `from_pretrained` opens.

    transformers takes the revision as a separate argument of each call. An option of a command or a
    line of training.yaml is one value, so it contains the revision, which is downloaded here.

    Args:
        checkpoint: Folder or Hub id of a selfvit checkpoint, USER/NAME@REVISION, or any source that
            `selfvit convert` knows: a file, folder or Hub id of other weights, or a timm model.

    Returns:
        For USER/NAME@REVISION and for other weights, a folder in the cache. Other names are
        returned unchanged.

    Raises:
        FileNotFoundError: If the repository or the revision does not exist, or the name is a URL.
        ValueError: If other weights cannot be converted, with the words of `convert`.
    """
    check_no_url(str(checkpoint))
    repo_id, revision = split_revision(checkpoint)
    location = repo_id if revision is None else download_revision(repo_id, revision)
    if _converters and _is_foreign(location, is_downloaded=revision is not None):
        return _converters[0](str(checkpoint))
    return location


def check_no_url(name: str) -> None:
    """Check that weights are not named by a URL.

    Args:
        name: Name of a file or folder, or a Hub id.

    Raises:
        FileNotFoundError: If it is a URL; the message has the Hub id of a page of the Hub.
    """
    if "://" in name:
        hub_id = hub_id_in(name)
        fix = "copy them to this machine" if hub_id is None else f"use {hub_id}"
        raise FileNotFoundError(
            f"weights are read from a disk or from a repository on the Hub, not from the URL "
            f"{name!r}; {fix}."
        )


def _is_foreign(location: str, *, is_downloaded: bool) -> bool:
    """Return whether a name stands for weights, but not for a selfvit checkpoint.

    Names that stand for nothing are left to `from_pretrained`, whose errors say so. Of a downloaded
    repository, files of weights that selfvit does not write are not there.
    """
    path = Path(location).expanduser()
    if path.is_file():
        return not _is_selfvit(path.parent / CONFIG_NAME)
    if path.is_dir():
        files = (CONFIG_NAME,) if is_downloaded else (*SINGLE_FILES, *INDEXES)
        has_weights = any((path / name).is_file() for name in files)
        return has_weights and not _is_selfvit(path / CONFIG_NAME)
    if location.startswith((".", "/", "~")) or location.count("/") > 1:
        return False
    if "/" not in location:
        return True  # the name of a timm model, or an error of `convert`
    try:
        config = cached_file(location, CONFIG_NAME, _raise_exceptions_for_missing_entries=False)
    except OSError:
        return False
    return config is not None and not _is_selfvit(Path(config))


def _is_selfvit(config: Path) -> bool:
    """Return whether config.json is that of a selfvit checkpoint, or is damaged."""
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True  # opening it as a checkpoint names the fault
    return isinstance(content, dict) and content.get("model_type") == "selfvit"


__all__ = ["check_no_url", "resolve_checkpoint", "set_converter"]
