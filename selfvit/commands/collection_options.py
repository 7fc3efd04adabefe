"""Arguments and options of the commands that read a folder of vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..option_help import HELP

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
Seed = Annotated[int, typer.Option("--seed", min=0, help=HELP["seed"])]


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


__all__ = ["Checkpoint", "Images", "Seed", "Vectors", "check_new_file", "print_json"]
