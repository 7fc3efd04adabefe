"""`selfvit publish`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .exploration import collection_options

if TYPE_CHECKING:
    from ..sharing.publish import Publication
    from ..sharing.space_folder import SpaceFolder

RepoId = Annotated[
    str | None,
    typer.Argument(
        metavar="USER/NAME",
        show_default=False,
        help="Repository on the Hub; created if it does not exist.",
    ),
]
Space = Annotated[
    str | None,
    typer.Option(
        "--space",
        metavar="USER/NAME",
        help="Space on the Hub to publish instead: the app of selfvit explore with --vectors.",
        show_default="the checkpoint is published",
    ),
]
SpaceVectors = Annotated[
    str | None,
    typer.Option(
        "--vectors",
        metavar="VECTORS",
        help="Folder of vectors that the Space shows.",
        show_default="none",
    ),
]
SpaceImages = Annotated[
    int | None,
    typer.Option(
        "--space-images", min=1, show_default="1000", help="Maximum number of images in the Space."
    ),
]
Private = Annotated[
    bool,
    typer.Option("--private", help="Require a private repository; a new one is created private."),
]


def publish(
    checkpoint: options.CheckpointFolder,
    repo_id: RepoId = None,
    private: Private = False,
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
    space: Space = None,
    vectors: SpaceVectors = None,
    data: collection_options.Images = None,
    space_images: SpaceImages = None,
    output: Annotated[Path | None, options.output("FOLDER", "the Space is sent")] = None,
) -> None:
    """Publish a checkpoint on the Hub in one commit, or a Space that shows a collection.

    Model, processor, card with its pictures, training.yaml and the report are sent. Resumable
    states, logs and unknown files are not; they are listed. With --space and --vectors, a Space is
    sent instead; with --output, its folder is written to look at, and nothing is sent.
    """
    common: dict[str, Any] = {
        "private": private,
        "revision": revision,
        "create_pr": create_pr,
        "message": message,
        "retries": retries,
    }
    if space is None:
        _check_no_space(vectors, data, output, space_images)
        if repo_id is None:
            raise ValueError(
                "publish needs a destination: USER/NAME for the checkpoint, or --space USER/NAME."
            )
        _publish_checkpoint(checkpoint, repo_id, include, common)
        return
    if repo_id is not None:
        raise ValueError(
            f"the checkpoint goes to {repo_id} and the Space to {space}; publish one after the "
            "other."
        )
    if include:
        raise ValueError("--include adds files of a checkpoint; leave it out with --space.")
    if vectors is None:
        raise ValueError("--space shows a collection; choose it with --vectors.")
    content: dict[str, Any] = {"data": data}
    if space_images is not None:
        content["max_images"] = space_images
    if output is not None:
        _write_space(checkpoint, vectors, space, output, content)
        return
    from ..sharing.space import publish_space

    published = publish_space(checkpoint, vectors, space, **content, **common)
    _report_publication(published.publication, space, create_pr)
    _report_folder(published.folder)
    typer.echo(f"space: {published.url}")


def _check_no_space(
    vectors: str | None, data: list[str] | None, output: Path | None, space_images: int | None
) -> None:
    given = {
        "--vectors": vectors,
        "--data": data,
        "--output": output,
        "--space-images": space_images,
    }
    for option, value in given.items():
        if value:
            raise ValueError(f"{option} is for a Space; name it with --space USER/NAME.")


def _publish_checkpoint(
    checkpoint: Path, repo_id: str, include: list[str] | None, common: dict[str, Any]
) -> None:
    from ..sharing.publish import publish as publish_folder

    publication = publish_folder(checkpoint, repo_id, include=include or (), **common)
    _report_publication(publication, repo_id, common["create_pr"])
    typer.echo(f"sent: {', '.join(publication.sent)}")
    if publication.left_out:
        typer.echo(f"left out: {', '.join(publication.left_out)}")


def _report_publication(publication: Publication, repo_id: str, create_pr: bool) -> None:
    if publication.is_pull_request and not create_pr:
        typer.echo(f"you may not push to {repo_id}, so a pull request was opened instead.")
    done = "pull request" if publication.is_pull_request else "published"
    typer.echo(f"{done}: {publication.url}")


def _write_space(
    checkpoint: Path, vectors: str, space: str, output: Path, content: dict[str, Any]
) -> None:
    from ..sharing.hub_access import check_repo_id
    from ..sharing.space_folder import write_space

    check_repo_id(space)
    title = space.partition("/")[2]
    _report_folder(write_space(checkpoint, vectors, output, title=title, **content))
    typer.echo(f"space: {output} (nothing was sent; without --output it goes to {space})")
    typer.echo(f"run: python {output / 'app.py'}")


def _report_folder(folder: SpaceFolder) -> None:
    chosen = "" if folder.num_images == folder.num_rows else f" of {folder.num_rows:,}"
    typer.echo(
        f"content: {folder.num_images:,}{chosen} images with their vectors, the checkpoint and the "
        f"app; {len(folder.files):,} files, {folder.num_bytes / 1e6:,.1f} MB"
    )
    if folder.left_out:
        from ..errors import shorten

        typer.echo(f"left out, as they cannot be shown: {shorten(folder.left_out)}")
