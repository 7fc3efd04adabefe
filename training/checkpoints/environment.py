"""What a run was made with: versions, and the git revisions of code that git keeps."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

from ... import __version__

# Those that decide what numbers come out: arithmetic, decoding, augmentation.
PACKAGES = ("transformers", "accelerate", "datasets", "numpy", "Pillow")
OPENCV = ("opencv-python-headless", "opencv-python", "opencv-contrib-python")  # one module, cv2

Environment = dict[str, dict[str, str]]


def environment() -> Environment:
    """Return "versions" by package, and "git": revisions of "selfvit" and "working_directory".

    A revision ends with "-dirty" if tracked files differ from it. What cannot be found out is left
    out: no git, no repository, an installed selfvit.
    """
    versions = {
        "python": platform.python_version(),
        "selfvit": __version__,
        "torch": torch.__version__,  # with its build, as in 2.14.0+cpu
    }
    for name in (*PACKAGES, *OPENCV):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    package = Path(__file__).resolve().parent
    revisions = {
        # an installed package may lie in somebody's repository (.venv): it is not tracked there
        "selfvit": _git(package, "ls-files", "--error-unmatch", Path(__file__).name)
        and _revision(package),
        "working_directory": _revision(Path.cwd()),
    }
    return {"versions": versions, "git": {name: text for name, text in revisions.items() if text}}


def differences(then: Environment, now: Environment) -> list[str]:
    """Return what has changed, as "torch 2.13.0 then, 2.14.0 now"."""
    before, after = _of_the_code(then), _of_the_code(now)
    return [
        f"{name} {before.get(name)} then, {after.get(name)} now"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def _of_the_code(environment: Environment) -> dict[str, str | None]:
    """Return what decides the numbers: the working directory's revision is for people to know."""
    return {
        **environment["versions"],
        "git revision of selfvit": environment["git"].get("selfvit"),
    }


def _revision(folder: Path) -> str | None:
    return _git(folder, "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):  # no git, or a repository too large to wait for
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None


__all__ = ["Environment", "differences", "environment"]
