"""A Python environment that has all installed packages except selfvit."""

from __future__ import annotations

import sysconfig
import venv
from pathlib import Path


def create_python_without_selfvit(folder: Path) -> Path:
    """Create a virtual environment, and return its Python."""
    venv.create(folder, symlinks=True, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        # .pth files run code, such as the code of an editable install
        if "selfvit" not in entry.name and entry.suffix != ".pth":
            (site / entry.name).symlink_to(entry)
    return folder / "bin" / "python"
