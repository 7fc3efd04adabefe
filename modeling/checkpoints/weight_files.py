"""Files of a checkpoint: the weights, in a single file or in shards with an index, and the code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"  # names by save_pretrained
SINGLE_FILES = (WEIGHTS, "pytorch_model.bin")
INDEXES = (INDEX, "pytorch_model.bin.index.json")
CONFIGURATION, MODELING = "configuration_selfvit", "modeling_selfvit"  # modules of its code


def weight_map(index: Path) -> dict[str, str]:
    """Return the file name of each tensor from an index of shards.

    Raises:
        ValueError: If the file is not an index of shards.
    """
    content = json.loads(index.read_text(encoding="utf-8"))
    try:
        return dict(content["weight_map"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("it has no weight_map, which lists the file of each tensor") from error


def shard_names(index: Path) -> list[str]:
    """Return the sorted names of the files in an index of shards.

    Raises:
        ValueError: If the file is not an index of shards.
    """
    return sorted(set(weight_map(index).values()))


def stored_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield name and tensor of all weights, one at a time; pickles are read with `weights_only`.

    Args:
        folder: Folder written by `save_pretrained` of transformers or timm.

    Raises:
        FileNotFoundError: If the folder has no weights.
        pickle.UnpicklingError: If a pickle contains other objects than tensors.
        SafetensorError: If a file is damaged.
    """
    for path in _weight_files(folder):
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 (no dict)
                    yield name, file.get_tensor(name)
        else:
            yield from torch.load(path, map_location="cpu", weights_only=True).items()


def weights_digest(folder: Path) -> str:
    """Return the SHA-256 of the weights in a folder, of several files of all bytes in their order.

    Raises:
        FileNotFoundError: If the folder has no weights.
    """
    digest = hashlib.sha256()
    for path in _weight_files(folder):
        with path.open("rb") as file:
            while part := file.read(2**20):
                digest.update(part)
    return digest.hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    for single, index in zip(SINGLE_FILES, INDEXES, strict=True):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return [folder / name for name in shard_names(folder / index)]
    raise FileNotFoundError(f"there is none of {', '.join(SINGLE_FILES + INDEXES)}")


def weight_files(folder: Path) -> list[str]:
    """Return the names of the files with the weights, including the index of shards."""
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    return [INDEX, *shard_names(folder / INDEX)]


__all__ = [
    "CONFIGURATION",
    "MODELING",
    "INDEX",
    "WEIGHTS",
    "shard_names",
    "stored_tensors",
    "weight_files",
    "weight_map",
    "weights_digest",
]
