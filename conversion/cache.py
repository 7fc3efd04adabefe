"""Weights of other projects where a checkpoint is asked for: converted once, and kept."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import re
from pathlib import Path

from filelock import FileLock
from huggingface_hub import cached_assets_path

from ..configuration.format_version import FORMAT_VERSION, VERSION
from ..sharing.provenance import CONVERSION
from .convert import convert
from .read_weights import find_source, sha256_of, source_files

logger = logging.getLogger(__name__)


def converted_checkpoint(source: str) -> str:
    """Return the folder of the checkpoint that `convert` makes of other weights.

    It is made at the first use, with the defaults of `convert`, and kept in the cache of assets of
    huggingface_hub (HF_ASSETS_CACHE), under a fingerprint of the content of the source's files and
    the version of selfvit. What was found out is logged then; a process that uses it later logs one
    line.

    Args:
        source: File, folder, Hub id, USER/NAME@REVISION or timm model.

    Raises:
        FileNotFoundError: As in `convert`.
        ValueError: As in `convert`; nothing is kept.
    """
    path, _ = find_source(source)
    place = cached_assets_path("selfvit", "converted", _fingerprint(source_files(path)))
    name = re.sub(r"[^\w.-]+", "-", Path(source.partition("@")[0]).stem).strip(".-")
    folder = place / (name or "checkpoint")
    with FileLock(place / ".lock"):
        if (folder / CONVERSION).is_file():
            report = json.loads((folder / CONVERSION).read_text(encoding="utf-8"))
            guesses = "".join(
                f"; guess: {name}: {text}" for name, text in report["guesses"].items()
            )
            _log_once(f"{source}: {report['kind']}, converted to {folder}{guesses}")
        else:
            conversion = convert(source, folder)
            _log_once(f"{source} is converted:\n{conversion}\nwritten to {folder}")
    return str(folder)


@functools.cache  # a run resolves its start several times
def _log_once(message: str) -> None:
    logger.warning("%s", message)


def _fingerprint(files: list[Path]) -> str:
    """Return the SHA-256 of names and contents of files, and of the version of selfvit."""
    digest = hashlib.sha256(f"{VERSION} {FORMAT_VERSION}".encode())
    for file in files:
        digest.update(f"{file.name}\0{sha256_of(file)}\0".encode())
    return digest.hexdigest()[:32]


__all__ = ["converted_checkpoint"]
