"""`selfvit visualize attention|pca|reconstruct`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import printable_line
from ..option_help import HELP
from . import options
from .reports import report_left_out, report_source

if TYPE_CHECKING:
    from ..data.image_source import ImageSource
    from ..data.inventory import SkippedImage
    from ..data.pixel_format import DecodedPixels

NumImages = Annotated[
    int, typer.Option(help="Number of images to draw, evenly spread over the data.")
]

MAX_NAMED = 10  # images that are named one by one


def attention(
    checkpoint: options.Checkpoint,
    data: options.Data,
    output: Annotated[Path, options.output("PNG")],
    split: options.Split = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    pixel_range: options.PixelRange = None,
    bits: options.Bits = None,
    num_images: NumImages = 8,
    network: options.Network = options.NetworkName.teacher,
    image_size: options.ImageSize = None,
    device: options.Device = None,
    num_workers: options.FewWorkers = 1,
    overwrite: options.Overwrite = False,
    strict: options.Strict = False,
    skipped: options.Skipped = None,
) -> None:
    """Draw the attention of the class token in the last block, one map per head.

    PNG has one row per image.
    """
    from ..visualization.attention_maps import plot_attention_maps
    from ..visualization.figures import check_picture

    declared_range = options.choose_pixel_range(pixel_range, bits)
    check_picture(output, overwrite)
    model, processor = _open_encoder(checkpoint, network, image_size, device)
    source, images, unreadable = _choose_images(
        data, split, image_column, label_column, num_images, num_workers, processor, declared_range
    )
    plot_attention_maps(model, processor, images, output)
    typer.echo(f"{len(images)} images drawn: {output}")
    report_left_out(("", source, unreadable), strict=strict, skipped_file=skipped)


def pca(
    checkpoint: options.Checkpoint,
    data: options.Data,
    output: Annotated[Path, options.output("PNG")],
    split: options.Split = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    pixel_range: options.PixelRange = None,
    bits: options.Bits = None,
    num_images: NumImages = 8,
    network: options.Network = options.NetworkName.teacher,
    image_size: options.ImageSize = None,
    device: options.Device = None,
    num_workers: options.FewWorkers = 1,
    overwrite: options.Overwrite = False,
    strict: options.Strict = False,
    skipped: options.Skipped = None,
) -> None:
    """Draw the first three principal components of the patch tokens as colors.

    The components are computed over all images. PNG has one row per image.
    """
    from ..visualization.figures import check_picture
    from ..visualization.pca_maps import plot_pca_maps

    declared_range = options.choose_pixel_range(pixel_range, bits)
    check_picture(output, overwrite)
    model, processor = _open_encoder(checkpoint, network, image_size, device)
    source, images, unreadable = _choose_images(
        data, split, image_column, label_column, num_images, num_workers, processor, declared_range
    )
    plot_pca_maps(model, processor, images, output)
    typer.echo(f"{len(images)} images drawn: {output}")
    report_left_out(("", source, unreadable), strict=strict, skipped_file=skipped)


def reconstruct(
    checkpoint: options.Checkpoint,
    data: options.Data,
    output: Annotated[Path, options.output("PNG")],
    split: options.Split = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    pixel_range: options.PixelRange = None,
    bits: options.Bits = None,
    num_images: NumImages = 8,
    image_size: options.ImageSize = None,
    mask_ratio: Annotated[
        float | None,
        typer.Option(help=HELP["mask_ratio"], show_default="the checkpoint's"),
    ] = None,
    seed: Annotated[int, typer.Option(help=HELP["seed"])] = 0,
    device: options.Device = None,
    num_workers: options.FewWorkers = 1,
    overwrite: options.Overwrite = False,
    strict: options.Strict = False,
    skipped: options.Skipped = None,
) -> None:
    """Draw how a MAE checkpoint reconstructs masked patches.

    A model trained with norm_pix_loss predicts neither brightness nor contrast; its patches are
    drawn with the brightness and contrast of the original. PNG has one row per image.
    """
    from ..embedding.embedder import best_device
    from ..visualization.figures import check_picture
    from ..visualization.reconstructions import open_mae, plot_reconstructions

    declared_range = options.choose_pixel_range(pixel_range, bits)
    check_picture(output, overwrite)
    mae, processor = open_mae(checkpoint, image_size=image_size, mask_ratio=mask_ratio)
    source, images, unreadable = _choose_images(
        data, split, image_column, label_column, num_images, num_workers, processor, declared_range
    )
    mae.to(best_device(device))  # type: ignore[arg-type]
    plot_reconstructions(mae, processor, images, output, seed=seed)
    typer.echo(f"{len(images)} images drawn: {output}")
    report_left_out(("", source, unreadable), strict=strict, skipped_file=skipped)


def _choose_images(
    data: list[str],
    split: str | None,
    image_column: str | None,
    label_column: str | None,
    num_images: int,
    num_workers: int,
    processor: Any,
    pixel_range: tuple[float, float] | None,
) -> tuple[ImageSource, list[DecodedPixels], list[SkippedImage]]:
    from ..data.sources import open_images
    from ..visualization.inputs import choose_images

    source = open_images(data, split=split, image_column=image_column, label_column=label_column)
    report_source(source)
    images, skipped = choose_images(
        source,
        num_images,
        num_workers=num_workers,
        processor=processor,
        pixel_range=pixel_range,
    )
    for image in skipped[:MAX_NAMED]:
        typer.echo(printable_line(f"skipped {image.id}: {image.reason}"), err=True)
    return source, images, skipped


def _open_encoder(
    checkpoint: str,
    network: options.NetworkName,
    image_size: options.Size | None,
    device: str | None,
) -> tuple[Any, Any]:
    from ..embedding.embedder import best_device
    from ..modeling.modeling_selfvit import SelfViTModel
    from ..visualization.inputs import open_checkpoint

    model, processor = open_checkpoint(
        SelfViTModel, checkpoint, image_size=image_size, network=network.value
    )
    return model.to(best_device(device)), processor  # type: ignore[arg-type]
