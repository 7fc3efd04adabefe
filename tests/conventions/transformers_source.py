"""transformers' own tests of what every model must keep, from its source distribution.

They are no part of its wheel, and none of this project. `make test` brings those of the installed
version into the virtual environment, once:

    python -m tests.conventions.transformers_source

Without network that is said, and what needs them is skipped. Where `CI` is set, as in .ci/run, it
is an error.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

NAME = f"transformers-{version('transformers')}"
FOLDER = Path(sys.prefix) / "share" / NAME
PACKAGE = "transformers_common_tests"
COMMAND = "python -m tests.conventions.transformers_source"

# What the common tests import and the source distribution lacks: tests of exporters (ours are in
# test_compilers.py), of generated text, and keywords that composite configurations are not asked.
ABSENT: dict[str, dict[str, Any]] = {
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "utils.test_configuration_utils": {"config_common_kwargs": {}},
}


def bring() -> None:
    """Download the source distribution by pip, and keep its tests and license in `FOLDER`."""
    if FOLDER.is_dir():
        return
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER.parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-binary", "transformers", "--dest", scratch, NAME.replace("-", "==")]
        if subprocess.run(command).returncode:
            message = f"The source distribution of {NAME}, with its tests, could not be downloaded"
            if os.environ.get("CI"):
                raise SystemExit(f"{message}.")
            print(f"{message}; the tests that need it are skipped.", file=sys.stderr)
            return
        with tarfile.open(Path(scratch) / f"{NAME}.tar.gz") as archive:
            wanted = (f"{NAME}/tests/", f"{NAME}/LICENSE")
            members = [member for member in archive if member.name.startswith(wanted)]
            archive.extractall(scratch, members, filter="data")
        # test_configuration_common.py executes it, to get at transformers
        (Path(scratch) / NAME / "tests" / "__init__.py").touch()
        (Path(scratch) / NAME).rename(FOLDER)


def load(name: str) -> Any:
    """Import a module of transformers' tests; without them, skip the module that asks for it.

    In continuous integration, which sets `CI`, their absence is an error.
    """
    if not FOLDER.is_dir():
        reason = f"there is no {FOLDER}; `make test`, or `{COMMAND}`, downloads it"
        if os.environ.get("CI"):
            raise FileNotFoundError(reason)
        pytest.skip(reason, allow_module_level=True)
    if PACKAGE not in sys.modules:
        _add_package(PACKAGE, [str(FOLDER / "tests")])
        for absent, contents in ABSENT.items():
            _add_package(f"{PACKAGE}.{absent.partition('.')[0]}", [])
            module = ModuleType(f"{PACKAGE}.{absent}")
            vars(module).update(contents)
            sys.modules[module.__name__] = module
    return importlib.import_module(f"{PACKAGE}.{name}")


def _add_package(name: str, path: list[str]) -> None:
    package = ModuleType(name)
    package.__path__ = path
    sys.modules[name] = package


if __name__ == "__main__":
    bring()
