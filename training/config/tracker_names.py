"""Parse and check the names of experiment trackers."""

from __future__ import annotations

import importlib.util

# Modules that each tracker imports, by its name in Accelerate. mlflow-skinny lacks the modules for
# its local SQLite file.
NEEDS = {
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
}
NONE = "none"  # value of --tracker without trackers


def read_trackers(names: str) -> list[str]:
    """Parse a value of --tracker, such as "none", "wandb" or "tensorboard,mlflow".

    Returns:
        Names of the trackers.

    Raises:
        ValueError: If a tracker is unknown, repeated, or combined with "none".
    """
    trackers = [name.strip() for name in names.split(",")]
    if trackers == [NONE]:
        return []
    if set(trackers) - set(NEEDS) or len(set(trackers)) < len(trackers):
        raise ValueError(
            f"--tracker ({names}) must be {NONE}, or one or more of these, separated by commas: "
            f"{', '.join(NEEDS)}."
        )
    return trackers


def chosen_trackers(names: str) -> list[str]:
    """Return the trackers to use; TensorBoard alone, the default, is left out if not installed.

    Raises:
        ValueError: If another tracker is not installed.
    """
    trackers = read_trackers(names)
    for name in trackers:
        missing = [module for module in NEEDS[name] if importlib.util.find_spec(module) is None]
        if missing and trackers == ["tensorboard"]:
            return []
        if missing:
            raise ValueError(
                f"--tracker ({name}) needs {', '.join(missing)}, which is not installed; use: pip "
                f"install {name}, or pip install 'selfvit[trackers]' for all trackers."
            )
    return trackers


__all__ = ["chosen_trackers", "read_trackers"]
