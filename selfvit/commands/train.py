"""`selfvit train`."""

from __future__ import annotations

import typer

from ..recipe_overview import overview


def train(context: typer.Context) -> None:
    """Train a model with a recipe: selfvit train RECIPE --data IMAGES --output RUN.

    `selfvit train --help` lists the recipes, `selfvit train RECIPE --help` its options.
    """
    if context.args[:1] in ([], ["--help"], ["-h"]):
        typer.echo(overview())
        return
    from ..training.train import main as train_main

    train_main(context.args)
