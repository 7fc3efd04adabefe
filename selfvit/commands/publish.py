"""`selfvit publish`."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options


def publish(
    checkpoint: options.CheckpointFolder,
    repo_id: Annotated[
        str,
        typer.Argument(
            metavar="USER/NAME",
            show_default=False,
            help="Repository on the Hub; created if it does not exist.",
        ),
    ],
    private: Annotated[
        bool,
        typer.Option(
            "--private", help="Require a private repository; a new one is created private."
        ),
    ] = False,
    revision: Annotated[
        str | None,
        typer.Option(help="Branch; created if it does not exist.", show_default="main"),
    ] = None,
    create_pr: Annotated[
        bool,
        typer.Option(
            "--create-pr",
            help="Open a pull request, which also happens without the right to push.",
        ),
    ] = False,
    message: Annotated[
        str | None, typer.Option(help="Message of the commit.", show_default="Upload CLASS")
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Pattern of further files in the folder to send; may be repeated.",
            show_default="none",
        ),
    ] = None,
    retries: Annotated[
        int, typer.Option(help="Number of retries after the network or the Hub failed.")
    ] = 3,
) -> None:
    """Publish a checkpoint on the Hub in one commit.

    Model, processor, card, training.yaml, metrics and pictures are sent. Resumable states, logs and
    unknown files are not; they are listed.
    """
    from ..sharing.publish import publish as publish_folder

    publication = publish_folder(
        checkpoint,
        repo_id,
        private=private,
        revision=revision,
        create_pr=create_pr,
        message=message,
        include=include or (),
        retries=retries,
    )
    if publication.is_pull_request and not create_pr:
        typer.echo(f"you may not push to {repo_id}, so a pull request was opened instead.")
    done = "pull request" if publication.is_pull_request else "published"
    typer.echo(f"{done}: {publication.url}")
    typer.echo(f"sent: {', '.join(publication.sent)}")
    if publication.left_out:
        typer.echo(f"left out: {', '.join(publication.left_out)}")
