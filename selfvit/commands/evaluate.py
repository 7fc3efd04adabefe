"""`selfvit evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .reports import report_left_out, report_source

if TYPE_CHECKING:
    from ..data.image_source import ImageSource


def evaluate(
    checkpoint: options.Checkpoint,
    train: Annotated[
        list[str],
        typer.Option(
            metavar="IMAGES",
            help="Labeled images to fit k-NN and the linear probe on, as --data of embed.",
        ),
    ],
    test: Annotated[
        list[str] | None,
        typer.Option(
            metavar="IMAGES",
            help="Labeled images to measure the accuracies on, as --data of embed.",
            show_default="none, which gives no accuracies",
        ),
    ] = None,
    train_split: Annotated[
        str | None,
        typer.Option(
            help="Split or subfolder of the training images.", show_default=options.WHOLE_DATA
        ),
    ] = None,
    test_split: Annotated[
        str | None,
        typer.Option(
            help="Split or subfolder of the test images.", show_default=options.WHOLE_DATA
        ),
    ] = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    pixel_range: options.PixelRange = None,
    bits: options.Bits = None,
    pooling: options.Pooling = None,
    network: options.Network = options.NetworkName.teacher,
    dtype: options.DType = options.DTypeName.float32,
    device: options.Device = None,
    batch_size: options.BatchSize = 64,
    num_workers: options.NumWorkers = None,
    output: Annotated[Path | None, options.output("JSON", "none")] = None,
    strict: options.Strict = False,
    skipped: options.Skipped = None,
) -> None:
    """Measure embeddings by k-NN, a linear probe and metrics that need no labels.

    The metrics are printed as a table. With --output they are also written as a JSON file.
    """
    from ..evaluation.evaluate import (
        embed_splits,
        evaluate_splits,
        format_table,
        save_metrics,
        why_no_accuracies,
    )

    data = {"train": (train, train_split), "test": (test, test_split)}
    sources = _open_sources(data, image_column, label_column)
    embedded = embed_splits(
        checkpoint,
        sources["train"],
        sources.get("test"),
        network=network.value,
        pooling=pooling,
        dtype=dtype.value,
        batch_size=batch_size,
        num_workers=options.choose_num_workers(num_workers),
        device=device,
        pixel_range=options.choose_pixel_range(pixel_range, bits),
        progress=True,
    )
    metrics = evaluate_splits(sources["train"], sources.get("test"), *embedded)
    typer.echo(format_table(metrics, why_no_accuracies(*embedded)))
    if output is not None:
        save_metrics(metrics, output)
    found = zip(sources.items(), embedded, strict=False)
    readings = [(name, source, vectors.skipped) for (name, source), vectors in found if vectors]
    if sources.get("test") is sources["train"]:
        readings = readings[:1]
    report_left_out(*readings, strict=strict, skipped_file=skipped)


def _open_sources(
    data: dict[str, tuple[list[str] | None, str | None]],
    image_column: str | None,
    label_column: str | None,
) -> dict[str, ImageSource]:
    """Open the images by name, each with its split, and print their labels and notes."""
    from ..data.sources import open_images

    opened: dict[str, ImageSource] = {}  # the same images are opened and embedded once
    sources = {}
    for name, (images, split) in data.items():
        if not images:  # typer gives an empty list without the option
            continue
        key = repr((images, split))
        if key not in opened:
            opened[key] = open_images(
                images, split=split, image_column=image_column, label_column=label_column
            )
        sources[name] = opened[key]
    for name, source in sources.items():
        report_source(source, name)
    return sources
