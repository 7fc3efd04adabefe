"""Arguments and options of the commands that read a folder of vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import without_line_breaks
from ...option_help import HELP

Vectors = Annotated[
    str,
    typer.Argument(
        metavar="VECTORS", show_default=False, help="Folder of vectors that selfvit embed wrote."
    ),
]
Images = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="IMAGES",
        help=HELP["data"],
        show_default="those of VECTORS",
    ),
]
Checkpoint = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        help="Checkpoint of VECTORS, if it was moved.",
        show_default="that of VECTORS",
    ),
]

Count = Annotated[int, typer.Option("-n", min=1, help="Number of images to return.")]
Sheet = Annotated[
    Path | None,
    typer.Option("--sheet", metavar="PNG", help="Contact sheet to draw.", show_default="none"),
]
Plot = Annotated[
    Path | None, typer.Option("--plot", metavar="PNG", help="Curve to draw.", show_default="none")
]
Seed = Annotated[int, typer.Option("--seed", help=HELP["seed"])]


def method(*names: str) -> Any:
    """Return the option --method of a command.

    Args:
        names: Methods to choose from.
    """
    return typer.Option(
        "--method",
        metavar=" | ".join(names),
        parser=_one_of(names),
        help="Method to use.",
    )


def _one_of(names: tuple[str, ...]) -> Any:
    def parse(name: str) -> str:
        if name not in names:
            raise typer.BadParameter(f"{name!r} must be {' or '.join(names)}.")
        return name

    return parse


def check_new_file(path: Path, overwrite: bool, suffixes: tuple[str, ...]) -> None:
    """Check that a file can be written, before any work is done.

    Args:
        path: File to write.
        overwrite: Whether an existing file may be replaced.
        suffixes: Extensions that it may have.

    Raises:
        FileExistsError: If the file exists and may not be replaced, or is a folder.
        ValueError: If it has another extension.
    """
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{str(path)!r} must end in {' or '.join(suffixes)}; choose such a name.")
    if path.is_dir() or (path.exists() and not overwrite):
        raise FileExistsError(
            f"{str(path)!r} exists; choose a new name, or use --overwrite to replace a file."
        )


def print_json(value: Any) -> None:
    """Print a value as JSON.

    Args:
        value: Value that JSON can represent.
    """
    typer.echo(json.dumps(value, ensure_ascii=False))


def print_line(line: str) -> None:
    """Print one line, in which a line break of a file's name is printed as an escape.

    Args:
        line: Line that may hold names of images.
    """
    typer.echo(without_line_breaks(line))


__all__ = [
    "Checkpoint",
    "Count",
    "Images",
    "Plot",
    "Seed",
    "Sheet",
    "Vectors",
    "check_new_file",
    "method",
    "print_json",
    "print_line",
]
