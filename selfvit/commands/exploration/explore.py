"""`selfvit explore`."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import options
from . import collection_options


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
