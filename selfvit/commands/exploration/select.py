"""`selfvit select`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import options
from . import collection_options


def select(
    vectors: collection_options.Vectors,
    n: collection_options.Count = 20,
    per_cluster: Annotated[
        bool,
        typer.Option(
            "--per-cluster",
            help="Select the same number from each cluster that selfvit cluster found; a cluster "
            "with fewer images gives all.",
        ),
    ] = False,
    output: Annotated[Path | None, options.output("LIST", "none")] = None,
    plot: collection_options.Plot = None,
    data: collection_options.Images = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Select a diverse subset of VECTORS, in which no image is far from all selected ones.

    Each image is the farthest from those selected before (k-center greedy). --output writes their
    paths as a list (.txt or .csv), which --data of other commands reads.
    """
    from ...exploration.collection import Collection
    from ...exploration.selection import plot_coverage, write_list
    from ...exploration.selection import select as choose
    from ...visualization.figures import require_matplotlib

    if output is not None:
        collection_options.check_new_file(output, overwrite, (".txt", ".csv"))
    if plot is not None:
        collection_options.check_new_file(plot, overwrite, (".png",))
        require_matplotlib()
    collection = Collection(vectors)
    result = choose(collection, n, per_cluster=per_cluster)
    if output is not None:
        write_list(result, collection, collection.images(data), output)
    if plot is not None:
        plot_coverage(result, plot)
    if as_json:
        collection_options.print_json(result.to_dict())
        return
    if result.note:
        typer.echo(f"note: {result.note}")
    if output is None:
        for row in result.rows:
            collection_options.print_line(
                f"{'first' if row.score is None else f'{row.score:.4f}':6}  {row.path}"
            )
    typer.echo(
        f"{len(result.rows)} of {len(collection)} images selected; cosine distance to the nearest "
        f"selected image: {result.coverage.largest[-1]:.4f} at most, "
        f"{result.coverage.mean[-1]:.4f} on average"
    )
    for name, path in (("list", output), ("plot", plot)):
        if path is not None:
            typer.echo(f"{name}: {path}")
