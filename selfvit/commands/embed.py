"""`selfvit embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .reports import report_left_out, report_source


def embed(
    checkpoint: options.Checkpoint,
    data: options.Data,
    output: Annotated[Path, options.output("VECTORS")],
    split: options.Split = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    pixel_range: options.PixelRange = None,
    bits: options.Bits = None,
    pooling: options.Pooling = None,
    network: options.Network = options.NetworkName.teacher,
    normalize: options.Normalize = False,
    dtype: options.DType = options.DTypeName.float32,
    device: options.Device = None,
    batch_size: options.BatchSize = 64,
    num_workers: options.NumWorkers = None,
    overwrite: options.Overwrite = False,
    strict: options.Strict = False,
) -> None:
    """Write a vector for every image.

    VECTORS is a new folder with embeddings.parquet (float32 vectors), skipped.csv and
    metadata.json.
    """
    from ..data.sources import open_images
    from ..embedding.embedder import Embedder
    from ..embedding.writer import SKIPPED, TABLE, check_output, write_embeddings

    declared_range = options.choose_pixel_range(pixel_range, bits)
    check_output(output, overwrite)
    source = open_images(data, split=split, image_column=image_column, label_column=label_column)
    embedder = Embedder.from_pretrained(
        checkpoint,
        network=network.value,
        pooling=pooling,
        normalize=normalize,
        batch_size=batch_size,
        num_workers=options.choose_num_workers(num_workers),
        device=device,
        dtype=dtype.value,
        pixel_range=declared_range,
    )
    report_source(source)
    report = write_embeddings(
        embedder,
        source,
        output,
        overwrite=overwrite,
        metadata={"model": checkpoint, "network": network.value},
    )
    typer.echo(f"{report.num_embedded} images embedded in {report.seconds:.1f} s: {output / TABLE}")
    if num_left_out := len(source.inventory.all_left_out(report.skipped)):
        typer.echo(f"{num_left_out} images skipped, with reasons: {output / SKIPPED}")
    report_left_out(("", source, report.skipped), strict=strict, skipped_file=None)
