"""`selfvit embed`."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..option_help import HELP
from . import options
from .reports import report_left_out, report_source

if TYPE_CHECKING:
    from ..data.image_source import ImageSource
    from ..embedding.embedder import Embedder
    from ..embedding.vectors.writer import WriteReport


class VectorDType(str, Enum):
    """Type of the stored values."""

    float32 = "float32"
    float16 = "float16"


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
    devices: Annotated[
        str | None,
        typer.Option(
            help="Number of processes, each with its own GPU (or share of the cores): all, or a "
            "number.",
            show_default="one process",
        ),
    ] = None,
    batch_size: options.BatchSize = 64,
    num_workers: options.NumWorkers = None,
    resume: Annotated[bool, typer.Option("--resume", help=HELP["resume"])] = False,
    overwrite: options.Overwrite = False,
    update: Annotated[
        bool,
        typer.Option(
            "--update",
            help="Embed the new and changed images, and drop the vectors of those that are gone.",
        ),
    ] = False,
    part_images: Annotated[
        int,
        typer.Option(
            min=1, help="Maximum number of images per part; a part is closed after five minutes."
        ),
    ] = 100_000,
    vector_dtype: Annotated[
        VectorDType, typer.Option(help="Type of the stored values.")
    ] = VectorDType.float32,
    strict: options.Strict = False,
) -> None:
    """Write a vector for every image.

    VECTORS is a new folder with part-00000.parquet and so on, manifest.json, skipped.csv and
    metadata.json. Each part appears when it is complete; a run that was interrupted goes on with
    --resume.
    """
    from ..data.sources import open_images
    from ..embedding.embedder import Embedder
    from ..embedding.vectors.folder import SKIPPED, check_output
    from ..embedding.vectors.processes import count_devices, device_of, write_in_processes
    from ..embedding.vectors.shared_work import Group, write_in_group
    from ..embedding.vectors.writer import write_embeddings

    if update and (devices is not None or overwrite or resume):
        raise ValueError(
            "--update embeds what is missing in one process; leave out --devices, --overwrite and "
            "--resume."
        )
    declared_range = options.choose_pixel_range(pixel_range, bits)
    group = Group.from_environment()
    size = count_devices(devices) if group is None else group.size
    if group is None:
        if not update:
            check_output(output, overwrite, resume)
    elif device is None:
        device = device_of(group.local_rank)
    source = open_images(data, split=split, image_column=image_column, label_column=label_column)
    embedder = Embedder.from_pretrained(
        checkpoint,
        network=network.value,
        pooling=pooling,
        normalize=normalize,
        batch_size=batch_size,
        num_workers=options.choose_num_workers(num_workers, size),
        device="cpu" if group is None and size > 1 else device,
        dtype=dtype.value,
        pixel_range=declared_range,
    )
    parts: dict[str, Any] = {"part_images": part_images, "vector_dtype": vector_dtype.value}
    run: dict[str, Any] = {
        "overwrite": overwrite,
        "resume": resume,
        "metadata": {"model": checkpoint, "network": network.value},
    }
    report: WriteReport | None
    if update:
        _update(embedder, source, output, parts, run, strict)
        return
    if group is None or group.rank == 0 and not group.has_supervisor:
        report_source(source)
    if group is not None:
        report = write_in_group(embedder, source, output, group, **parts, **run)
        if report is None:
            return
    elif size > 1:
        command = ["selfvit.cli", *sys.argv[1:]]
        del parts["part_images"]  # the processes have it from the command
        report = write_in_processes(embedder, source, output, command, size, **parts, **run)
    else:
        report = write_embeddings(embedder, source, output, **parts, **run)
    num_new = report.num_embedded - report.num_before
    before = f" ({report.num_before} before)" if report.num_before else ""
    typer.echo(f"{num_new} images embedded in {report.seconds:.1f} s{before}: {output}")
    if num_left_out := len(source.inventory.all_left_out(report.skipped)):
        typer.echo(f"{num_left_out} images skipped, with reasons: {output / SKIPPED}")
    report_left_out(("", source, report.skipped), strict=strict, skipped_file=None)


def _update(
    embedder: Embedder,
    source: ImageSource,
    output: Path,
    parts: dict[str, Any],
    run: dict[str, Any],
    strict: bool,
) -> None:
    from ..embedding.vectors.update import update_embeddings

    report_source(source)
    report = update_embeddings(embedder, source, output, **parts, metadata=run["metadata"])
    typer.echo(
        f"{report.num_new + report.num_changed} images embedded in {report.seconds:.1f} s "
        f"({report.num_new} new, {report.num_changed} changed); {report.num_removed} removed, "
        f"{report.num_kept} kept: {output}"
    )
    report_left_out(("", source, report.skipped), strict=strict, skipped_file=None)
