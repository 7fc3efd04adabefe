"""The two generated code files hold the statements of the modules, and name clashes are errors."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_relative_imports

from selfvit import SelfViTConfig, SelfViTModel
from selfvit.configuration.format_version import VERSION
from selfvit.modeling.checkpoints.code_generator import generate_code
from selfvit.modeling.checkpoints.remote_code import write_code
from selfvit.modeling.registry import MODEL_CLASSES

CONFIGURATION, MODELING = "configuration_selfvit", "modeling_selfvit"
CONFIG = {"one/config.py": "class Config:\n    size = 3\n"}


def make_package(folder: Path, monkeypatch, files: dict[str, str]) -> dict[str, type]:
    """Write a package with a unique name, and return the classes of one/config.py and model.py."""
    name = f"package_{folder.name}".replace("-", "_")
    for path, source in {**CONFIG, **files}.items():
        file = folder / name / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    monkeypatch.syspath_prepend(folder)
    return {
        "AutoConfig": importlib.import_module(f"{name}.one.config").Config,
        "AutoModel": importlib.import_module(f"{name}.one.model").Model,
    }


def load(code: dict[str, str], folder: Path, monkeypatch) -> type:
    """Import the generated files, and return the class of the model."""
    package = folder / f"generated_{folder.name}".replace("-", "_")
    package.mkdir()
    for name, source in code.items():
        (package / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    return importlib.import_module(f"{package.name}.{MODELING}").Model


# selfvit's own modules


@pytest.fixture(scope="module", params=MODEL_CLASSES.values(), ids=lambda one: one.__name__)
def model_class(request):
    return request.param


@pytest.fixture(scope="module")
def code(model_class):
    return generate_code(model_class.auto_classes())


def statements(source: str) -> list[str]:
    """Return the statements of a module without docstring, imports and `__all__`."""
    tree = ast.parse(source)
    start = int(ast.get_docstring(tree) is not None)
    return [
        ast.dump(node)
        for node in tree.body[start:]
        if not isinstance(node, ast.Import | ast.ImportFrom)
        and not ast.unparse(node).startswith("__all__")
    ]


def test_the_files_hold_every_statement_of_the_named_modules_once(code):
    for source in code.values():
        names = [line[2:] for line in source.splitlines() if line.startswith("# selfvit.")]
        modules = [inspect.getsource(importlib.import_module(name)) for name in names]
        assert len(set(names)) == len(names) > 3
        assert statements(source) == [one for module in modules for one in statements(module)]


def test_imports_are_at_the_top_and_only_the_configuration_is_relative(code, tmp_path):
    for name, source in code.items():
        tree = ast.parse(source)
        kinds = [isinstance(node, ast.Import | ast.ImportFrom) for node in tree.body[1:]]
        assert kinds == sorted(kinds, reverse=True)
        (tmp_path / f"{name}.py").write_text(source)
    assert get_relative_imports(tmp_path / f"{MODELING}.py") == [CONFIGURATION]
    assert get_relative_imports(tmp_path / f"{CONFIGURATION}.py") == []


def test_the_header_says_where_the_code_comes_from_and_where_to_edit_it(code):
    for source in code.values():
        header = ast.get_docstring(ast.parse(source))
        assert f"generated from the modules of selfvit {VERSION}" in header
        assert "Do not edit it" in header


def test_the_generator_is_not_in_the_files(code):
    assert "generate_code(classes)" in code[MODELING]  # called by name
    assert "def generate_code" not in code[MODELING]


def test_the_same_model_gives_the_same_files_in_another_process(python_with_selfvit):
    script = (
        "import json, selfvit\n"
        "from selfvit.modeling.checkpoints.code_generator import generate_code\n"
        "from selfvit.modeling.registry import MODEL_CLASSES\n"
        "classes = {name: one.auto_classes() for name, one in MODEL_CLASSES.items()}\n"
        "print(json.dumps({name: generate_code(one) for name, one in classes.items()}))\n"
    )
    # whose hashes of strings differ
    result = subprocess.run([python_with_selfvit, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found.keys() == MODEL_CLASSES.keys()
    for name, model_class in MODEL_CLASSES.items():
        expected = generate_code(model_class.auto_classes())
        assert list(found[name].items()) == list(expected.items()), name


def test_ruff_finds_nothing_to_change(code, tmp_path):
    for name, source in code.items():
        (tmp_path / f"{name}.py").write_text(source)
    ruff = [sys.executable, "-m", "ruff"]
    options = ["--isolated", "--line-length", "100"]
    for command in (["check", "--select", "E,F,I,UP,B"], ["format", "--check"]):
        result = subprocess.run(
            [*ruff, *command, *options, "."], cwd=tmp_path, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stdout + result.stderr


# Packages made for a test


def test_imports_are_collected_and_aliases_kept(tmp_path, monkeypatch):
    files = {
        "one/model.py": (
            '"""Docstring of the model."""\n\n'
            "import os.path\n"
            "import math as m\n"
            "from collections import (\n    OrderedDict as Ordered,\n    deque,\n)\n\n"
            "from ..two.pool import pool as pooled\n"
            "from .config import Config as Settings\n\n"
            "# a comment that stays\n\n\n"
            "class Model:\n"
            "    value = (m.pi, os.path.sep, Ordered, deque, pooled(3), Settings.size)\n\n\n"
            '__all__ = ["Model"]\n'
        ),
        "two/pool.py": "import math as m\nimport os\n\n\ndef pool(x):\n    return m.sqrt(x), os\n",
    }
    classes = make_package(tmp_path, monkeypatch, files)
    code = generate_code(classes)
    source = code[MODELING]
    for line in (
        "import math as m",
        "import os\n",
        "import os.path",
        "from collections import OrderedDict as Ordered",
        "from .configuration_selfvit import Config\n",
        "from .configuration_selfvit import Config as Settings",
        "\npooled = pool\n",
        "# Docstring of the model.",
        "# a comment that stays",
    ):
        assert source.count(line) == 1, (line, source)
    assert source.index("def pool(") < source.index("class Model")
    assert load(code, tmp_path, monkeypatch).value == classes["AutoModel"].value


@pytest.mark.parametrize(
    "first, second, name",
    [
        ("def _same(): ...", "def _same(): ...", "_same"),
        ("LIMIT = 1", "LIMIT: int = 2", "LIMIT"),
        ("class Same: ...", "from math import pi as Same", "Same"),
        ("from math import sqrt", "from cmath import sqrt", "sqrt"),
        ("import logging\nlogger = logging.getLogger()", "if True:\n    logger = None", "logger"),
        ("", "def filter(): ...", "filter"),
    ],
)
def test_a_name_with_two_meanings_is_an_error_that_names_both_modules(
    first, second, name, tmp_path, monkeypatch
):
    files = {
        "one/other.py": f"{first}\nother = 1\n",
        "one/model.py": f"from .other import other\n\n{second}\n\n\nclass Model:\n    x = other\n",
    }
    classes = make_package(tmp_path, monkeypatch, files)
    package = classes["AutoModel"].__module__.removesuffix(".model")
    owner = f"{package}.other" if first else "Python itself"
    message = f"{owner} and {package}.model both define {name}; rename one"
    with pytest.raises(ValueError, match=message):
        write_code(classes, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_alias_that_another_module_defines_is_an_error(tmp_path, monkeypatch):
    files = {
        "one/other.py": "first = 1\nsecond = 2\n",
        "one/model.py": "from .other import first as second\n\n\nclass Model:\n    x = second\n",
    }
    classes = make_package(tmp_path, monkeypatch, files)
    with pytest.raises(ValueError, match="both define second"):
        generate_code(classes)


def test_a_future_import_of_one_module_only_is_an_error(tmp_path, monkeypatch):
    files = {
        "one/other.py": "other = 1\n",
        "one/model.py": (
            "from __future__ import annotations\n\nfrom .other import other\n\n\n"
            "class Model:\n    x = other\n"
        ),
    }
    classes = make_package(tmp_path, monkeypatch, files)
    with pytest.raises(ValueError, match=r"other has \[\] and .*model has \['annotations'\]"):
        generate_code(classes)


@pytest.mark.parametrize("imported", ["from . import other", "from ..two import two"])
def test_an_import_from_a_package_is_an_error(imported, tmp_path, monkeypatch):
    files = {
        "one/model.py": f"import math\n{imported}\n\n\nclass Model:\n    value = math.pi\n",
        "one/other.py": "",
        "two/__init__.py": "two = 2\n",
    }
    classes = make_package(tmp_path, monkeypatch, files)
    with pytest.raises(ValueError, match=r"model, line 2, imports from a package"):
        generate_code(classes)


def test_a_relative_import_inside_a_function_is_an_error(tmp_path, monkeypatch):
    files = {
        "one/model.py": "class Model:\n    def f(self):\n        from .other import other\n",
        "one/other.py": "other = 1\n",
    }
    classes = make_package(tmp_path, monkeypatch, files)
    with pytest.raises(ValueError, match=r"model has one in line 3; move it to the top"):
        generate_code(classes)


def test_source_that_cannot_be_read_says_how_to_save_without_code(monkeypatch):
    def unreadable(module):
        raise OSError("could not get source code")

    monkeypatch.setattr(inspect, "getsource", unreadable)
    with pytest.raises(OSError, match="save_code=False"):
        generate_code({"AutoConfig": SelfViTConfig, "AutoModel": SelfViTModel})
