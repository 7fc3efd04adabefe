"""Results of measurements in files, so that a stopped benchmark continues where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selfvit.evaluation.evaluate import save_metrics


def stored_result(path: Path, settings: dict[str, Any], measure: Callable[[], Any]) -> Any:
    """Return the result of a measurement, from its file if there is one.

    The file is written completely or not at all.

    Args:
        path: JSON file of the result.
        settings: Settings of the measurement, stored in the file.
        measure: Function that computes the result, as JSON values.

    Raises:
        ValueError: If the file contains other settings.
    """
    settings = json.loads(json.dumps(settings))
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["settings"] != settings:
            raise ValueError(
                f"the settings must not change, but {path} was measured with other settings; "
                "delete it or choose another --output."
            )
        return known["result"]
    print(f"{path.stem} ...", flush=True)
    result = measure()
    save_metrics({"settings": settings, "result": result}, path)
    return result


__all__ = ["stored_result"]
