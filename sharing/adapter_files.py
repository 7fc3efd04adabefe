"""Adapters stored in a subfolder of a checkpoint whose weights have them merged."""

from __future__ import annotations

import json
from pathlib import Path

from .provenance import hub_id

ADAPTER = "adapter"  # subfolder of the checkpoint
# The names that PEFT uses.
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def adapter_to_publish(folder: Path) -> list[str]:
    """Return the adapter files of a checkpoint if their base model is on the Hub, otherwise none.

    Other users could not load adapters whose base model is a local folder, and the path is private.

    Args:
        folder: Checkpoint folder.
    """
    config = folder / ADAPTER / ADAPTER_CONFIG
    if not config.is_file() or not (folder / ADAPTER / ADAPTER_WEIGHTS).is_file():
        return []
    base = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base or hub_id(base) is None:
        return []
    return [f"{ADAPTER}/{name}" for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]


__all__ = ["ADAPTER", "ADAPTER_CONFIG", "ADAPTER_WEIGHTS", "adapter_to_publish"]
