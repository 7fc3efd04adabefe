"""A checkpoint's own code: the modules of its classes, beside its weights.

Such a folder opens with `trust_remote_code=True` where only torch and transformers are installed.
transformers follows imports between files of one folder and no others, so modules of several
folders are laid flat, and their imports with them.

One more module, `auto_classes.py`, imports the classes, and `auto_map` in config.json names it for
each. transformers loads a module that `auto_map` names, with all it imports, apart from others and
anew where any of that changed. By one door, configuration and models come from one loading; by
several, a model's class could be that of another folder of the same name, seen before.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from transformers.dynamic_module_utils import get_relative_imports

ENTRY = "auto_classes"


def write_code(classes: Mapping[str, type], folder: str | os.PathLike[str]) -> dict[str, str]:
    """Write the modules of some classes, and every module that these import relatively.

    Modules that an earlier checkpoint in the folder left, and that are not needed any more, go.

    Args:
        classes: by the Auto class that is to give them.
        folder: is made where it is missing.

    Returns:
        `auto_map` of config.json: "module.Class" by Auto class.

    Raises:
        OSError: if a source cannot be read, or a file not be written.
        ValueError: if two modules of one name would meet, or an import cannot be laid flat.
    """
    sources = _sources([given.__module__ for given in classes.values()])
    lines = ['"""What transformers\' Auto classes open this checkpoint with."""', ""]
    lines += [f"from .{_leaf(one.__module__)} import {one.__name__}" for one in classes.values()]
    sources[ENTRY] = "\n".join(lines) + "\n"
    earlier = code_files(folder)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for leaf, source in sources.items():
        (Path(folder) / f"{leaf}.py").write_text(source, encoding="utf-8")
    for path in earlier:
        if path.stem not in sources:
            path.unlink()
    return {auto: f"{ENTRY}.{one.__name__}" for auto, one in classes.items()}


def remove_code(folder: str | os.PathLike[str]) -> None:
    """Remove the modules of the checkpoint in a folder, and no others."""
    for path in code_files(folder):
        path.unlink()


def code_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the modules that config.json names in a folder, and those that they import.

    Args:
        folder: of a checkpoint, or one that has none yet, or is not there.
    """
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    auto_map = config.get("auto_map") if isinstance(config, dict) else None
    named = [name for name in (auto_map or {}).values() if isinstance(name, str)]
    # "owner/repository--module.Class" is code that lies elsewhere
    pending = [name.split(".")[0] for name in named if "--" not in name]
    found: dict[str, Path] = {}
    while pending:
        name = pending.pop()
        path = Path(folder) / f"{name}.py"
        if name not in found and name.isidentifier() and path.is_file():
            found[name] = path
            pending += get_relative_imports(path)
    return list(found.values())


def _sources(names: list[str]) -> dict[str, str]:
    """Return the flat sources of modules and of all that they import, by the last part of names."""
    pending, sources = list(names), dict[str, str]()
    written = {ENTRY: "the module that auto_map names"}
    while pending:
        name = pending.pop()
        leaf = _leaf(name)
        if written.setdefault(leaf, name) != name:
            raise ValueError(
                f"{name} and {written[leaf]} would both be written as {leaf}.py; rename one."
            )
        if leaf not in sources:
            sources[leaf], imported = _flattened(importlib.import_module(name))
            pending += imported
    return sources


def _flattened(module: ModuleType) -> tuple[str, list[str]]:
    """Return the source of a module as it is among its imports, and the names of these."""
    name = module.__name__
    try:
        source = inspect.getsource(module)
    except OSError as error:
        raise OSError(
            f"the source of {name} cannot be read, so a checkpoint cannot hold it; "
            "save_pretrained(..., save_code=False) leaves the code out."
        ) from error
    lines, imported = source.splitlines(keepends=True), []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        written = "." * node.level + (node.module or "")
        target = importlib.util.resolve_name(written, name.rpartition(".")[0])
        if not node.module or hasattr(importlib.import_module(target), "__path__"):
            raise ValueError(
                f"{name}, line {node.lineno}: `from {written} import` takes from a folder, which a "
                "checkpoint has not; import from the module that defines the name."
            )
        line = lines[node.lineno - 1]
        lines[node.lineno - 1] = line.replace(f"from {written} ", f"from .{_leaf(target)} ", 1)
        imported.append(target)
    return "".join(lines), imported


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


__all__ = ["code_files", "remove_code", "write_code"]
