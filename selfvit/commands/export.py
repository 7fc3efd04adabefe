"""`selfvit export`."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .reports import report_left_out, report_source

if TYPE_CHECKING:
    from ..data.image_source import ImageSource
    from ..data.inventory import SkippedImage

MIN_COSINE = 0.99  # an angle of 8 degrees
MAX_IMAGES = 128


class Format(str, Enum):
    """Formats of an export, by name."""

    transformers = "transformers"
    timm = "timm"
    onnx = "onnx"
    sentence_transformers = "sentence-transformers"


def export(
    checkpoint: options.Checkpoint,
    to: Annotated[Format, typer.Option(metavar="FORMAT", help="Format to write.")],
    output: Annotated[Path | None, options.output("FOLDER", "CHECKPOINT-FORMAT")] = None,
    pooling: options.Pooling = None,
    network: options.Network = options.NetworkName.teacher,
    normalize: options.Normalize = False,
    device: options.Device = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Write an 8-bit graph as well (onnx).")
    ] = False,
    min_cosine: Annotated[
        float | None,
        typer.Option(
            help="Smallest mean centered cosine between 8-bit and float32 vectors that is "
            "accepted; -1 accepts any.",
            show_default=str(MIN_COSINE),
        ),
    ] = None,
    data: options.OptionalData = None,
    split: options.Split = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    pixel_range: options.PixelRange = None,
    bits: options.Bits = None,
    max_images: Annotated[
        int | None,
        typer.Option(
            help="Maximum number of images to measure the 8-bit graph on.",
            show_default=str(MAX_IMAGES),
        ),
    ] = None,
    num_workers: options.FewWorkers = 1,
    overwrite: options.Overwrite = False,
    strict: options.Strict = False,
    skipped: options.Skipped = None,
) -> None:
    """Export a checkpoint for users without selfvit, and check that it gives the same vectors.

    FORMAT is transformers, timm, onnx or sentence-transformers; --normalize works with the last
    two. FOLDER is a new folder. --data are the images that the graph of --int8 is measured on,
    random pixels by default.
    """
    from ..conversion.exporters.export import export as export_checkpoint
    from ..conversion.exporters.onnx import Int8
    from ..data.sources import open_images

    declared_range = options.choose_pixel_range(pixel_range, bits)
    if not int8:
        _check_unused({"data": data, "min-cosine": min_cosine, "max-images": max_images})
    pixel_values, readings = None, []
    if data is not None:
        source = open_images(
            data, split=split, image_column=image_column, label_column=label_column
        )
        report_source(source)
        limit = MAX_IMAGES if max_images is None else max_images
        pixel_values, unreadable = _load_pixels(
            checkpoint, source, limit, num_workers, declared_range
        )
        readings = [("", source, unreadable)]
    report = export_checkpoint(
        checkpoint,
        output or _default_output(checkpoint, to.value),
        to=to.value,
        network=network.value,
        pooling=pooling,
        normalize=normalize,
        int8=Int8(MIN_COSINE if min_cosine is None else min_cosine, pixel_values) if int8 else None,
        device=device,
        overwrite=overwrite,
    )
    difference = report.fidelity.max_difference
    typer.echo(
        f"{report.output}: pooling {report.pooling}"
        + ("" if difference is None else f", largest difference from selfvit {difference:.1e}")
    )
    for note in report.fidelity.notes:
        typer.echo(f"note: {note}")
    report_left_out(*readings, strict=strict, skipped_file=skipped)


def _check_unused(given: dict[str, Any]) -> None:
    """Check that no option of the 8-bit graph is given without it.

    Raises:
        ValueError: If one is.
    """
    for name, value in given.items():
        if value is not None:
            shown = " ".join(value) if isinstance(value, list) else value
            raise ValueError(
                f"--{name} ({shown}) is for measuring the 8-bit graph; add --int8, or leave "
                f"--{name} out."
            )


def _default_output(checkpoint: str, to: str) -> Path:
    """Return CHECKPOINT-FORMAT: next to a checkpoint folder, here for a Hub id."""
    folder = os.path.abspath(checkpoint) if os.path.isdir(checkpoint) else Path(checkpoint).name
    return Path(f"{folder}-{to}")


def _load_pixels(
    checkpoint: str,
    source: ImageSource,
    max_images: int,
    num_workers: int,
    pixel_range: tuple[float, float] | None,
) -> tuple[Any, list[SkippedImage]]:
    """Return preprocessed images, (N, C, H, W), spread over a source, and unreadable ones."""
    import torch
    from transformers import AutoImageProcessor

    from ..embedding.preparation import preprocess_spread_images
    from ..modeling.checkpoints.resolve import resolve_checkpoint

    processor = AutoImageProcessor.from_pretrained(resolve_checkpoint(checkpoint))
    pixels, skipped = preprocess_spread_images(
        source, processor, max_images, num_workers=num_workers, pixel_range=pixel_range
    )
    return torch.stack(pixels), skipped
