"""`selfvit embed`."""

from __future__ import annotations

import logging
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..option_help import HELP
from . import options
from .reports import report_left_out, report_source

if TYPE_CHECKING:
    from ..data.dataset_source import AnySource
    from ..data.inventory import SkippedImage
    from ..embedding.embedder import Embedder
    from ..embedding.vectors.shared_work import Group
    from ..embedding.vectors.writer import WriteReport


class RunnerName(str, Enum):
    """Ways to run."""

    local = "local"
    ray = "ray"


class TokensName(str, Enum):
    """Tokens to write."""

    pooled = "pooled"
    patches = "patches"


class EngineName(str, Enum):
    """Libraries that compute vectors."""

    auto = "auto"
    torch = "torch"
    openvino = "openvino"
    onnxruntime = "onnxruntime"


class VectorDType(str, Enum):
    """Type of the stored values."""

    float32 = "float32"
    float16 = "float16"


Devices = Annotated[
    str | None,
    typer.Option(
        "--devices",
        help="Number of processes, each with its own GPU (or share of the cores): all, or a "
        "number.",
        show_default="one process",
    ),
]
Runner = Annotated[
    RunnerName,
    typer.Option("--runner", help="Where to run: on this machine, or on a Ray cluster ([ray])."),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        help="Address of the Ray cluster: auto, HOST:PORT or ray://HOST:PORT.",
        show_default="a new one on this machine",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help=HELP["resume"])]
Update = Annotated[
    bool,
    typer.Option(
        "--update",
        help="Embed the new and changed images, and drop the vectors of those that are gone.",
    ),
]
VideoFps = Annotated[
    float | None,
    typer.Option(
        "--video-fps",
        help="Frames per second to embed of videos: --data is then video files, or a folder.",
        show_default="images are embedded",
    ),
]
Tokens = Annotated[
    TokensName,
    typer.Option(
        "--tokens",
        help="Tokens to write: the pooled vector, or the patches in addition (float16).",
    ),
]
Engine = Annotated[
    EngineName,
    typer.Option(
        "--engine",
        help="Library that computes: auto takes OpenVINO for a long run on a CPU if it is "
        "installed ([openvino]) and for int8, else torch.",
    ),
]
PartImages = Annotated[
    int,
    typer.Option(
        "--part-images",
        min=1,
        help="Maximum number of images per part; a part is closed after five minutes.",
    ),
]
StoredDType = Annotated[
    VectorDType, typer.Option("--vector-dtype", help="Type of the stored values.")
]


def embed(
    checkpoint: options.Checkpoint,
    data: options.Data,
    output: Annotated[Path, options.output("VECTORS", takes_url=True)],
    split: options.Split = None,
    streaming: options.Streaming = False,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    video_fps: VideoFps = None,
    pixel_range: options.PixelRange = None,
    bits: options.Bits = None,
    pooling: options.Pooling = None,
    network: options.Network = options.NetworkName.teacher,
    normalize: options.Normalize = False,
    tokens: Tokens = TokensName.pooled,
    engine: Engine = EngineName.auto,
    dtype: options.DType = options.DTypeName.float32,
    device: options.Device = None,
    devices: Devices = None,
    runner: Runner = RunnerName.local,
    ray_address: RayAddress = None,
    batch_size: options.BatchSize = 64,
    num_workers: options.NumWorkers = None,
    resume: Resume = False,
    overwrite: options.Overwrite = False,
    update: Update = False,
    part_images: PartImages = 100_000,
    vector_dtype: StoredDType = VectorDType.float32,
    strict: options.Strict = False,
) -> None:
    """Write a vector for every image, or for frames of videos.

    VECTORS is a new folder with part-00000.parquet and so on, manifest.json, skipped.csv and
    metadata.json, or its URL (s3://BUCKET/FOLDER). Each part appears when it is complete; a run
    that was interrupted goes on with --resume.
    """
    from ..data.sources import open_images
    from ..embedding.embedder import Embedder
    from ..embedding.vectors.folder import check_output
    from ..embedding.vectors.storage import resolve

    on_ray = runner is RunnerName.ray
    _check_combination(update, devices, on_ray, ray_address, overwrite or resume)
    declared_range = options.choose_pixel_range(pixel_range, bits)
    folder = resolve(output)
    device = device or ("cpu" if dtype is options.DTypeName.int8 else None)
    group, size, device = _group_of(devices, device, folder)
    if group is None and not update:
        check_output(folder, overwrite, resume)
    columns = {"split": split, "image_column": image_column, "label_column": label_column}
    source = open_images(data, streaming=streaming, video_fps=video_fps, **columns)
    engine_name, device = _choose_device(engine, dtype, device, group is None and size > 1)
    embedder = Embedder.from_pretrained(
        checkpoint,
        network=network.value,
        pooling=pooling,
        normalize=normalize,
        batch_size=batch_size,
        num_workers=options.choose_num_workers(num_workers, size),
        device=device,
        dtype=dtype.value,
        pixel_range=declared_range,
        tokens=tokens.value,
        engine=engine_name,
    )
    if group is None or group.is_leader:
        report_source(source)
    images = {"data": [_absolute(name) for name in data], **columns}
    origin = {"model": _absolute(checkpoint), "network": network.value, "images": images}
    written: dict[str, Any] = {"part_images": part_images, "vector_dtype": vector_dtype.value}
    written["metadata"] = origin
    skipped: list[SkippedImage] | None
    if update:
        skipped = _update(embedder, source, folder, written)
    else:
        written |= {"overwrite": overwrite, "resume": resume}
        embedder = _on_ray(embedder, ray_address) if on_ray else embedder
        skipped = _write(embedder, source, folder, group, size, written)
    if skipped is not None:
        report_left_out(("", source, skipped), strict=strict, skipped_file=None)


def _absolute(name: str) -> str:
    """Return the absolute path of a file or folder; a name on the Hub or a URL as it is."""
    return str(Path(name).absolute()) if Path(name).exists() else name


def _check_combination(
    update: bool, devices: str | None, on_ray: bool, ray_address: str | None, starts: bool
) -> None:
    if update and (devices is not None or on_ray or starts):
        raise ValueError(
            "--update embeds what is missing in one process; leave out --devices, --runner, "
            "--overwrite and --resume."
        )
    if on_ray and devices is not None:
        raise ValueError("--runner ray uses the devices of its cluster; leave out --devices.")
    if ray_address is not None and not on_ray:
        raise ValueError("--ray-address needs --runner ray.")


def _group_of(
    devices: str | None, device: str | None, output: Path
) -> tuple[Group | None, int, str | None]:
    """Return the group of this process, the number of processes, and the device of this one."""
    from ..embedding.vectors.processes import count_devices, device_of
    from ..embedding.vectors.shared_work import Group
    from ..embedding.vectors.storage import check_local

    group = Group.from_environment()
    size = count_devices(devices) if group is None else group.size
    if size > 1:
        check_local(output)
    if group is not None and device in (None, "cuda"):  # "cuda" alone is the first GPU for all
        device = device_of(group.local_rank) or device
    return group, size, device


def _choose_device(
    engine: EngineName, dtype: options.DTypeName, device: str | None, is_parent: bool
) -> tuple[str, str | None]:
    """Return the engine to ask for, and the device of this process.

    A process that only starts others computes on the CPU, unless it chooses a precision for the
    GPUs of the others.
    """
    from ..embedding.vectors.processes import device_of

    if not is_parent:
        return engine.value, device
    gpu = None if device == "cpu" else device or device_of(0)
    name = "torch" if gpu is not None and engine is EngineName.auto else engine.value
    return name, gpu if gpu is not None and dtype is options.DTypeName.auto else "cpu"


def _on_ray(embedder: Embedder, address: str | None) -> Embedder:
    """Connect to a Ray cluster, and return an embedder that uses it."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ImportError('--runner ray needs Ray: pip install "selfvit[ray]"') from error
    from ..embedding.ray import RayEmbedder

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        # Ray raises the same error if there is no cluster and if the cluster refuses the token.
        raise ConnectionError(
            f"there must be a Ray cluster at {address!r}, but: {error}; start one with ray start "
            "--head. If it runs, it may need its token, as clusters of newer versions of Ray do: "
            "set RAY_AUTH_MODE=token, and copy ~/.ray/auth_token from its first node."
        ) from error
    return RayEmbedder(embedder)


def _write(
    embedder: Embedder,
    source: AnySource,
    output: Path,
    group: Group | None,
    size: int,
    written: dict[str, Any],
) -> list[SkippedImage] | None:
    """Write the vectors, and return the skipped images; None if another process reports them."""
    from ..embedding.vectors.folder import SKIPPED
    from ..embedding.vectors.processes import write_in_processes
    from ..embedding.vectors.shared_work import write_in_group
    from ..embedding.vectors.writer import write_embeddings

    report: WriteReport | None
    if group is not None:
        report = write_in_group(embedder, source, output, group, **written)
    elif size > 1:
        command = ["selfvit.cli", *sys.argv[1:]]  # the processes find themselves in a group
        report = write_in_processes(embedder, source, output, command, size, **written)
    else:
        report = write_embeddings(embedder, source, output, **written)
    if report is None:
        return None
    num_new = report.num_embedded - report.num_before
    before = f" ({report.num_before} before)" if report.num_before else ""
    noun = "frames" if source.is_video else "images"
    typer.echo(f"{num_new} {noun} embedded in {report.seconds:.1f} s{before}: {output}")
    if (rounding := embedder.selection.quantization) is not None:
        typer.echo(f"int8: {rounding}")
    if num_left_out := len(source.inventory.all_left_out(report.skipped)):
        typer.echo(f"{num_left_out} images skipped, with reasons: {output / SKIPPED}")
    return report.skipped


def _update(
    embedder: Embedder, source: AnySource, output: Path, written: dict[str, Any]
) -> list[SkippedImage]:
    """Update the vectors, and return the skipped images."""
    from ..embedding.vectors.update import update_embeddings

    report = update_embeddings(embedder, source, output, **written)
    typer.echo(
        f"{report.num_new + report.num_changed} images embedded in {report.seconds:.1f} s "
        f"({report.num_new} new, {report.num_changed} changed); {report.num_removed} removed, "
        f"{report.num_kept} kept: {output}"
    )
    return report.skipped
