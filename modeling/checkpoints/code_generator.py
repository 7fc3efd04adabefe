"""Generate the code files of a checkpoint from the modules of the package.

A model of transformers is a configuration file and a modeling file. Here the same two files are
made from many modules: the configuration file from the module of the configuration class and all
that it imports, the modeling file from all other modules that the classes need. A module follows
the modules that it imports, with its comments and formatting. The image processor of this package
has a file of its own.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
import inspect
import symtable
import sys
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from ...configuration.format_version import VERSION
from .weight_files import CONFIGURATION, MODELING

LINE_LENGTH = 100
RULE = "# " + "-" * (LINE_LENGTH - 2)


@dataclass(frozen=True)
class Import:
    """One imported name.

    Args:
        module: Module of `from module import name`. It is empty for `import name`.
        name: Name as the module defines it.
        alias: Name after `as`, or None.
    """

    module: str
    name: str
    alias: str | None

    @property
    def bound(self) -> str:
        """The name that the import defines: `import a.b` defines `a`."""
        if self.alias is not None:
            return self.alias
        return self.name if self.module else self.name.partition(".")[0]

    @property
    def value(self) -> str:
        """The object that the name stands for."""
        if self.module:
            return f"{self.module}.{self.name}"
        return self.name if self.alias is not None else self.bound


@dataclass(frozen=True)
class Module:
    """Parsed module of the package.

    Args:
        name: Full name.
        docstring: Docstring, or "".
        future: Features of `from __future__ import`.
        outside: Imports from other packages.
        inside: Relative imports, with the full name of the module.
        names: Names that the module defines at its top level.
        body: Source without docstring, imports and `__all__`.
    """

    name: str
    docstring: str
    future: frozenset[str]
    outside: list[Import]
    inside: list[Import]
    names: list[str]
    body: str


def generate_code(classes: Mapping[str, type]) -> dict[str, str]:
    """Return the source of the configuration file and of the modeling file, by module name.

    The modeling file also imports the configuration class.

    Args:
        classes: Classes that open the checkpoint, by Auto class. "AutoConfig" is required.

    Raises:
        OSError: If the source of a module cannot be read.
        ValueError: If modules cannot be merged. The message names them and what to change.
    """
    config_class = classes["AutoConfig"]
    configuration = _modules_in_order([config_class.__module__], frozenset())
    moved = frozenset(module.name for module in configuration)
    names = list(dict.fromkeys(given.__module__ for given in classes.values()))
    modeling = _modules_in_order([name for name in names if name not in moved], moved)
    return {
        CONFIGURATION: _merge("Configuration", configuration, [config_class]),
        MODELING: _merge("Model", modeling, list(classes.values()), moved),
    }


def generate_processor_code(processor_class: type) -> str:
    """Return the source of the file with an image processor.

    Args:
        processor_class: Class that opens the settings of the processor.

    Raises:
        OSError: If the source of a module cannot be read.
        ValueError: If modules cannot be merged. The message names them and what to change.
    """
    modules = _modules_in_order([processor_class.__module__], frozenset())
    return _merge("Image processor", modules, [processor_class])


# Read modules


def _modules_in_order(names: Iterable[str], without: frozenset[str]) -> list[Module]:
    """Return modules and all that they import relatively, each after the modules it imports."""
    found: dict[str, Module] = {}
    seen = set(without)

    def add(name: str) -> None:
        if name in seen:
            return
        seen.add(name)
        module = _read(name)
        for entry in module.inside:
            add(entry.module)
        found[name] = module

    for name in names:
        add(name)
    return list(found.values())


def _read(name: str) -> Module:
    try:
        source = inspect.getsource(importlib.import_module(name))
    except OSError as error:
        raise OSError(
            f"the source of {name} cannot be read, so a checkpoint cannot hold its code; leave the "
            "code out with save_pretrained(..., save_code=False)."
        ) from error
    return _parse(name, source)


@cache
def _parse(name: str, source: str) -> Module:
    """Parse a module, once per process: a run saves many checkpoints of the same code."""
    tree = ast.parse(source)
    future: set[str] = set()
    outside: list[Import] = []
    inside: list[Import] = []
    removed: list[ast.stmt] = []
    if ast.get_docstring(tree) is not None:
        removed.append(tree.body[0])
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            future |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            outside += [Import("", one.name, one.asname) for one in node.names]
        elif isinstance(node, ast.ImportFrom):
            target = _target(name, node) if node.level else node.module or ""
            imports = [Import(target, one.name, one.asname) for one in node.names]
            (inside if node.level else outside).extend(imports)
        elif not _assigns_all(node):
            _check_nested_imports(name, node)
            continue
        removed.append(node)
    return Module(
        name=name,
        docstring=ast.get_docstring(tree) or "",
        future=frozenset(future),
        outside=outside,
        inside=inside,
        names=_top_level_names(source, name),
        body=_without(removed, source),
    )


def _without(removed: list[ast.stmt], source: str) -> str:
    """Return a source without some statements and without the gaps that they leave."""
    gone = {line for node in removed for line in range(node.lineno, (node.end_lineno or 0) + 1)}
    kept: list[str] = []
    in_gap = False
    for number, line in enumerate(source.splitlines(), 1):
        in_gap = number in gone or (in_gap and not line)
        if number not in gone and not (in_gap and kept[-2:] == ["", ""]):
            kept.append(line)
    return "\n".join(kept).strip("\n")


def _target(name: str, node: ast.ImportFrom) -> str:
    """Return the full name of the module of a relative import."""
    written = "." * node.level + (node.module or "")
    target = importlib.util.resolve_name(written, name.rpartition(".")[0])
    if not node.module or hasattr(importlib.import_module(target), "__path__"):
        raise ValueError(
            f"`from {written} import` in {name}, line {node.lineno}, imports from a package, which "
            "a checkpoint does not contain; import from the module that defines the name."
        )
    return target


def _check_nested_imports(name: str, statement: ast.stmt) -> None:
    for node in ast.walk(statement):
        if isinstance(node, ast.ImportFrom) and node.level:
            raise ValueError(
                f"a relative import in code for a checkpoint must be at the top level of its "
                f"module, but {name} has one in line {node.lineno}; move it to the top."
            )


def _assigns_all(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"


def _top_level_names(source: str, name: str) -> list[str]:
    symbols = symtable.symtable(source, name, "exec").get_symbols()
    names = [symbol.get_name() for symbol in symbols if symbol.is_assigned()]
    return [one for one in names if not (one.startswith("__") and one.endswith("__"))]


# Write one file


def _merge(
    title: str, modules: list[Module], classes: list[type], moved: frozenset[str] = frozenset()
) -> str:
    """Return the source of one file.

    Args:
        title: First word of the docstring.
        modules: Modules in the order of the file.
        classes: Classes that the file gives to the Auto classes.
        moved: Modules that are in the configuration file.
    """
    relative = [
        Import(f".{CONFIGURATION}", entry.name, entry.alias)
        for module in modules
        for entry in module.inside
        if entry.module in moved
    ]
    relative += [
        Import(f".{CONFIGURATION}", one.__name__, None)
        for one in classes
        if one.__module__ in moved
    ]
    outside = [entry for module in modules for entry in module.outside]
    _check_names(modules, moved)
    header = (
        f'"""{title} of a selfvit checkpoint, for `trust_remote_code=True`.\n\n'
        f"This file is generated from the modules of selfvit {VERSION} that are named below. Do "
        "not edit it:\nedit the modules, and save the model again.\n"
        '"""'
    )
    parts = [header]
    future = _common_future(modules)
    if future:
        parts.append(f"from __future__ import {', '.join(sorted(future))}")
    parts += _import_blocks([*outside, *relative])
    sections = [_section(module, moved) for module in modules]
    names = _wrapped("__all__ = [", sorted(f'"{one.__name__}"' for one in classes), "]")
    parts.append("\n\n\n".join([*sections, names]))
    return "\n\n".join(parts) + "\n"


def _section(module: Module, moved: frozenset[str]) -> str:
    """Return one module: its name and docstring as a comment, then its code."""
    lines = [RULE, f"# {module.name}", "#"]
    for line in module.docstring.splitlines():
        indent = " " * (len(line) - len(line.lstrip()))
        lines += textwrap.wrap(
            f"# {line}", LINE_LENGTH, subsequent_indent=f"# {indent}", break_on_hyphens=False
        )
    lines.append(RULE)
    renamed = [
        f"{entry.alias} = {entry.name}"
        for entry in module.inside
        if entry.alias not in (None, entry.name) and entry.module not in moved
    ]
    code = [part for part in ("\n".join(renamed), module.body) if part]
    gap = "\n\n\n" if code and code[0].startswith(("class ", "def ", "@")) else "\n\n"
    return gap.join(["\n".join(lines), "\n\n".join(code)]) if code else "\n".join(lines)


def _common_future(modules: list[Module]) -> frozenset[str]:
    """Return the `__future__` features, which apply to an entire file."""
    for module in modules[1:]:
        if module.future != modules[0].future:
            raise ValueError(
                "modules merged into one file must have the same imports from __future__, but "
                f"{modules[0].name} has {sorted(modules[0].future)} and {module.name} has "
                f"{sorted(module.future)}; change one of them."
            )
    return modules[0].future if modules else frozenset()


def _check_names(modules: list[Module], moved: frozenset[str]) -> None:
    """Check that each name means the same in all modules of a file."""
    owners = {name: (name, "Python itself") for name in dir(builtins)}

    def claim(name: str, value: str, owner: str) -> None:
        earlier, first = owners.setdefault(name, (value, owner))
        if earlier != value:
            raise ValueError(
                "modules merged into one file must not use a name for two things, but "
                f"{first} and {owner} both define {name}; rename one."
            )

    for module in modules:
        for entry in module.outside:
            claim(entry.bound, entry.value, module.name)
        for name in module.names:
            claim(name, f"{module.name}.{name}", module.name)
        for entry in module.inside:
            if entry.module in moved or entry.bound != entry.name:
                claim(entry.bound, entry.value, module.name)


def _import_blocks(imports: list[Import]) -> list[str]:
    """Return the import statements, sorted: standard library, other packages, relative."""
    blocks: list[list[str]] = [[], [], []]
    for statement in sorted({f"import {_written(one)}" for one in imports if not one.module}):
        top = statement.split()[1].partition(".")[0]
        blocks[0 if top in sys.stdlib_module_names else 1].append(statement)
    for module in sorted({one.module for one in imports if one.module}):
        entries = {one for one in imports if one.module == module}
        names = sorted({one.name for one in entries if one.alias is None}, key=_isort_order)
        aliased = sorted({_written(one) for one in entries if one.alias is not None})
        top = module.partition(".")[0]
        block = blocks[2 if not top else 0 if top in sys.stdlib_module_names else 1]
        if names:
            block.append(_wrapped(f"from {module} import ", names))
        block += [f"from {module} import {name}" for name in aliased]
    return ["\n".join(block) for block in blocks if block]


def _isort_order(name: str) -> tuple[int, str]:
    """Sort constants first, then classes, then functions, as isort does."""
    if name.isupper() and len(name) > 1:
        return 0, name
    return (1 if name[0].isupper() else 2), name


def _written(entry: Import) -> str:
    return entry.name if entry.alias is None else f"{entry.name} as {entry.alias}"


def _wrapped(start: str, names: list[str], end: str = "") -> str:
    """Return a list of names in one line, or with one name per line if that is too long."""
    line = f"{start}{', '.join(names)}{end}"
    if len(line) <= LINE_LENGTH:
        return line
    opening, closing = (start, end) if end else (f"{start}(", ")")
    return "\n".join([opening, *(f"    {name}," for name in names), closing])


__all__ = ["generate_code", "generate_processor_code"]
