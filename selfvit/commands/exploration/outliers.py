"""`selfvit outliers`."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import options
from . import collection_options


def outliers(
    vectors: collection_options.Vectors,
    n: collection_options.Count = 20,
    num_neighbors: Annotated[
        int,
        typer.Option("--num-neighbors", min=1, help="Number of nearest neighbors of an image."),
    ] = 10,
    sheet: collection_options.Sheet = None,
    data: collection_options.Images = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Find the images of VECTORS that are least like the others.

    The score of an image is its mean cosine distance to its nearest neighbors. Copies of an image
    are its neighbors, so an image with several copies is no outlier.
    """
    from ...exploration.collection import Collection
    from ...exploration.outliers import draw_outliers
    from ...exploration.outliers import outliers as find
    from ...exploration.sheets import remark_on_rows

    if sheet is not None:
        collection_options.check_new_file(sheet, overwrite, (".png",))
    collection = Collection(vectors)
    result = find(collection, n=n, num_neighbors=num_neighbors)
    if sheet is not None:
        draw_outliers(result, collection.images(data), sheet)
    if as_json:
        collection_options.print_json(result.to_dict())
        return
    if result.num_copies:
        typer.echo(
            f"note: {result.num_copies} images have a copy with an equal vector, which lowers "
            f"their scores; selfvit duplicates {vectors} lists them"
        )
    typer.echo(f"mean cosine distance to the {result.num_neighbors} nearest neighbors:")
    for row in result.rows:
        collection_options.print_line(
            f"{row.score:.4f}  {row.path}  (nearest: {row.neighbors[0].path})"
        )
    if sheet is not None:
        typer.echo(f"sheet: {sheet}{remark_on_rows(len(result.rows), 'images')}")
