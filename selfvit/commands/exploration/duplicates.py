"""`selfvit duplicates`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import options
from . import collection_options

if TYPE_CHECKING:
    from ...exploration.collection import Collection
    from ...exploration.duplicates import DuplicatesResult

_TABLES, _PICTURES = (".csv", ".parquet"), (".png",)


LinkTo = Annotated[
    Path | None,
    typer.Option(
        "--link-to",
        metavar="FOLDER",
        help="New folder for hard links to the images of VECTORS to keep.",
        show_default="none",
    ),
]
AgainstData = Annotated[
    list[str] | None,
    typer.Option(
        "--against-data",
        metavar="IMAGES",
        help="Images of OTHER.",
        show_default="those of OTHER",
    ),
]


def duplicates(
    vectors: collection_options.Vectors,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="OTHER",
            help="Vectors of other images: find the images of VECTORS that duplicate one of them.",
            show_default="none",
        ),
    ] = None,
    precision: Annotated[
        float,
        typer.Option(
            "--precision",
            help="Share of true duplicates that the threshold is chosen for, above 0 and below 1.",
        ),
    ] = 0.99,
    output: Annotated[Path | None, options.output("GROUPS", "none")] = None,
    sheet: collection_options.Sheet = None,
    plot: collection_options.Plot = None,
    link_to: LinkTo = None,
    checkpoint: collection_options.Checkpoint = None,
    data: collection_options.Images = None,
    against_data: AgainstData = None,
    device: options.Device = None,
    seed: collection_options.Seed = 0,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Find exact copies and near duplicates in VECTORS, and choose one image of each to keep.

    The threshold of near duplicates is measured on the images: on re-encoded, resized, cropped and
    brightened variants of a sample. No image is changed or deleted.
    """
    from ...exploration.collection import Collection
    from ...exploration.duplicates import duplicates as find
    from ...exploration.duplication.outputs import (
        check_link_folder,
        check_link_names,
        link_images,
    )

    for path, suffixes in ((output, _TABLES), (sheet, _PICTURES), (plot, _PICTURES)):
        if path is not None:
            collection_options.check_new_file(path, overwrite, suffixes)
    if link_to is not None:
        check_link_folder(link_to)
    collection = Collection(vectors)
    if link_to is not None:
        check_link_names(collection.ids)
    other = None if against is None else Collection(against)
    result = find(
        collection,
        against=other,
        precision=precision,
        data=data,
        against_data=against_data,
        checkpoint=checkpoint,
        device=device,
        seed=seed,
    )
    written = _write(result, collection, other, (data, against_data), (output, sheet, plot))
    if as_json:
        collection_options.print_json(result.to_dict())
    else:
        _print(result, collection, other)
        for line in written:
            typer.echo(line)
    if link_to is not None:  # last, as it may fail when the search, which takes long, is done
        count = link_images(collection.images(data), result.kept_rows, link_to)
        if not as_json:
            typer.echo(f"linked: {count} images in {link_to}")


def _write(
    result: DuplicatesResult,
    collection: Collection,
    other: Collection | None,
    places: tuple[list[str] | None, list[str] | None],
    files: tuple[Path | None, Path | None, Path | None],
) -> list[str]:
    """Write the files that are wanted, and return a line for each."""
    from ...exploration.duplication.outputs import draw_groups, write_groups
    from ...exploration.duplication.threshold import draw_threshold
    from ...exploration.sheets import remark_on_rows

    output, sheet, plot = files
    lines = []
    if output is not None:
        keeper_ids = (collection if other is None else other).ids
        write_groups(result.rows, collection.ids, keeper_ids, output)
        lines.append(f"groups: {output}")
    if plot is not None:
        if result.calibration is None:
            lines.append("plot: not drawn, as no threshold was measured")
        else:
            draw_threshold(result.calibration, plot)
            lines.append(f"plot: {plot}")
    if sheet is not None:
        images = collection.images(places[0])
        keeper_images = images if other is None else other.images(places[1])
        draw_groups(result.rows, images, keeper_images, sheet)
        lines.append(f"sheet: {sheet}{remark_on_rows(len(result.rows), 'groups')}")
    return lines


def _print(result: DuplicatesResult, collection: Collection, other: Collection | None) -> None:
    calibration = result.calibration
    if result.threshold is not None and calibration is not None:
        typer.echo(
            f"threshold: agreement {result.threshold:.4f}, similarity {calibration.similarity:.4f} "
            f"(estimated: precision {calibration.precision:.3f}, recall {calibration.recall:.3f})"
        )
    if result.note:
        typer.echo(f"note: {result.note}")
    members = [member for members in result.rows.values() for member in members]
    exact = sum(member.is_exact for member in members)
    where = "" if other is None else f" of images in {other.folder}"
    typer.echo(
        f"{len(members):,} of {len(collection):,} images are duplicates{where}: {exact:,} exact, "
        f"{len(members) - exact:,} near, in {len(result.groups):,} groups"
    )
    for group in result.groups:
        collection_options.print_line(f"keep {group.keep}")
        for name in group.members:
            collection_options.print_line(f"     {name}")
