"""Code of a model: two files beside the weights, for `trust_remote_code=True`.

`auto_map` in config.json names the modeling file for every class, the configuration included.
transformers loads the file that `auto_map` names together with its relative imports, under a module
name that contains a hash of all these files. If `auto_map` named both files, they would get
different hashes: the configuration class would be loaded twice, and a model would not accept the
configuration that AutoConfig returned.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_imports
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

from .weight_files import CONFIGURATION, MODELING


def write_code(classes: Mapping[str, type], folder: str | os.PathLike[str]) -> dict[str, str]:
    """Write the code files of a checkpoint, and remove the code files of an earlier one.

    Args:
        classes: Classes that open the checkpoint, by Auto class. "AutoConfig" is required.
        folder: Folder of the checkpoint. It is created if it does not exist.

    Returns:
        `auto_map` of config.json: "module.Class" by Auto class.

    Raises:
        OSError: If a source cannot be read or a file cannot be written.
        ValueError: If the modules cannot be merged. The message names them.
    """
    sources = _own_sources() if _is_generated() else _generated_sources(classes)
    earlier = _named_in(folder, CONFIG_NAME)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, source in sources.items():
        (Path(folder) / f"{name}.py").write_text(source, encoding="utf-8")
    for path in earlier:
        if path.stem not in sources:
            path.unlink()
    return {auto: f"{MODELING}.{one.__name__}" for auto, one in classes.items()}


def remove_code(folder: str | os.PathLike[str]) -> None:
    """Remove the code files of the model in a folder, and no other files."""
    for path in _named_in(folder, CONFIG_NAME):
        path.unlink()


def code_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the modules in a folder that the model and the image processor consist of.

    These are the modules that config.json and preprocessor_config.json name, and the modules that
    these import.

    Args:
        folder: Folder of a checkpoint. The list is empty if there is none.
    """
    model = _named_in(folder, CONFIG_NAME)
    return list(dict.fromkeys([*model, *_named_in(folder, IMAGE_PROCESSOR_NAME)]))


def _named_in(folder: str | os.PathLike[str], settings: str) -> list[Path]:
    """Return the modules that `auto_map` of one file names, and the modules that these import."""
    try:
        config = json.loads((Path(folder) / settings).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    auto_map = config.get("auto_map") if isinstance(config, dict) else None
    named = [name for name in (auto_map or {}).values() if isinstance(name, str)]
    # "owner/repository--module.Class" is code in another repository
    pending = [name.split(".")[0] for name in named if "--" not in name]
    found: dict[str, Path] = {}
    while pending:
        name = pending.pop()
        path = Path(folder) / f"{name}.py"
        if name not in found and name.isidentifier() and path.is_file():
            found[name] = path
            pending += get_relative_imports(path)
    return list(found.values())


def _is_generated() -> bool:
    """Return whether this code runs from the modeling file of a checkpoint."""
    return __name__.rpartition(".")[2] == MODELING


def _own_sources() -> dict[str, str]:
    return {
        name: Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
        for name in (CONFIGURATION, MODELING)
    }


def _generated_sources(classes: Mapping[str, type]) -> dict[str, str]:
    # Imported by name, so that checkpoints do not contain the generator: it has nothing to read
    # there.
    generator = importlib.import_module(".code_generator", __package__)
    return generator.generate_code(classes)


__all__ = ["code_files", "remove_code", "write_code"]
