"""`selfvit stats`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..option_help import HELP
from . import options
from .reports import report_left_out, report_source


def stats(
    data: options.Data,
    split: options.Split = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    num_channels: Annotated[int, typer.Option(help=HELP["num_channels"], min=1)] = 3,
    pixel_range: options.PixelRange = None,
    bits: options.Bits = None,
    streaming: options.Streaming = False,
    sample_size: Annotated[
        int, typer.Option(help="Maximum number of images to measure.", min=1)
    ] = 1000,
    output: Annotated[Path | None, options.output("JSON", "none")] = None,
    strict: options.Strict = False,
    skipped: options.Skipped = None,
) -> None:
    """Measure the mean and std of each channel, for --image-mean and --image-std of train.

    A fixed sample of the images is measured. `selfvit train` measures the same sample itself if
    there are not three channels and no mean and std are given.
    """
    from ..atomic_output import atomic_output
    from ..data.pixel_format import PixelFormat
    from ..data.sources import open_images
    from ..embedding.statistics import channel_statistics, sample_images

    pixel_format = PixelFormat(num_channels, options.choose_pixel_range(pixel_range, bits))
    source = open_images(
        data, split=split, image_column=image_column, label_column=label_column, streaming=streaming
    )
    sample = sample_images(source, sample_size)
    report_source(sample)
    measured = channel_statistics(sample, pixel_format, progress=True)
    for warning in measured.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"{measured.num_images} images of {source.description} measured")
    typer.echo(measured.options())
    if output is not None:
        with atomic_output(output) as unfinished:
            unfinished.write_text(json.dumps(measured.to_dict(), indent=2) + "\n", encoding="utf-8")
    report_left_out(("", sample, measured.skipped), strict=strict, skipped_file=skipped)
