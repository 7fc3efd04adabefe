"""Run the code blocks of a documentation page in order, as a reader would.

    python -m tests.documentation PAGE

This runs the `python` and `bash` blocks of a page in the current folder. Python blocks share a
namespace, like the cells of a notebook. A bash block stops at its first failing command. HTML
comments in a page, which are not rendered, change this:

    <!-- test: not run: REASON -->      Skip the next block.
    <!-- test: append OPTIONS -->       Add options to each `selfvit train` of the next block.
    <!-- test: fixtures NAME ... -->    Fixtures that the page needs in addition to the folders of
                                        images (anywhere in the page).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

RUN = ("python", "bash")
SHOWN = ("text", "json", "yaml", "bibtex")  # output of commands and contents of files; not run
NO_REPORT = "--report-images 0"  # saves a second for each run; appended options override it
DIRECTIVE = re.compile(r"<!-- test: (not run:|append|fixtures) (.+?) -->\n?")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Args:
        line: Line number at which the code starts, from 1.
        language: Language as written in the page.
        code: Code as the reader sees it.
        not_run: Reason for not running it, or None.
        append: Options for each `selfvit train`, in bash syntax.
    """

    line: int
    language: str
    code: str
    not_run: str | None = None
    append: str = ""


@dataclass(frozen=True)
class Page:
    """Blocks of a page, and names of the fixtures that they need."""

    blocks: list[Block]
    fixtures: list[str]


def read_page(path: Path) -> Page:
    """Read the blocks of a page.

    Raises:
        ValueError: If a test comment is not understood, or no block follows it.
    """
    blocks: list[Block] = []
    fixtures: list[str] = []
    waiting: dict[str, str] = {}
    for token in MarkdownIt().parse(path.read_text(encoding="utf-8")):
        where = f"{path}:{(token.map or [0])[0] + 1}"
        if token.type == "html_block" and "test:" in token.content:
            if DIRECTIVE.sub("", token.content):
                raise ValueError(f"{where}: not understood: {token.content!r}; see {__file__}.")
            for keyword, value in DIRECTIVE.findall(token.content):
                if keyword == "fixtures":
                    fixtures += value.split()
                else:
                    waiting["not_run" if keyword == "not run:" else keyword] = value
        elif token.type == "fence":
            assert token.map is not None
            if "append" in waiting and "selfvit train" not in token.content:
                raise ValueError(f"{where}: the block to append options to has no `selfvit train`.")
            blocks.append(Block(token.map[0] + 2, token.info.strip(), token.content, **waiting))
            waiting = {}
        elif waiting and token.type != "html_block":
            raise ValueError(f"{where}: a test comment must be followed by a block.")
    if waiting:
        raise ValueError(f"{path}: the last test comment must be followed by a block.")
    return Page(blocks, fixtures)


def run_page(path: Path) -> None:
    """Run the blocks of a page in the current folder.

    Raises:
        Exception: From the first block that fails; its traceback has the page's line numbers.
    """
    namespace = {"__name__": "__main__"}
    for block in read_page(path).blocks:
        if block.not_run or block.language not in RUN:
            continue
        print(f"--- {path}:{block.line}\n{block.code}", flush=True)
        if block.language == "python":
            code = (
                "\n" * (block.line - 1) + block.code
            )  # tracebacks then have the lines of the page
            exec(compile(code, str(path), "exec"), namespace)
        else:
            subprocess.run(["bash", "-euo", "pipefail", "-c", bash_of(block)], check=True)


def bash_of(block: Block) -> str:
    """Return the script of a bash block; a function `selfvit` appends its options."""
    if not block.append:
        return block.code
    options = f"{NO_REPORT} {block.append}"
    return f"""selfvit() {{
    if [ "$1" = train ]; then command selfvit "$@" {options}; else command selfvit "$@"; fi
}}
{block.code}"""


if __name__ == "__main__":
    os.environ.setdefault("COLUMNS", "100")
    run_page(Path(sys.argv[1]))
