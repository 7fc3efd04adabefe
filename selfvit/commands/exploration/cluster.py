"""`selfvit cluster`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import options
from . import collection_options

if TYPE_CHECKING:
    from ...exploration.clusters import ClusterResult


def cluster(
    vectors: collection_options.Vectors,
    num_clusters: Annotated[
        int | None,
        typer.Option(
            "--num-clusters",
            min=1,
            help="Number of clusters of k-means.",
            show_default="the elbow of the inertia",
        ),
    ] = None,
    method: Annotated[str, collection_options.method("kmeans", "hdbscan")] = "kmeans",
    min_cluster_size: Annotated[
        int | None,
        typer.Option(
            "--min-cluster-size",
            min=2,
            help="Number of images in the smallest cluster of HDBSCAN.",
            show_default="1 % of the images, at least 5",
        ),
    ] = None,
    num_seeds: Annotated[
        int,
        typer.Option(
            "--num-seeds", min=1, help="Number of seeds to measure the stability with; 1 skips it."
        ),
    ] = 5,
    output: Annotated[Path | None, options.output("CSV", "none")] = None,
    sheet: collection_options.Sheet = None,
    data: collection_options.Images = None,
    seed: collection_options.Seed = 0,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Divide the images of VECTORS into clusters, and write them as the column "cluster".

    The largest cluster is 0. Images that HDBSCAN leaves out as noise have no cluster. --output
    writes a table of paths and clusters as well; of vectors in object storage, the table only.
    """
    from ...exploration.clusters import cluster as find
    from ...exploration.clusters import draw_clusters
    from ...exploration.collection import Collection
    from ...exploration.sheets import remark_on_rows

    for path, suffix in ((output, ".csv"), (sheet, ".png")):
        if path is not None:
            collection_options.check_new_file(path, overwrite, (suffix,))
    collection = Collection(vectors)
    chosen: Any = method
    result = find(
        collection,
        num_clusters=num_clusters,
        method=chosen,
        min_cluster_size=min_cluster_size,
        num_seeds=num_seeds,
        seed=seed,
        write=collection.is_local or output is None,
    )
    if output is not None:
        collection.write_csv(output, {"cluster": result.column})
    if sheet is not None:
        draw_clusters(result, collection.images(data), sheet)
    if as_json:
        collection_options.print_json(result.to_dict())
        return
    _report(result, num_seeds)
    if collection.is_local:
        typer.echo(f"column: cluster in {collection.folder}")
    if output is not None:
        typer.echo(f"table: {output}")
    if sheet is not None:
        typer.echo(f"sheet: {sheet}{remark_on_rows(len(result.clusters), 'clusters')}")


def _report(result: ClusterResult, num_seeds: int) -> None:
    typer.echo(f"{len(result.clusters)} clusters: {result.method}")
    for found in result.clusters:
        label = "" if found.label is None else f", {found.share:.0%} {found.label}"
        collection_options.print_line(
            f"{found.id:4}  {found.size} images{label}; center: {found.exemplars[0]}"
        )
    if result.num_noise:
        typer.echo(f"noise  {result.num_noise} images")
    if result.stability is not None:
        typer.echo(
            f"stability over {num_seeds} seeds: adjusted Rand index {result.stability:.3f} "
            "(1: always the same clusters)"
        )
    if (agreement := result.agreement) is not None:
        typer.echo(
            f"agreement with {agreement.num_labels} labels: adjusted Rand index "
            f"{agreement.adjusted_rand:.3f}, normalized mutual information "
            f"{agreement.mutual_information:.3f}"
        )
