"""transformers' own common tests of models, from its source distribution.

Neither its wheel nor this project contains them. `make test` downloads those of the installed
version into the virtual environment once:

    python -m tests.conventions.transformers_source

Without network, a message is printed, and tests that need them are skipped. If `CI` is set, as in
.ci/run, their absence is an error.
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

# Imports of the common tests that the source distribution lacks: tests of exporters (ours are in
# test_compilers.py), of text generation, and keywords of composite configurations.
ABSENT: dict[str, dict[str, Any]] = {
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "utils.test_configuration_utils": {"config_common_kwargs": {}},
}


def download() -> None:
    """Download the source distribution with pip, and keep its tests and license in `FOLDER`."""
    if FOLDER.is_dir():
        return
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER.parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-binary", "transformers", "--dest", scratch, NAME.replace("-", "==")]
        if subprocess.run(command).returncode:
            message = f"The source distribution of {NAME} could not be downloaded"
            if os.environ.get("CI"):
                raise SystemExit(f"{message}.")
            print(f"{message}; tests that need it are skipped.", file=sys.stderr)
            return
        with tarfile.open(Path(scratch) / f"{NAME}.tar.gz") as archive:
            wanted = (f"{NAME}/tests/", f"{NAME}/LICENSE")
            members = [member for member in archive if member.name.startswith(wanted)]
            archive.extractall(scratch, members, filter="data")
        # test_configuration_common.py executes it to import transformers
        (Path(scratch) / NAME / "tests" / "__init__.py").touch()
        (Path(scratch) / NAME).rename(FOLDER)


def load(name: str) -> Any:
    """Import a module of transformers' tests, or skip the calling test module if it is absent.

    In continuous integration, which sets `CI`, its absence is an error.
    """
    if not FOLDER.is_dir():
        reason = f"{FOLDER} does not exist; run `make test` or `{COMMAND}` to download it"
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
    download()
