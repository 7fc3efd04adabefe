"""The shape of the package, read from its imports."""

from __future__ import annotations

import ast
import graphlib
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# configuration <- modeling; data; embedding <- {evaluation, visualization} <- exploration
# <- sharing <- {conversion, training} <- commands <- cli; conversion writes an image processor,
# which embedding builds, and a card, which sharing renders; sharing writes a Space of the app
LEAVES = {
    "atomic_output",
    "errors",
    "file_modes",
    "option_help",
    "pixel_scale",
    "progress",
    "recipe_overview",
}  # below all folders
MAY_IMPORT: dict[str, set[str]] = {
    "configuration": set(),
    "modeling": {"configuration"},
    "data": set(),
    "embedding": {"configuration", "modeling", "data"},
    "conversion": {"configuration", "modeling", "data", "embedding", "sharing"},
    "evaluation": {"configuration", "modeling", "data", "embedding"},
    "visualization": {"configuration", "modeling", "data", "embedding"},
    "exploration": {
        "configuration",
        "modeling",
        "data",
        "embedding",
        "evaluation",
        "visualization",
    },
    "sharing": {
        "configuration",
        "modeling",
        "data",
        "embedding",
        "evaluation",
        "visualization",
        "exploration",
    },
    "training": {
        "configuration",
        "modeling",
        "data",
        "embedding",
        "evaluation",
        "visualization",
        "sharing",
    },
}
FOLDERS = [name for name in MAY_IMPORT if (ROOT / name).is_dir()]
FILES = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]
PACKAGE_FILES = sorted(
    file
    for folder in ("", "commands", "commands/exploration")
    for file in (ROOT / "selfvit" / folder).glob("*.py")
)
REGISTRATION = ROOT / "selfvit" / "auto_registration.py"
HEAVY = {"torch", "transformers", "numpy", "PIL", "huggingface_hub", "pyarrow", "typer", "tqdm"}
TRAINING = {"accelerate", "datasets", "torchvision", "cv2"}


@dataclass(frozen=True)
class Import:
    """One imported name: `from <level dots><module> import <name>`, or `import <module>`."""

    module: str
    name: str | None
    level: int
    line: int


@cache
def tree_of(file: Path) -> ast.Module:
    """Return the parsed source of a file, which many tests here and in test_language.py read."""
    return ast.parse(file.read_text())


@cache
def imports_of(file: Path) -> list[Import]:
    """Return every import of a file, inside functions too."""
    found = []
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, None, 0, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found += [Import(module, alias.name, node.level, node.lineno) for alias in node.names]
    return found


def target_of(file: Path, entry: Import) -> tuple[str, ...]:
    """Return the imported module below selfvit, as parts: ("modeling", "pooling")."""
    package = ("selfvit", *file.relative_to(ROOT).parts[:-1])
    if file.is_relative_to(ROOT / "selfvit"):
        package = file.relative_to(ROOT).parts[:-1]
    parts = package[: len(package) - entry.level + 1]
    module = tuple(entry.module.split(".")) if entry.module else ()
    return (*parts, *module)[1:]


@cache
def file_of(parts: tuple[str, ...]) -> Path:
    """Return the file of a module of the package."""
    if not parts:
        return ROOT / "selfvit" / "__init__.py"
    for place in (ROOT, ROOT / "selfvit"):
        path = place.joinpath(*parts)
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if candidate.exists():
                return candidate
    raise AssertionError(f"there is no module selfvit.{'.'.join(parts)}")


@cache
def names_defined_in(file: Path) -> set[str]:
    """Return what a module defines at its top level, and not what it imports."""
    names = set()
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def show(file: Path, entry: Import) -> str:
    return f"{file.relative_to(ROOT)}:{entry.line}"


def label(file: Path) -> str:
    return str(file.relative_to(ROOT))


def faulty_import(file: Path, entry: Import) -> str | None:
    """Return why a file may not have an import, or None if it may."""
    folder = file.relative_to(ROOT).parts[0]
    if entry.level == 0:
        is_own = entry.module.split(".")[0] in ("selfvit", "tests")
        return "inside the package imports are relative" if is_own else None
    target = target_of(file, entry)
    if not target:  # the package itself, which has imported configuration and modeling
        return None if "modeling" in MAY_IMPORT[folder] else "a circle"
    if target[0] in MAY_IMPORT[folder] | {folder} | LEAVES:
        return None
    return f"{folder} may not import {target[0]}"


def test_imports_run_one_way():
    faults = [
        f"{show(file, entry)}: {fault}"
        for file in FILES
        for entry in imports_of(file)
        if (fault := faulty_import(file, entry)) is not None
    ]
    assert not faults


def test_a_relative_import_names_the_module_that_defines_the_name():
    faults = []
    for file in FILES + PACKAGE_FILES:
        for entry in imports_of(file):
            if entry.level == 0:
                continue
            source = file_of(target_of(file, entry))
            defined = names_defined_in(source)
            if source.name == "__init__.py" and entry.name and entry.name not in defined:
                file_of((*target_of(file, entry), entry.name))  # a module, or an error
            elif entry.name not in defined:
                faults.append(f"{show(file, entry)}: {entry.name} is not in {label(source)}")
    assert not faults


@pytest.mark.parametrize("folder", ["configuration", "modeling"])
def test_models_need_torch_and_transformers_only(folder):
    allowed = {"torch", "transformers", "huggingface_hub", *sys.stdlib_module_names}
    for file in sorted((ROOT / folder).rglob("*.py")):
        # with safetensors, which transformers needs too
        reads_weights = file.parent.name == "checkpoints"
        for entry in imports_of(file):
            if entry.level == 0 and not (reads_weights and entry.module.startswith("safetensors")):
                assert entry.module.split(".")[0] in allowed, f"{show(file, entry)}: {entry.module}"


def test_the_command_line_only_assembles_commands():
    file = ROOT / "selfvit" / "cli.py"
    assert len(file.read_text().splitlines()) <= 100
    for entry in imports_of(file):
        if entry.level and entry.name != "__version__":
            assert target_of(file, entry)[0] == "commands", show(file, entry)


@pytest.mark.parametrize("name", sorted(LEAVES - {"errors", "progress"}))
def test_a_leaf_needs_the_standard_library_only(name):
    file = ROOT / "selfvit" / f"{name}.py"
    for entry in imports_of(file):
        if entry.level:
            assert target_of(file, entry)[0] in LEAVES, show(file, entry)
        else:
            assert entry.module.split(".")[0] in sys.stdlib_module_names, show(file, entry)


def test_files_are_named_after_concepts():
    for file in FILES + PACKAGE_FILES:
        assert file.stem not in ("utils", "helpers", "common", "misc"), label(file)


def module_of(file: Path) -> tuple[str, ...]:
    """Return the name of a file's module below selfvit, as parts."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "selfvit" else parts
    return parts[:-1] if parts[-1] == "__init__" else parts


@cache
def import_graph() -> dict[Path, set[Path]]:
    """Return the files of the package that each file imports, at any depth of its code."""
    graph: dict[Path, set[Path]] = {}
    for file in FILES + PACKAGE_FILES:
        graph[file] = set()
        for entry in imports_of(file):
            if entry.level == 0:
                continue
            target = target_of(file, entry)
            source = file_of(target)
            if source.name == "__init__.py" and entry.name not in names_defined_in(source):
                source = file_of((*target, str(entry.name)))
            graph[file].add(source)
    return graph


def test_imports_have_no_circle():
    # The package's own __init__ loads its public names lazily, so importing it is no circle.
    graph = {**import_graph(), ROOT / "selfvit" / "__init__.py": set()}
    graphlib.TopologicalSorter(graph).prepare()  # raises a CycleError, which names the files


def test_folders_of_training_have_no_circle():
    graph: dict[str, set[str]] = {}
    for file, targets in import_graph().items():
        folder, *inside = module_of(file) or ("",)
        for target in map(module_of, targets):
            if folder == "training" and target[:1] == ("training",) and target[1] != inside[0]:
                graph.setdefault(inside[0], set()).add(target[1])
    graphlib.TopologicalSorter(graph).prepare()


# modeling/ may hold more: the classes of a checkpoint are written from it.
MAX_FILES = {"modeling": 26}


def test_folders_are_small():
    for folder in {file.parent for file in FILES + PACKAGE_FILES}:
        name = str(folder.relative_to(ROOT))
        count = len(list(folder.glob("*.py")))
        assert count <= MAX_FILES.get(name, 16), f"{name} has {count} files"


def functions_of(file: Path) -> dict[str, int]:
    """Return the number of lines of each function of a file, its docstring included."""
    return {
        node.name: (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_functions_have_at_most_80_lines():
    long = {
        f"{label(file)}: {name}": lines
        for file in FILES + PACKAGE_FILES
        for name, lines in functions_of(file).items()
        if lines > 80
    }
    assert not long


def test_the_training_loop_is_short():
    loop = ROOT / "training" / "loop.py"
    assert len(loop.read_text().splitlines()) < 120
    assert {"fit", "train_step", "forward_backward", "optimizer_step"} <= functions_of(loop).keys()
    assert functions_of(ROOT / "training" / "train.py")["train"] < 70


def test_the_batch_size_trial_and_the_benchmark_use_the_steps_of_the_loop():
    for file in ("training/preflight/batch_size.py", "benchmarks/side_by_side.py"):
        names = {entry.name for entry in imports_of(ROOT / file)}
        assert {"forward_backward", "optimizer_step"} <= names, file


PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.*")]


def test_pages_and_examples_import_from_the_package_itself():
    deep = [
        f"{label(page)}: {found}"
        for page in sorted(PAGES)
        for found in re.findall(r"(?:from|import) selfvit\.[\w.]+", page.read_text("utf-8"))
    ]
    assert not deep, "use `from selfvit import ...`"


def statements_on_transformers() -> str:
    """Return the imports of torch and transformers that importing the models executes."""
    lines = []
    for file in [*(ROOT / "configuration").glob("*.py"), *(ROOT / "modeling").glob("*.py")]:
        for node in tree_of(file).body:
            external = isinstance(node, ast.Import) or (
                isinstance(node, ast.ImportFrom) and node.level == 0 and node.module != "__future__"
            )
            if external:
                lines.append(ast.unparse(node))
    auto = [entry.name for entry in imports_of(REGISTRATION) if entry.module == "transformers"]
    return "\n".join([*lines, f"from transformers import {', '.join(map(str, auto))}"])


def modules_after(*steps: str) -> list[set[str]]:
    """Return the modules that a new process holds after each of several pieces of code."""
    report = "\nimport json, sys\nprint(json.dumps(list(sys.modules)))\n"
    code = "".join(step + report for step in steps)
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    found = [line for line in result.stdout.splitlines() if line.startswith("[")]
    assert len(found) == len(steps), result.stdout
    return [set(json.loads(line)) for line in found]


def folders_in(modules: set[str]) -> set[str]:
    """Return the folders and files of the package that some modules are from."""
    return {name.split(".")[1] for name in modules if name.startswith("selfvit.")}


def test_importing_selfvit_loads_nothing_heavy():
    (modules,) = modules_after("import selfvit; selfvit.__version__")
    assert not modules & (HEAVY | TRAINING)
    assert folders_in(modules) == {"auto_registration"}


def test_searching_and_sorting_vectors_loads_no_model():
    """They take a second then; with torch and transformers they would take several."""
    names = ["clusters", "duplicates", "index", "labeling", "map_files", "outliers", "search"]
    names += ["selection", "app.server"]
    (modules,) = modules_after("\n".join(f"import selfvit.exploration.{name}" for name in names))
    assert not modules & {"torch", "transformers", "sklearn", "matplotlib", "datasets", "gradio"}


def test_importing_the_models_loads_no_training_code_and_no_other_folder():
    # transformers loads accelerate and torchvision by itself where they are installed
    before, after = modules_after(
        statements_on_transformers(), "from selfvit import SelfViTForDINO, SelfViTModel"
    )
    assert not folders_in(before)
    added = (after & TRAINING) - before
    assert not added, f"the models load {sorted(added)}; transformers alone loads the others"
    assert folders_in(after) - LEAVES == {"auto_registration", "configuration", "modeling"}
