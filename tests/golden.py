"""Reference values from the code of the authors, stored in `tests/golden`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

FOLDER = Path(__file__).parent / "golden"


def load_golden(file_name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a file by name, and the configuration of the reference."""
    with safe_open(FOLDER / f"{file_name}.safetensors", "pt") as file:
        names = file.keys()
        tensors = {name: file.get_tensor(name) for name in names}
        config = json.loads(file.metadata().get("config", "{}"))
    return tensors, config


def weights_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of the reference, with its own names."""
    return {
        name.removeprefix("weights."): tensor
        for name, tensor in tensors.items()
        if name.startswith("weights.")
    }
