"""`selfvit convert`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..option_help import HELP
from . import options


class Statistics(str, Enum):
    """Mean and std of the pixels, by name."""

    imagenet = "imagenet"
    half = "half"


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            show_default=False,
            help="Weights: a .pth, .pt, .ckpt or .safetensors file, a folder, a Hub id or the name "
            "of a timm model.",
        ),
    ],
    output: Annotated[Path, options.output("CHECKPOINT")],
    num_heads: Annotated[
        int | None,
        typer.Option(
            help="Number of attention heads.", show_default="from config.json, else width / 64"
        ),
    ] = None,
    decoder_num_heads: Annotated[
        int | None,
        typer.Option(help="Number of attention heads of MAE's decoder.", show_default="16"),
    ] = None,
    image_size: options.ImageSize = None,
    pooling: options.Pooling = None,
    norm_pix_loss: Annotated[
        bool | None,
        typer.Option(
            "--norm-pix-loss/--no-norm-pix-loss",
            help=HELP["norm_pix_loss"],
            show_default="raw pixels",
        ),
    ] = None,
    statistics: Annotated[
        Statistics | None,
        typer.Option(
            help="Mean and std that normalize the pixels; half is 0.5 for both.",
            show_default="the source's",
        ),
    ] = None,
    image_mean: Annotated[options.Numbers | None, options.numbers("mean")] = None,
    image_std: Annotated[options.Numbers | None, options.numbers("std")] = None,
    dtype: options.OptionalDType = None,
    no_save_code: Annotated[
        bool,
        typer.Option(
            "--no-save-code",
            help="Leave the model's code out of the checkpoint; it then opens with selfvit only.",
        ),
    ] = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Convert weights of DINO, DINOv2, MAE, MSN, timm, torchvision, Lightly or transformers.

    CHECKPOINT is a new folder. --image-size states the size that the position embeddings of the
    source were trained at, if it is not square. What the source does not tell is marked as a guess,
    with the option that corrects it.
    """
    from ..conversion.convert import convert as convert_source

    conversion = convert_source(
        source,
        output,
        num_heads=num_heads,
        decoder_num_heads=decoder_num_heads,
        image_size=image_size,
        pooling=pooling,
        norm_pix_loss=norm_pix_loss,
        statistics=None if statistics is None else statistics.value,
        image_mean=image_mean,
        image_std=image_std,
        dtype=None if dtype in (None, options.DTypeName.auto) else dtype.value,
        save_code=not no_save_code,
        overwrite=overwrite,
    )
    typer.echo(str(conversion))
    typer.echo(f"written to {output}")
