"""The wheel, built by way of the source distribution, works without the checkout."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from selfvit import __version__

from .python_without_selfvit import FORGET_SELFVIT

ROOT = Path(__file__).parents[1]
FOLDERS = (
    "configuration", "modeling", "data", "embedding", "conversion", "evaluation", "visualization",
    "exploration", "sharing", "training",
)  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder of a wheel and a source distribution, built in a copy of the sources."""
    copy = tmp_path_factory.mktemp("sources")
    for name in (*FOLDERS, "selfvit"):
        shutil.copytree(
            ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE", "model_card.md"):
        shutil.copy(ROOT / name, copy / name)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist"],
        cwd=copy,
        check=True,
        capture_output=True,
    )
    return copy / "dist"


@pytest.fixture(scope="module")
def wheel(built):
    return next(built.glob("*.whl"))


def test_the_wheel_holds_every_module_and_nothing_else_of_the_checkout(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in FOLDERS:
        files = [path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.py")]
        modules = {f"selfvit/{file}" for file in files}
        assert modules and modules <= names
    package = {f"selfvit/{path.name}" for path in (ROOT / "selfvit").glob("*.py")}
    command_files = (ROOT / "selfvit/commands").rglob("*.py")
    commands = {path.relative_to(ROOT).as_posix() for path in command_files}
    page = {f"selfvit/exploration/page/map.{ending}" for ending in ("html", "css", "js")}
    assert page <= names
    assert {"selfvit/cli.py", "selfvit/py.typed", "selfvit/model_card.md"} <= names
    assert "selfvit/commands/embed.py" in commands and package | commands <= names
    top = {name.split("/")[0] for name in names}
    assert top == {"selfvit", next(name for name in top if name.endswith(".dist-info"))}


def test_the_version_is_written_once(wheel):
    assert wheel.name.startswith(f"selfvit-{__version__}-")
    assert '\nversion = "' not in (ROOT / "pyproject.toml").read_text()


def test_the_source_distribution_holds_the_modules_the_template_and_the_license(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = [member.name.partition("/")[2] for member in archive.getmembers()]
    assert {"modeling/modeling_selfvit.py", "selfvit/model_card.md", "LICENSE"} <= set(names)


def test_the_installed_package_embeds_without_the_checkout(
    wheel, python_with_torch, tiny_checkpoint, image_folder, tmp_path
):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    arguments = ["embed", str(tiny_checkpoint), "--data", str(image_folder)]
    arguments += ["--output", "vectors", "--num-workers", "0"]
    code = FORGET_SELFVIT + (
        f"sys.path.insert(0, {str(site)!r})\n"
        "import selfvit.cli\n"
        "print(selfvit.cli.__file__)\n"
        f"selfvit.cli.app({arguments!r})\n"
    )
    printed = subprocess.run(
        [python_with_torch, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout.startswith(str(site))
    assert (tmp_path / "vectors" / "part-00000.parquet").is_file()


def test_the_installed_package_finds_the_template_of_the_card(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        "import selfvit, importlib.resources as r; print(selfvit.__file__); "
        "print(len(r.files('selfvit').joinpath('model_card.md').read_text()))"
    )
    printed = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert printed[0].startswith(str(site)) and int(printed[1]) > 500
