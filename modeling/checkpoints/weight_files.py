"""The files that hold a checkpoint's weights, in one piece or in shards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"  # as save_pretrained writes
SINGLE_FILES = (WEIGHTS, "pytorch_model.bin")
INDEXES = (INDEX, "pytorch_model.bin.index.json")


def weight_map(index: Path) -> dict[str, str]:
    """Return the file name of each tensor, as an index of shards lists them.

    Raises:
        ValueError: if the file is not such an index.
    """
    content = json.loads(index.read_text(encoding="utf-8"))
    try:
        return dict(content["weight_map"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("it has no weight_map, which lists the file of each tensor") from error


def shard_names(index: Path) -> list[str]:
    """Return the names of the files that an index of shards lists, sorted.

    Raises:
        ValueError: if the file is not such an index.
    """
    return sorted(set(weight_map(index).values()))


def stored_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Give the tensors of a checkpoint by name, one at a time; pickles with `weights_only`.

    Args:
        folder: as `save_pretrained` of transformers or timm writes it.

    Raises:
        FileNotFoundError: if it has no weights.
        pickle.UnpicklingError: if a file is a pickle with other content than tensors.
        SafetensorError: if a file is damaged.
    """
    for path in _weight_files(folder):
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 (no dict)
                    yield name, file.get_tensor(name)
        else:
            yield from torch.load(path, map_location="cpu", weights_only=True).items()


def _weight_files(folder: Path) -> list[Path]:
    for single, index in zip(SINGLE_FILES, INDEXES, strict=True):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return [folder / name for name in shard_names(folder / index)]
    raise FileNotFoundError(f"there is none of {', '.join(SINGLE_FILES + INDEXES)}")


def weight_files(folder: Path) -> list[str]:
    """Return the names of the files that hold the weights, with the index of shards."""
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    return [INDEX, *shard_names(folder / INDEX)]


__all__ = ["INDEX", "WEIGHTS", "shard_names", "stored_tensors", "weight_files", "weight_map"]
