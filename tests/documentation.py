"""Run the code blocks of a documentation page in order, as a reader would.

    python -m tests.documentation PAGE

runs the `python` and `bash` blocks of a page in the current folder. Python blocks share a
namespace, like the cells of a notebook; a bash block stops at the first command that fails. Hidden
comments in the page change how it is tested:

    <!-- test: not run: REASON -->      skip the next block
    <!-- test: append OPTIONS -->       add options to each `selfvit train` of the next block
    <!-- test: fixtures NAME ... -->    fixtures that the page needs besides the image folders
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
SHOWN = ("text", "json", "yaml", "bibtex")  # output of commands and content of files
DIRECTIVE = re.compile(r"<!-- test: (not run:|append|fixtures) (.+?) -->\n?")


@dataclass(frozen=True)
class Block:
    """Fenced code block.

    Args:
        line: Number of the first line of the code, from 1.
        language: Language of the block.
        code: Code of the block.
        not_run: Reason why the block is not run, or None.
        append: Options that are added to each `selfvit train`, in bash syntax.
    """

    line: int
    language: str
    code: str
    not_run: str | None = None
    append: str = ""


@dataclass(frozen=True)
class Page:
    """Code blocks of a page and the fixtures that they need."""

    blocks: list[Block]
    fixtures: list[str]


def read_page(path: Path) -> Page:
    """Read the blocks of a page.

    Raises:
        ValueError: If a test comment is invalid, or is not followed by a block.
    """
    blocks: list[Block] = []
    fixtures: list[str] = []
    waiting: dict[str, str] = {}
    for token in MarkdownIt().parse(path.read_text(encoding="utf-8")):
        where = f"{path}:{(token.map or [0])[0] + 1}"
        if token.type == "html_block" and "test:" in token.content:
            if DIRECTIVE.sub("", token.content):
                raise ValueError(f"{where}: invalid comment {token.content!r}; see {__file__}.")
            for keyword, value in DIRECTIVE.findall(token.content):
                if keyword == "fixtures":
                    fixtures += value.split()
                else:
                    waiting["not_run" if keyword == "not run:" else keyword] = value
        elif token.type == "fence":
            assert token.map is not None
            if "append" in waiting and "selfvit train" not in token.content:
                raise ValueError(f"{where}: the block has no `selfvit train` to append options to.")
            blocks.append(Block(token.map[0] + 2, token.info.strip(), token.content, **waiting))
            waiting = {}
        elif waiting and token.type != "html_block":
            raise ValueError(f"{where}: the last test comment is not followed by a block.")
    if waiting:
        raise ValueError(f"{path}: the last test comment is not followed by a block.")
    return Page(blocks, fixtures)


def run_page(path: Path) -> None:
    """Run the blocks of a page in the current folder.

    Raises:
        Exception: If a block fails; the traceback contains the line numbers of the page.
    """
    namespace = {"__name__": "__main__"}
    for block in read_page(path).blocks:
        if block.not_run or block.language not in RUN:
            continue
        print(f"--- {path}:{block.line}\n{block.code}", flush=True)
        if block.language == "python":
            code = "\n" * (block.line - 1) + block.code  # line numbers as in the page
            exec(compile(code, str(path), "exec"), namespace)
        else:
            subprocess.run(["bash", "-euo", "pipefail", "-c", bash_of(block)], check=True)


def bash_of(block: Block) -> str:
    """Return the script of a bash block; a `selfvit` function appends the options, if any."""
    if not block.append:
        return block.code
    return f"""selfvit() {{
    if [ "$1" = train ]; then command selfvit "$@" {block.append}; else command selfvit "$@"; fi
}}
{block.code}"""


if __name__ == "__main__":
    os.environ.setdefault("COLUMNS", "100")
    run_page(Path(sys.argv[1]))
