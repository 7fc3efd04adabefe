"""Docstrings, comments and messages of the package follow the rules for language."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from .test_architecture import FILES, PACKAGE_FILES, ROOT, tree_of

SOURCES = sorted({*FILES, *PACKAGE_FILES})

PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "model_card.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
PUBLIC = (ast.ClassDef, *FUNCTIONS)
DEFINITIONS = (ast.Module, *PUBLIC)
SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields|Example):")
# "name: text", "*name: text" or "package.Error: text" in a section, one level of indentation deep.
ENTRY = re.compile(r" {4}\*{0,2}(?P<name>[\w.]+): (?P<text>\S.*)")
START = re.compile(r"[A-Z0-9`\"'(\[]")
EVASIVE_START = re.compile(r"(of|that|as for|what|who|which|whether it is)\b", re.IGNORECASE)
# British spellings, and words that have a plainer equivalent.
UNWANTED = re.compile(
    r"licence|colour|\bgrey|normalis|initialis|behaviour|neighbour|\bcentre|\bdata sets?\b"
    r"|\b(told|whoever|anew|in passing)\b",
    re.IGNORECASE,
)


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def public_definitions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Yield the qualified name and node of a module and of its public classes and functions."""
    yield prefix or "module", node
    if isinstance(node, FUNCTIONS):  # functions inside functions are not public
        return
    for child in ast.iter_child_nodes(node):
        if isinstance(child, PUBLIC) and not child.name.startswith("_"):
            yield from public_definitions(child, f"{prefix}.{child.name}".lstrip("."))


def is_overload(node: ast.AST) -> bool:
    return any(ast.unparse(name) == "overload" for name in getattr(node, "decorator_list", ()))


@cache
def docstrings(file: Path) -> list[tuple[str, str]]:
    """Return the name of every definition that has a docstring, private ones too, and the text."""
    return [
        (getattr(node, "name", "module"), text)
        for node in ast.walk(tree_of(file))
        if isinstance(node, DEFINITIONS) and (text := ast.get_docstring(node)) is not None
    ]


def entries(text: str) -> Iterator[tuple[str, str]]:
    """Yield name and text of each entry of the sections Args, Attributes and Raises."""
    section = None
    for line in text.splitlines():
        if found := SECTION.fullmatch(line):
            section = found[1]
        elif section in ("Args", "Attributes", "Raises") and re.match(r" {4}\S", line):
            found = ENTRY.fullmatch(line)
            yield (found["name"], found["text"]) if found else (line.strip(), "")


def texts(file: Path) -> Iterator[tuple[int, str]]:
    """Yield line and text of every string and comment, docstrings and parts of f-strings too."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(file.read_text()).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def test_every_public_definition_has_a_docstring():
    missing = [
        f"{name_of(file)}: {name}"
        for file in SOURCES
        for name, node in public_definitions(tree_of(file))
        if ast.get_docstring(node) is None and not is_overload(node)
    ]
    assert not missing


def test_the_first_line_of_a_docstring_is_a_sentence():
    wrong = [
        f"{name_of(file)}: {name}: {first}"
        for file in SOURCES
        for name, text in docstrings(file)
        if not (first := text.splitlines()[0]).endswith(".") or EVASIVE_START.match(first)
    ]
    assert not wrong


def test_arguments_and_errors_are_named_first():
    wrong = [
        f"{name_of(file)}: {owner}: {name}: {text}"
        for file in SOURCES
        for owner, docstring in docstrings(file)
        for name, text in entries(docstring)
        if not START.match(text) or EVASIVE_START.match(text)
    ]
    assert not wrong


def test_spelling_is_american_and_words_are_plain():
    wrong = [
        f"{name_of(file)}:{line}: {found[0]}"
        for file in SOURCES
        for line, text in texts(file)
        for found in UNWANTED.finditer(text)
    ]
    assert not wrong


def test_pages_follow_the_same_spelling():
    wrong = [
        f"{name_of(page)}: {found[0]}"
        for page in PAGES
        for found in UNWANTED.finditer(page.read_text())
    ]
    assert not wrong


class TestTheRules:
    """The rules find what they look for."""

    @pytest.mark.parametrize(
        ("text", "is_refused"),
        [
            ("Number of optimizer steps.", False),
            ("(B, K), rows sum to 1.", False),
            ("`model_type` of the checkpoint.", False),
            ("Whether to save the code.", False),
            ("Offset in pixels.", False),
            ("of the whole run.", True),
            ("Of the whole run.", True),
            ("what the loader reads.", True),
            ("As for `train`.", True),
            ("number of steps.", True),
        ],
    )
    def test_the_text_of_an_argument(self, text, is_refused):
        docstring = f"Do it.\n\n    Args:\n        steps: {text}\n            more: of it\n    "
        ((name, found),) = entries(ast.get_docstring(ast.parse(f'"""{docstring}"""')))
        assert name == "steps"
        assert bool(not START.match(found) or EVASIVE_START.match(found)) == is_refused

    def test_private_and_inner_functions_need_no_docstring(self):
        source = '"""M."""\nclass A:\n def f(self):\n  def g(): ...\n def _h(self): ...\n'
        names = [name for name, _ in public_definitions(ast.parse(source))]
        assert names == ["module", "A", "A.f"]

    @pytest.mark.parametrize("word", ["Licence", "gray and grey", "the neighbours", "told", "anew"])
    def test_an_unwanted_word_is_found_in_comments_and_strings(self, word, tmp_path):
        file = tmp_path / "module.py"
        file.write_text(f'x = f"{{1}} {word} {{2}}"  # {word}\n')
        assert [bool(UNWANTED.search(text)) for _, text in texts(file)].count(True) == 2

    def test_the_sources_are_found(self):
        names = {name_of(file) for file in SOURCES}
        assert {"training/loop.py", "selfvit/cli.py", "selfvit/commands/embed.py"} <= names
        assert len(names) > 150
