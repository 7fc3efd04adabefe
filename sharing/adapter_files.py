"""Adapters in a folder of their own, beside the weights that they are merged into."""

from __future__ import annotations

import json
from pathlib import Path

from .provenance import hub_id

ADAPTER = "adapter"  # folder in a checkpoint's
# As PEFT names them.
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def adapter_to_publish(folder: Path) -> list[str]:
    """Return the files of a checkpoint's adapters, if their base is one of the Hub.

    A base that is a folder here nobody else could open, and its path is nobody's business.

    Args:
        folder: of the checkpoint.
    """
    config = folder / ADAPTER / ADAPTER_CONFIG
    if not config.is_file() or not (folder / ADAPTER / ADAPTER_WEIGHTS).is_file():
        return []
    base = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base or hub_id(base) is None:
        return []
    return [f"{ADAPTER}/{name}" for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]


__all__ = ["ADAPTER", "ADAPTER_CONFIG", "ADAPTER_WEIGHTS", "adapter_to_publish"]
