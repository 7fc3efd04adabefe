"""The files that hold a checkpoint's weights, in one piece or in shards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


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
            shards = json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"]
            return [folder / name for name in sorted(set(shards.values()))]
    raise FileNotFoundError(f"there is none of {', '.join(SINGLE_FILES + INDEXES)}")


__all__ = ["stored_tensors"]
