"""Record the software environment of a run: package versions and git revisions."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from functools import cache
from pathlib import Path

import torch

from ... import __version__

# Packages that affect the results, through arithmetic, decoding or augmentation.
PACKAGES = ("transformers", "accelerate", "datasets", "numpy", "Pillow")
# Distributions of the module cv2.
OPENCV = ("opencv-python-headless", "opencv-python", "opencv-contrib-python")

Environment = dict[str, dict[str, str]]


def environment() -> Environment:
    """Return the versions of packages and the git revisions of the code.

    Returns:
        "versions": Version of each installed package, by its name.
        "git": Revisions of "selfvit" and "working_directory". A revision ends with "-dirty" if
            tracked files differ from it. It is left out if git is missing or the folder is in no
            repository; that of "selfvit" also if the package is installed, not a checkout.
    """
    revisions = {"selfvit": _package_revision(), "working_directory": _revision(Path.cwd())}
    git = {name: text for name, text in revisions.items() if text}
    return {"versions": dict(_versions()), "git": git}


@cache  # the code that this process has imported does not change
def _versions() -> dict[str, str]:
    versions = {
        "python": platform.python_version(),
        "selfvit": __version__,
        "torch": torch.__version__,  # includes the build, as in 2.14.0+cpu
    }
    for name in (*PACKAGES, *OPENCV):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@cache
def _package_revision() -> str | None:
    package = Path(__file__).resolve().parent
    # An installed package may be in the folder of another repository (.venv) without being
    # tracked by it.
    is_tracked = _git(package, "ls-files", "--error-unmatch", Path(__file__).name)
    return _revision(package) if is_tracked else None


def differences(then: Environment, now: Environment) -> list[str]:
    """Return differences that may affect results, for example "torch 2.13.0 then, 2.14.0 now".

    Args:
        then: Environment in which the run was started.
        now: Current environment.
    """
    before, after = _code_versions(then), _code_versions(now)
    return [
        f"{name} {before.get(name)} then, {after.get(name)} now"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def _code_versions(environment: Environment) -> dict[str, str | None]:
    """Return the versions of all code that affects results, without the working directory."""
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
    except (OSError, subprocess.TimeoutExpired):  # git is missing, or takes too long
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None


__all__ = ["Environment", "differences", "environment"]
