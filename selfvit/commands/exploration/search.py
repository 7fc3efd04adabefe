"""`selfvit search` and `selfvit index`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import options
from . import collection_options

if TYPE_CHECKING:
    from ...embedding.embedder import Embedder
    from ...exploration.collection import Collection
    from ...exploration.search import SearchResult


def search(
    vectors: collection_options.Vectors,
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE...",
            show_default=False,
            help="Query images; several count as their mean.",
        ),
    ] = None,
    like: Annotated[
        list[str] | None,
        typer.Option(
            "--like",
            metavar="PATH",
            help="Image or video of VECTORS to use as the query.",
            show_default="none",
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of results.")] = 10,
    output: Annotated[Path | None, options.output("PNG", "none")] = None,
    patches: Annotated[
        bool, typer.Option("--patches", help="Draw where the query and each result match.")
    ] = False,
    checkpoint: collection_options.Checkpoint = None,
    data: collection_options.Images = None,
    device: options.Device = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Find the images of VECTORS that are most similar to a query, by cosine similarity.

    The query is embedded with the checkpoint, preprocessing and pooling of VECTORS. The search is
    exact up to a million images; above, `selfvit index` makes it fast.
    """
    from ...exploration.collection import Collection
    from ...exploration.search import search as find
    from ...exploration.sheets import remark_on_rows

    if output is not None:
        collection_options.check_new_file(output, overwrite, (".png",))
    elif patches:
        raise ValueError("--patches draws a picture; choose its file with --output.")
    collection = Collection(vectors)
    result = find(
        collection, images or [], like=like or [], k=k, checkpoint=checkpoint, device=device
    )
    if output is not None:
        embedder = partial(collection.embedder, checkpoint, device=device)
        _draw(
            collection,
            result,
            output,
            like or [],
            images or [],
            data,
            embedder if patches else None,
        )
    if as_json:
        collection_options.print_json(result.to_dict())
        return
    if result.note:
        typer.echo(f"note: {result.note}")
    for match in result.results:
        time = "" if match.seconds is None else f"  {match.seconds:.2f} s"
        collection_options.print_line(f"{match.similarity:.4f}  {match.path}{time}")
    if output is not None:
        num_rows = len(result.results) if patches else 1
        typer.echo(f"sheet: {output}{remark_on_rows(num_rows, 'images')}")


def _draw(
    collection: Collection,
    result: SearchResult,
    output: Path,
    like: list[str],
    given: list[str],
    data: list[str] | None,
    embedder: Callable[[], Embedder] | None,
) -> None:
    from ...exploration.search import draw_patch_matches, draw_results, query_pictures

    images = collection.images(data)
    queries = query_pictures(collection, images, like, given)
    if embedder is None:
        draw_results(result, queries, images, output)
        return
    if len(queries) > 1:
        raise ValueError(f"--patches needs one query, not {len(queries)}; give one image.")
    draw_patch_matches(result, queries[0], images, embedder(), output)


def index(vectors: collection_options.Vectors, as_json: options.Json = False) -> None:
    """Build an index beside the vectors, for fast searches in more than a million images.

    The recall against exact search is measured on a sample, and printed.
    """
    from ...exploration.collection import Collection
    from ...exploration.index import INDEX, build_index

    collection = Collection(vectors)
    description = build_index(collection)
    if as_json:
        collection_options.print_json(asdict(description))
        return
    typer.echo(
        f"{description.num_rows:,} vectors in {description.num_lists:,} lists, of which a search "
        f"looks into {description.num_probes}"
    )
    typer.echo(
        f"recall@10 against exact search: {description.recall:.4f} "
        f"({description.num_queries} images measured)"
    )
    typer.echo(f"index: {collection.folder / INDEX}")
