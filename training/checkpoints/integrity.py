"""Integrity of a checkpoint: trainer_state.json, which is written last, lists every file."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from ...sharing.published_files import STATE_FILE

CHUNK_SIZE = 2**24  # bytes


def file_checksums(folder: Path) -> dict[str, dict[str, int]]:
    """Return the size in bytes and the CRC-32 of every file in a folder, by relative path."""
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "crc32": _crc32(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != STATE_FILE
    }


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Read `trainer_state.json` in the current form or in that of version 0.1."""
    state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    if "callbacks" not in state and "monitors" in state:
        state["callbacks"] = {
            "CollapseMonitor": state.pop("monitors"),
            "CostMeter": state.pop("cost"),
        }
        state["evaluation"] = state.pop("metrics")
    return state


def find_corruption(checkpoint: Path) -> str | None:
    """Return why a checkpoint is not intact, or None if it is intact.

    All files are read once, which takes about one second per gigabyte.
    """
    try:
        files = read_state(checkpoint)["files"]
    except FileNotFoundError:
        return f"{STATE_FILE} is missing"
    except (ValueError, KeyError, TypeError):
        return f"{STATE_FILE} is truncated"
    for name, expected in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
        if _crc32(path) != expected["crc32"]:
            return f"the content of {name} has changed"
    return None


def _crc32(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_SIZE):
            value = zlib.crc32(chunk, value)
    return value


__all__ = ["file_checksums", "find_corruption", "read_state"]
