"""The code blocks of a documentation page, read and run in order, as a reader would.

    python -m tests.documentation PAGE

runs the `python` and `bash` blocks of a page in the current folder. Python blocks share a
namespace, as the cells of a notebook do; a bash block stops at its first failing command. Comments
in a page, which a reader does not see, say what is otherwise:

    <!-- test: not run: REASON -->      the next block is not run
    <!-- test: append OPTIONS -->       each `selfvit train` of the next block has these, too
    <!-- test: fixtures NAME ... -->    what the page needs beside the folders of images (anywhere)
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
SHOWN = ("text", "json", "yaml", "bibtex")  # what a command prints, what a file holds
DIRECTIVE = re.compile(r"<!-- test: (not run:|append|fixtures) (.+?) -->\n?")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Args:
        line: number of the line that its code starts at, from 1.
        language: as the page says it.
        code: what the reader sees.
        not_run: why it is not run, or None.
        append: options for each `selfvit train`, as bash reads them.
    """

    line: int
    language: str
    code: str
    not_run: str | None = None
    append: str = ""


@dataclass(frozen=True)
class Page:
    """What a page has to run, and what it needs for that."""

    blocks: list[Block]
    fixtures: list[str]


def read_page(path: Path) -> Page:
    """Read the blocks of a page.

    Raises:
        ValueError: if a comment for the tests is not understood, or stands before no block.
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
                raise ValueError(f"{where}: options are appended to no `selfvit train`.")
            blocks.append(Block(token.map[0] + 2, token.info.strip(), token.content, **waiting))
            waiting = {}
        elif waiting and token.type != "html_block":
            raise ValueError(f"{where}: a comment for the tests stands before no block.")
    if waiting:
        raise ValueError(f"{path}: the last comment for the tests stands before no block.")
    return Page(blocks, fixtures)


def run_page(path: Path) -> None:
    """Run the blocks of a page in the current folder.

    Raises:
        Exception: the first block's that fails; its traceback has the page's line numbers.
    """
    namespace = {"__name__": "__main__"}
    for block in read_page(path).blocks:
        if block.not_run or block.language not in RUN:
            continue
        print(f"--- {path}:{block.line}\n{block.code}", flush=True)
        if block.language == "python":
            code = "\n" * (block.line - 1) + block.code  # a traceback then names lines of the page
            exec(compile(code, str(path), "exec"), namespace)
        else:
            subprocess.run(["bash", "-euo", "pipefail", "-c", bash_of(block)], check=True)


def bash_of(block: Block) -> str:
    """Return the script of a bash block: with appended options, `selfvit` is a function first."""
    if not block.append:
        return block.code
    return f"""selfvit() {{
    if [ "$1" = train ]; then command selfvit "$@" {block.append}; else command selfvit "$@"; fi
}}
{block.code}"""


if __name__ == "__main__":
    os.environ.setdefault("COLUMNS", "100")
    run_page(Path(sys.argv[1]))
