"""Parse and check the names of experiment trackers."""

from __future__ import annotations

import importlib.util

# Tracker, as Accelerate calls it, and what it imports. Local SQLite is no part of mlflow-skinny.
NEEDS = {
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
}


NONE = "none"


def read_trackers(names: str) -> list[str]:
    """Return the trackers of "none", "wandb" or "tensorboard,mlflow".

    Raises:
        ValueError: if there is no such tracker, one comes twice, or "none" beside others.
    """
    trackers = [name.strip() for name in names.split(",")]
    if trackers == [NONE]:
        return []
    if set(trackers) - set(NEEDS) or len(set(trackers)) < len(trackers):
        raise ValueError(
            f"tracker ({names!r}) must be {NONE}, or one or several, by commas, of: "
            f"{', '.join(NEEDS)}."
        )
    return trackers


def chosen_trackers(names: str) -> list[str]:
    """Return the trackers for Accelerate; TensorBoard, the default, only where it is installed.

    Raises:
        ValueError: if another one is asked for, and is not installed.
    """
    trackers = read_trackers(names)
    for name in trackers:
        missing = [module for module in NEEDS[name] if importlib.util.find_spec(module) is None]
        if missing and trackers == ["tensorboard"]:
            return []
        if missing:
            raise ValueError(
                f"tracker ({name!r}) is not installed, {', '.join(missing)} is missing: "
                f'pip install {name}, or "selfvit[trackers]" for all of them.'
            )
    return trackers


__all__ = ["chosen_trackers", "read_trackers"]
