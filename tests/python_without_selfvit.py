"""A Python environment that has all installed packages except selfvit.

Where the variables that huggingface_hub reads at its import may be those of the tests, a fork of
`python_with_torch` that runs `FORGET_SELFVIT` first does the same within a second.
"""

from __future__ import annotations

import sysconfig
import venv
from pathlib import Path

# Removes the places of selfvit from the search for modules.
FORGET_SELFVIT = """
import importlib.util, sys
from pathlib import Path

sys.path[:] = [entry for entry in sys.path if not (Path(entry) / "selfvit").is_dir()]
sys.meta_path[:] = [
    finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")
]
sys.path_importer_cache.clear()
assert not {"selfvit", "transformers"} & sys.modules.keys()
assert importlib.util.find_spec("selfvit") is None, "selfvit can be imported"
"""


def create_python_without_selfvit(folder: Path) -> Path:
    """Create a virtual environment, and return its Python."""
    venv.create(folder, symlinks=True, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        # .pth files run code, such as the code of an editable install
        if "selfvit" not in entry.name and entry.suffix != ".pth":
            (site / entry.name).symlink_to(entry)
    return folder / "bin" / "python"
