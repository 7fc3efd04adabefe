"""Lines that all commands print about the data that they read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from ..data.dataset_source import AnySource
    from ..data.inventory import SkippedImage


def report_source(source: AnySource, name: str = "") -> None:
    """Print where the labels of a source come from, and its notes.

    Args:
        source: Source that was opened.
        name: Name of the source if the command reads several, for example "train".
    """
    from ..data.inventory import opening_lines

    for line in opening_lines(source.inventory, source.label_rule):
        typer.echo(f"{name} {line}".strip())


def report_left_out(
    *readings: tuple[str, AnySource, Sequence[SkippedImage]],
    strict: bool,
    skipped_file: Path | None,
) -> None:
    """Print what was left out, write the list, and end a strict command.

    Args:
        readings: Per source, its name ("" for the only one), the source, and the images of it that
            cannot be read.
        strict: Whether to exit with code 1 if anything was left out.
        skipped_file: CSV file to write, or None.

    Raises:
        typer.Exit: With code 1, if `strict` is set and anything was left out.
    """
    from ..atomic_output import atomic_output
    from ..data.inventory import write_left_out

    left_out = []
    for name, source, skipped in readings:
        left_out += source.inventory.all_left_out(skipped)
        if summary := source.inventory.summary(skipped):
            typer.echo(f"{name} {summary}".strip())
    if skipped_file is not None:
        with atomic_output(skipped_file) as unfinished:
            write_left_out(unfinished, left_out)
    if strict and left_out:
        raise typer.Exit(1)
