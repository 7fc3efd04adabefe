"""`selfvit map` and `selfvit explore`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ...option_help import HELP
from .. import options
from . import collection_options


class MapMethod(str, Enum):
    """Methods of `selfvit map`."""

    umap = "umap"
    tsne = "tsne"


def draw_map(
    vectors: collection_options.Vectors,
    output: Annotated[Path | None, options.output("HTML | PNG", "none")] = None,
    atlas: Annotated[
        Path | None,
        typer.Option(
            "--atlas",
            metavar="PARQUET",
            help="Table to write for embedding-atlas.",
            show_default="none",
        ),
    ] = None,
    layout: Annotated[
        MapMethod, typer.Option("--layout", help="Method that lays the images out.")
    ] = MapMethod.umap,
    color: Annotated[
        str | None,
        typer.Option(
            "--color",
            metavar="COLUMN",
            help="Column that colors the points at first.",
            show_default="label, cluster or folder",
        ),
    ] = None,
    no_thumbnails: Annotated[
        bool, typer.Option("--no-thumbnails", help="Points only, without images.")
    ] = False,
    new: Annotated[
        bool, typer.Option("--new", help="New positions for all images, not those of the last map.")
    ] = False,
    seed: Annotated[int, typer.Option(help=HELP["seed"])] = 0,
    data: collection_options.Images = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Lay VECTORS out in two dimensions, as a page that works offline or as a picture.

    Images that the last map has keep their positions, and new ones are placed by their neighbors.
    """
    from ...embedding.vectors.storage import is_remote, resolve
    from ...exploration.map_files import atlas_command, map_vectors

    for path, suffixes in ((output, (".html", ".png")), (atlas, (".parquet",))):
        if path is not None:
            collection_options.check_new_file(path, overwrite, suffixes)
    result = map_vectors(
        vectors,
        output,
        atlas=atlas,
        method=layout.value,
        seed=seed,
        new=new,
        color=color,
        thumbnails=not no_thumbnails,
        data=data,
    )
    if as_json:
        collection_options.print_json(result.to_dict())
        return
    found = result.layout
    kept = f"; {found.num_kept:,} kept their positions" if found.num_kept else ""
    kept += f", {found.num_placed:,} are new" if found.num_placed else ""
    typer.echo(f"positions of {len(found.positions):,} images{kept}")
    for note in filter(None, (found.note, result.note)):
        typer.echo(f"note: {note}")
    if not is_remote(resolve(vectors)):
        typer.echo(f"columns: x, y in {vectors}")
    if result.output is not None:
        typer.echo(f"map: {result.output}")
    if result.atlas is not None:
        typer.echo(f"atlas: {atlas_command(result.atlas)}")


def explore(
    vectors: collection_options.Vectors,
    port: Annotated[
        int, typer.Option("--port", min=1, max=65535, help="Port on 127.0.0.1.")
    ] = 7860,
    data: collection_options.Images = None,
    checkpoint: collection_options.Checkpoint = None,
    device: options.Device = None,
) -> None:
    """Show VECTORS in the browser: search, map, clusters, duplicates and a table.

    The app is for this machine only, and serves no file but the images of VECTORS.
    """
    from ...exploration.app.server import explore as serve

    serve(vectors, port=port, data=data, checkpoint=checkpoint, device=device)
