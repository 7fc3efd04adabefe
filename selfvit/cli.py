"""The `selfvit` command: assembles the subcommands of `commands/`."""

from __future__ import annotations

from typing import Annotated

import typer

from .commands.audit import audit
from .commands.convert import convert
from .commands.embed import embed
from .commands.evaluate import evaluate
from .commands.exploration.cluster import cluster
from .commands.exploration.duplicates import duplicates
from .commands.exploration.label import label
from .commands.exploration.maps import draw_map, explore
from .commands.exploration.outliers import outliers
from .commands.exploration.search import index, search
from .commands.exploration.select import select
from .commands.export import export
from .commands.grammar import Command, Group, RawCommand, kebab_case
from .commands.publish import publish
from .commands.stats import stats
from .commands.train import train
from .commands.visualize import attention, pca, reconstruct

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"token_normalize_func": kebab_case, "max_content_width": 100},
)
visualize = typer.Typer(cls=Group, no_args_is_help=True, rich_markup_mode=None)


def _print_version(wanted: bool) -> None:
    if wanted:
        from . import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show the traceback of an error.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Train self-supervised vision transformers on images, and embed images with them."""


app.command(cls=RawCommand, add_help_option=False)(train)
app.command(cls=Command)(embed)
app.command(cls=Command)(evaluate)
app.command(cls=Command)(stats)
app.command(cls=Command)(search)
app.command(cls=Command)(index)
app.command(cls=Command)(cluster)
app.command(cls=Command)(outliers)
app.command(cls=Command)(select)
app.command(cls=Command)(label)
app.command("map", cls=Command)(draw_map)
app.command(cls=Command)(explore)
app.command(cls=Command)(duplicates)
app.command(cls=Command)(convert)
app.command(cls=Command)(export)
app.command(cls=Command)(audit)
app.command(cls=Command)(publish)
visualize.command(cls=Command)(attention)
visualize.command(cls=Command)(pca)
visualize.command(cls=Command)(reconstruct)
app.add_typer(
    visualize, name="visualize", help="Draw attention, patch tokens or reconstructions as a PNG."
)

__all__ = ["app"]

if __name__ == "__main__":
    app(prog_name="selfvit")
