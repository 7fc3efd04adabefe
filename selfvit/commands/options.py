"""Arguments and options that several commands share: one name, type and help text each."""

from __future__ import annotations

import os
import re
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from ..option_help import HELP
from ..pixel_scale import check_pixel_range


class NetworkName(str, Enum):
    """Networks of a checkpoint."""

    teacher = "teacher"
    student = "student"


class DTypeName(str, Enum):
    """Data types by name."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    int8 = "int8"


class Size(NamedTuple):
    """Image size in pixels."""

    height: int
    width: int


def parse_image_size(text: str | Size) -> Size:
    """Read "224" or "224x336" (height x width).

    Raises:
        typer.BadParameter: If the text is neither.
    """
    if isinstance(text, Size):
        return text
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if match is None:
        raise typer.BadParameter(f"{text!r} must be one number or two: 224, or 224 336.")
    return Size(int(match[1]), int(match[2] or match[1]))


class Numbers(tuple[float, ...]):
    """Numbers of an option, one per channel."""


def parse_numbers(text: str | Numbers) -> Numbers:
    """Read "0.5" or "0.4,0.5,0.6,0.3".

    Raises:
        typer.BadParameter: If a part is no number.
    """
    if isinstance(text, Numbers):
        return text
    try:
        return Numbers(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} must be numbers, one per channel: 0.4 0.5 0.6 0.3."
        ) from None


def numbers(name: str) -> Any:
    """Return the option --image-mean or --image-std.

    Args:
        name: "mean" or "std".
    """
    return typer.Option(
        f"--image-{name}",
        parser=parse_numbers,
        metavar="NUMBERS",
        help=HELP[f"image_{name}"],
        show_default="the source's",
    )


def output(metavar: str, default: str | bool = True, takes_url: bool = False) -> Any:
    """Return the option --output.

    Args:
        metavar: Name of the output in the usage line.
        default: Description of the default, or whether to show its value.
        takes_url: Whether the output may be a URL, which stays a text for `resolve`.
    """
    return typer.Option(
        "--output",
        "-o",
        metavar=metavar,
        show_default=default,
        help=HELP["output"],
        callback=None if takes_url else _refuse_url,
        parser=_path_or_url if takes_url else None,
    )


def _path_or_url(output: str) -> Any:
    return output if "://" in output else Path(output)


def _refuse_url(output: Any) -> Any:
    """Refuse a URL where the output is a path, which drops a slash: s3:/bucket is a folder here."""
    if isinstance(output, Path) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(output)):
        url = str(output).replace(":/", "://", 1)
        raise ValueError(
            f"--output {url!r} must be a local path, as only embed writes to a URL; write to a "
            "disk and copy it."
        )
    return output


Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")]
Checkpoint = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        show_default=False,
        help="Checkpoint: a folder, Hub id or USER/NAME@REVISION; or weights to convert.",
    ),
]
CheckpointFolder = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", show_default=False, help="Checkpoint folder.")
]

_DATA = typer.Option(
    "--data",
    metavar="IMAGES",
    help=HELP["data"],
)
Data = Annotated[list[str], _DATA]
OptionalData = Annotated[list[str] | None, _DATA]
WHOLE_DATA = "train, or the entire image folder"  # data that is read without a split
Split = Annotated[
    str | None,
    typer.Option(
        "--split",
        help=HELP["split"],
        show_default=WHOLE_DATA,
    ),
]
Streaming = Annotated[bool, typer.Option("--streaming", help=HELP["streaming"])]
ImageColumn = Annotated[
    str | None,
    typer.Option("--image-column", help=HELP["image_column"], show_default="found by its type"),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(
        "--label-column",
        help=HELP["label_column"],
        show_default="found by its type or name",
    ),
]
Pooling = Annotated[
    str | None,
    typer.Option(
        "--pooling",
        help=HELP["pooling"],
        show_default="the checkpoint's",
    ),
]
Network = Annotated[
    NetworkName, typer.Option("--network", help="Network to use if the checkpoint holds two.")
]
Normalize = Annotated[bool, typer.Option("--normalize", help="Scale vectors to length 1.")]
_DTYPE_HELP = (
    "Data type of the model's weights; auto is bfloat16 where the device has instructions for it "
    "(in convert, the source's), int8 is calibrated on the images and measured ([openvino], not in "
    "convert)."
)
DType = Annotated[DTypeName, typer.Option("--dtype", help=_DTYPE_HELP)]
OptionalDType = Annotated[
    DTypeName | None, typer.Option("--dtype", help=_DTYPE_HELP, show_default="the source's")
]
Device = Annotated[
    str | None,
    typer.Option("--device", help="Device: cuda, mps or cpu.", show_default="the best available"),
]
BatchSize = Annotated[int, typer.Option("--batch-size", help=HELP["batch_size"])]
NumWorkers = Annotated[
    int | None,
    typer.Option(
        "--num-workers",
        help=HELP["num_workers"],
        show_default="the number of cores, at most 8",
    ),
]
ImageSize = Annotated[
    Size | None,
    typer.Option(
        "--image-size",
        parser=parse_image_size,
        metavar="SIZE | HEIGHT WIDTH",
        help=HELP["image_size"],
        show_default="the checkpoint's",
    ),
]
FewWorkers = Annotated[int, typer.Option("--num-workers", help=HELP["num_workers"])]
Strict = Annotated[bool, typer.Option("--strict", help=HELP["strict"])]
Skipped = Annotated[
    Path | None,
    typer.Option(
        "--skipped",
        metavar="CSV",
        help="File to write the images that were left out to, with the reasons.",
        show_default="none",
    ),
]
_PIXEL_RANGE_DEFAULT = "the checkpoint's, or the range of the file's type"
PixelRange = Annotated[
    tuple[float, float] | None,
    typer.Option(
        "--pixel-range",
        metavar="LOW HIGH",
        help=HELP["pixel_range"],
        show_default=_PIXEL_RANGE_DEFAULT,
    ),
]
Bits = Annotated[
    int | None,
    typer.Option("--bits", min=1, max=32, help=HELP["bits"], show_default=_PIXEL_RANGE_DEFAULT),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help=HELP["overwrite"])]


def choose_pixel_range(
    pixel_range: tuple[float, float] | None, bits: int | None
) -> tuple[float, float] | None:
    """Return the range that one of --pixel-range and --bits declares; None for neither.

    Raises:
        ValueError: If both are given, or the range is not in ascending order.
    """
    if bits is None:
        return check_pixel_range(pixel_range)
    if pixel_range is not None:
        raise ValueError(
            f"--bits {bits} and --pixel-range {pixel_range[0]:g} {pixel_range[1]:g} both declare "
            "the range of the pixels; use one of them."
        )
    return 0.0, float(2**bits - 1)


def choose_num_workers(wanted: int | None, num_processes: int = 1) -> int:
    """Return the number of workers of each process; None selects one per core, up to 8."""
    if wanted is not None:
        return wanted
    return max(1, min(8, (os.cpu_count() or 1) // num_processes))
