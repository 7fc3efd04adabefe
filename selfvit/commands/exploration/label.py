"""`selfvit label`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import options
from . import collection_options

if TYPE_CHECKING:
    from ...exploration.labeling import LabelResult


def label(
    vectors: collection_options.Vectors,
    labels: Annotated[
        Path,
        typer.Option("--labels", metavar="CSV", help="Table of paths and labels of a few images."),
    ],
    method: Annotated[str, collection_options.method("knn", "linear")] = "knn",
    uncertain: Annotated[
        int,
        typer.Option("--uncertain", min=0, help="Number of uncertain images to print."),
    ] = 20,
    output: Annotated[Path | None, options.output("CSV", "none")] = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    seed: collection_options.Seed = 0,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Classify all images of VECTORS from the labels of a few, with calibrated probabilities.

    The columns "prediction" and "probability" are written beside the vectors. The accuracy is
    measured by cross-validation on the labeled images; the most uncertain images to label next are
    printed. --output writes a table of paths, predictions and probabilities as well; of vectors in
    object storage, the table only.
    """
    from ...exploration.collection import Collection
    from ...exploration.labeling import label as classify

    if output is not None:
        collection_options.check_new_file(output, overwrite, (".csv",))
    collection = Collection(vectors)
    chosen: Any = method
    result = classify(
        collection,
        labels,
        method=chosen,
        uncertain=uncertain,
        seed=seed,
        image_column=image_column,
        label_column=label_column,
        write=collection.is_local or output is None,
    )
    if output is not None:
        columns = {
            "prediction": [row.prediction for row in result.predictions],
            "probability": [f"{row.probability:.6f}" for row in result.predictions],
        }
        collection.write_csv(output, columns)
    if as_json:
        collection_options.print_json(result.to_dict())
        return
    _report(result)
    if collection.is_local:
        typer.echo(f"columns: prediction, probability in {collection.folder}")
    if output is not None:
        typer.echo(f"table: {output}")


def _report(result: LabelResult) -> None:
    for note in result.notes:
        typer.echo(f"note: {note}")
    for found in result.to_dict()["classes"]:
        typer.echo(f"{found['label']}: {found['labeled']} labeled, {found['predicted']} predicted")
    if (estimate := result.estimate) is not None:
        typer.echo(
            f"accuracy on held-out labels: {estimate.accuracy:.3f} (95 % interval "
            f"{estimate.low:.3f} to {estimate.high:.3f}, {estimate.num_images} images in "
            f"{estimate.num_folds} folds); mean "
            f"probability {estimate.mean_probability:.3f}"
        )
    if result.uncertain:
        typer.echo("most uncertain images, to label next:")
    for row in result.uncertain:
        collection_options.print_line(f"{row.probability:.3f}  {row.prediction}  {row.path}")
