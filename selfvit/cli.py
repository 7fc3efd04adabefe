"""The `selfvit` command: a thin layer, one sub-command a capability.

What a command needs is imported when it runs, so that `--help` does not wait for it.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from .errors import one_line_errors

if TYPE_CHECKING:
    from PIL.Image import Image


class CommandGroup(TyperGroup):
    """Prints errors that the user can mend as one line, with exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        with nullcontext() if ctx.params.get("traceback") else one_line_errors():
            return super().invoke(ctx)


app = typer.Typer(cls=CommandGroup, no_args_is_help=True, pretty_exceptions_show_locals=False)
visualize = typer.Typer(
    no_args_is_help=True,
    help="Draw what a checkpoint makes of images, as a PNG with one row an image.",
)
app.add_typer(visualize, name="visualize")


class Network(str, Enum):
    """Which network of a checkpoint."""

    teacher = "teacher"
    student = "student"


class Format(str, Enum):
    """Who an export is for."""

    transformers = "transformers"
    timm = "timm"
    onnx = "onnx"
    sentence_transformers = "sentence-transformers"


class DType(str, Enum):
    """What to compute in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


# Options that several commands share.
Model = Annotated[str, typer.Option(help="Checkpoint: a folder, a Hub id or USER/NAME@REVISION.")]
Data = Annotated[
    str, typer.Option(help="Folder of images, Parquet file or folder, or Hub dataset id.")
]
Split = Annotated[str | None, typer.Option(help="Split of the data.")]
Pooling = Annotated[
    str | None,
    typer.Option(help="cls, mean, cls+mean, gem or concat:n; the checkpoint's by default."),
]
NetworkChoice = Annotated[Network, typer.Option(help="Which network, if it has two.")]
BatchSize = Annotated[int, typer.Option(help="Images a batch.")]
NumWorkers = Annotated[
    int | None,
    typer.Option(help="Processes that decode images; as many as there are cores, up to 8."),
]
Device = Annotated[str | None, typer.Option(help="cuda, mps or cpu; the best there is by default.")]
Picture = Annotated[Path, typer.Option(help="PNG to write.")]
NumImages = Annotated[int, typer.Option(help="Images to draw, spread over the data.")]
ImageSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Pixels, a multiple of the patch size; larger is finer. The checkpoint's by default.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing PNG.")]


def _workers(wanted: int | None) -> int:
    return min(8, os.cpu_count() or 1) if wanted is None else wanted


def _print_version(wanted: bool) -> None:
    if wanted:
        from . import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    traceback: Annotated[
        bool, typer.Option("--traceback", help="On an error, show where in the code it arose.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Self-supervised vision transformers, from a folder of images to embeddings."""


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def train(context: typer.Context) -> None:
    """Train a recipe on images: selfvit train RECIPE --data FOLDER --output OUT [--FIELD VALUE].

    `selfvit train --help` lists the recipes, `selfvit train RECIPE --help` its fields.
    """
    from .training.train import main as train_main

    train_main(context.args)


@app.command()
def embed(
    model: Model,
    data: Data,
    output: Annotated[Path, typer.Option(help="Folder to write; it must not exist yet.")],
    split: Split = None,
    pooling: Pooling = None,
    network: NetworkChoice = Network.teacher,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Scale vectors to length 1.")
    ] = False,
    dtype: Annotated[
        DType, typer.Option(help="What to compute in; vectors are float32 always.")
    ] = DType.float32,
    batch_size: BatchSize = 64,
    num_workers: NumWorkers = None,
    device: Device = None,
    image_column: Annotated[str | None, typer.Option(help="Column of the images.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the labels.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the vectors of an earlier run.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 if any image was skipped.")
    ] = False,
) -> None:
    """Write a vector for every image: OUTPUT/embeddings.parquet."""
    from .data.sources import open_images
    from .embedding.embedder import Embedder
    from .embedding.writer import SKIPPED, TABLE, check_output, write_embeddings

    check_output(output, overwrite)
    source = open_images(data, split=split, image_column=image_column, label_column=label_column)
    embedder = Embedder.from_pretrained(
        model,
        network=network.value,
        pooling=pooling,
        normalize=normalize,
        batch_size=batch_size,
        num_workers=_workers(num_workers),
        device=device,
        dtype=dtype.value,
    )
    report = write_embeddings(
        embedder,
        source,
        output,
        overwrite=overwrite,
        metadata={"model": model, "network": network.value},
    )
    typer.echo(f"{report.num_embedded} images embedded in {report.seconds:.1f} s: {output / TABLE}")
    if report.num_skipped:
        typer.echo(f"{report.num_skipped} skipped, with their reasons: {output / SKIPPED}")
        if strict:
            raise typer.Exit(1)


@app.command()
def export(
    checkpoint: Annotated[
        str, typer.Argument(help="Checkpoint: a folder, a Hub id or USER/NAME@REVISION.")
    ],
    to: Annotated[Format, typer.Option(help="Who it is for.")],
    output: Annotated[
        Path | None, typer.Argument(help="Folder to write; CHECKPOINT-FORMAT by default.")
    ] = None,
    network: NetworkChoice = Network.teacher,
    pooling: Pooling = None,
    normalize: Annotated[
        bool,
        typer.Option(
            "--normalize", help="Scale vectors to length 1 (onnx, sentence-transformers)."
        ),
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Write a graph in 8 bits, too (onnx).")
    ] = False,
    min_cosine: Annotated[
        float, typer.Option(help="Refuse 8 bits below this mean centered cosine; -1 never does.")
    ] = 0.99,  # an angle of 8 degrees
    data: Annotated[
        str | None,
        typer.Option(help="Images to measure 8 bits on, as --data of embed; random by default."),
    ] = None,
    max_images: Annotated[int, typer.Option(help="How many of them, at most.")] = 128,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier export.")
    ] = False,
) -> None:
    """Write a checkpoint for those who have no selfvit, checked to give the same vectors."""
    from .conversion.exporters.export import export as export_checkpoint
    from .conversion.exporters.onnx import Int8

    if data is not None and not int8:
        raise ValueError(f"data ({data!r}) is what 8 bits are measured on; give --int8, too.")
    pixel_values = None if data is None else _pixels_of(data, checkpoint, max_images)
    report = export_checkpoint(
        checkpoint,
        output or _beside(checkpoint, to.value),
        to=to.value,
        network=network.value,
        pooling=pooling,
        normalize=normalize,
        int8=Int8(min_cosine, pixel_values) if int8 else None,
        overwrite=overwrite,
    )
    difference = report.fidelity.max_difference
    typer.echo(
        f"{report.output}: pooling {report.pooling}"
        + ("" if difference is None else f", largest difference from selfvit {difference:.1e}")
    )
    for note in report.fidelity.notes:
        typer.echo(f"note: {note}")


def _beside(checkpoint: str, ending: str) -> Path:
    """Return where an export lies by default: beside the folder, or here for a Hub id."""
    folder = os.path.abspath(checkpoint) if os.path.isdir(checkpoint) else Path(checkpoint).name
    return Path(f"{folder}-{ending}")


def _pixels_of(data: str, checkpoint: str, max_images: int) -> Any:
    """Return images from all over a source, preprocessed: (N, C, H, W)."""
    import torch
    from transformers import AutoImageProcessor

    from .data.sources import open_images
    from .embedding.embedder import preprocess
    from .modeling.checkpoints.hub_revision import resolve_checkpoint

    source = open_images(data)
    processor = AutoImageProcessor.from_pretrained(resolve_checkpoint(checkpoint))
    positions = range(0, len(source), max(1, len(source) // max_images))[:max_images]
    return torch.stack([preprocess(source[position].image, processor) for position in positions])


@app.command()
def audit(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of transformers, timm or selfvit.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look for silent faults in a checkpoint; exit code 1 if there are any."""
    import json
    from dataclasses import asdict

    from .conversion.audit.audit import audit as audit_checkpoint

    result = audit_checkpoint(checkpoint)
    if as_json:
        typer.echo(json.dumps(asdict(result), indent=2, ensure_ascii=False))
    else:
        for finding in result.findings:
            typer.echo(f"{finding.fault}: {finding.what}.")
            typer.echo(f"  why it matters: {finding.why}.")
            typer.echo(f"  what to do: {finding.fix}.")
        for note in result.notes:
            typer.echo(f"note: {note}")
        if not result.findings:
            typer.echo(f"{checkpoint}: nothing wrong was found ({result.kind}).")
    if result.findings:
        raise typer.Exit(1)


@app.command()
def evaluate(
    model: Model,
    train: Annotated[
        str, typer.Option(help="Labeled images to learn classes from, as --data of embed.")
    ],
    test: Annotated[
        str | None,
        typer.Option(help="Labeled images to test on; without, no accuracies are measured."),
    ] = None,
    train_split: Annotated[str | None, typer.Option(help="Split of the training data.")] = None,
    test_split: Annotated[str | None, typer.Option(help="Split of the test data.")] = None,
    network: NetworkChoice = Network.teacher,
    pooling: Pooling = None,
    batch_size: BatchSize = 64,
    num_workers: NumWorkers = None,
    device: Device = None,
    output: Annotated[Path | None, typer.Option(help="JSON file to write, too.")] = None,
) -> None:
    """Measure embeddings: k-NN, linear probe, and figures that need no labels."""
    from .data.sources import open_images
    from .evaluation.evaluate import evaluate_checkpoint, format_table, save_metrics

    metrics = evaluate_checkpoint(
        model,
        open_images(train, split=train_split),
        None if test is None else open_images(test, split=test_split),
        network=network.value,
        pooling=pooling,
        batch_size=batch_size,
        num_workers=_workers(num_workers),
        device=device,
        progress=True,
    )
    typer.echo(format_table(metrics))
    if output is not None:
        save_metrics(metrics, output)


class Statistics(str, Enum):
    """Mean and deviation of the pixels."""

    imagenet = "imagenet"
    half = "half"


@app.command()
def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="File (.pth, .pt, .ckpt, .safetensors), folder, Hub id or timm model's name."
        ),
    ],
    output: Annotated[Path, typer.Argument(help="Folder to write; it must not exist yet.")],
    num_heads: Annotated[
        int | None,
        typer.Option(help="Attention heads; config.json's, or width / 64, by default."),
    ] = None,
    decoder_num_heads: Annotated[
        int | None, typer.Option(help="Attention heads of MAE's decoder; 16 by default.")
    ] = None,
    image_size: Annotated[
        tuple[int, int] | None,
        typer.Option(help="Height and width whose positions are stored; a square by default."),
    ] = None,
    pooling: Pooling = None,
    norm_pix_loss: Annotated[
        bool | None,
        typer.Option(help="Whether MAE's decoder predicts normalized pixels; no by default."),
    ] = None,
    statistics: Annotated[
        Statistics | None,
        typer.Option(help="Mean and deviation of the pixels (half: 0.5); the source's by default."),
    ] = None,
    dtype: Annotated[
        DType | None, typer.Option(help="Cast all weights; they are kept as they are by default.")
    ] = None,
    no_code: Annotated[
        bool,
        typer.Option("--no-code", help="Leave the model's code out; selfvit is needed to open it."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier conversion.")
    ] = False,
) -> None:
    """Convert weights of DINO, MAE, MSN, timm, torchvision, Lightly or transformers."""
    from .conversion.convert import convert as convert_source

    conversion = convert_source(
        source,
        output,
        num_heads=num_heads,
        decoder_num_heads=decoder_num_heads,
        image_size=image_size,
        pooling=pooling,
        norm_pix_loss=norm_pix_loss,
        statistics=None if statistics is None else statistics.value,
        dtype=None if dtype is None else dtype.value,
        save_code=not no_code,
        overwrite=overwrite,
    )
    typer.echo(str(conversion))
    typer.echo(f"written to {output}")


@app.command()
def publish(
    folder: Annotated[Path, typer.Argument(help="Checkpoint: a folder of selfvit's.")],
    repo_id: Annotated[
        str, typer.Argument(metavar="USER/NAME", help="Repository; made if it is not there.")
    ],
    private: Annotated[
        bool, typer.Option("--private", help="It has to be private; a new one is made so.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch, made if it is not there; main by default.")
    ] = None,
    create_pr: Annotated[
        bool,
        typer.Option(
            "--create-pr", help="Open a pull request, as happens without the right to push."
        ),
    ] = False,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(help="More files of the folder to send, as a pattern; may be repeated."),
    ] = None,
    retries: Annotated[
        int, typer.Option(help="How often to try again when the network fails.")
    ] = 3,
) -> None:
    """Send a checkpoint to the Hub: model, processor, card, training.yaml, figures, in one commit.

    Resumable states, logs and unknown files stay at home, and are listed.
    """
    from .sharing.publish import publish as publish_folder

    publication = publish_folder(
        folder,
        repo_id,
        private=private,
        revision=revision,
        create_pr=create_pr,
        message=message,
        include=include or (),
        retries=retries,
    )
    if publication.is_pull_request and not create_pr:
        typer.echo(f"you may not push to {repo_id}, so a pull request was opened instead.")
    done = "pull request" if publication.is_pull_request else "published"
    typer.echo(f"{done}: {publication.url}")
    typer.echo(f"sent: {', '.join(publication.sent)}")
    if publication.left_out:
        typer.echo(f"left out: {', '.join(publication.left_out)}")


def _images_to_draw(
    data: str, split: str | None, num_images: int, output: Path, overwrite: bool
) -> list[Image]:
    from .data.sources import open_images
    from .visualization.figures import check_picture
    from .visualization.inputs import choose_images

    check_picture(output, overwrite)
    images, skipped = choose_images(open_images(data, split=split), num_images)
    for image in skipped:
        typer.echo(f"skipped {image.id}: {image.reason}", err=True)
    return images


def _open_encoder(model: str, network: Network, image_size: int | None) -> tuple[Any, Any]:
    from .modeling.modeling_selfvit import SelfViTModel
    from .visualization.inputs import open_checkpoint

    return open_checkpoint(SelfViTModel, model, image_size=image_size, network=network.value)


@visualize.command()
def attention(
    model: Model,
    data: Data,
    output: Picture,
    num_images: NumImages = 8,
    network: NetworkChoice = Network.teacher,
    image_size: ImageSize = None,
    split: Split = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw what the class token attends to in the last block, head by head."""
    from .visualization.attention_maps import plot_attention_maps

    images = _images_to_draw(data, split, num_images, output, overwrite)
    plot_attention_maps(*_open_encoder(model, network, image_size), images, output)
    typer.echo(f"{len(images)} images drawn: {output}")


@visualize.command()
def pca(
    model: Model,
    data: Data,
    output: Picture,
    num_images: NumImages = 8,
    network: NetworkChoice = Network.teacher,
    image_size: ImageSize = None,
    split: Split = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw the patches' first three principal components, over all images, as colors."""
    from .visualization.pca_maps import plot_pca_maps

    images = _images_to_draw(data, split, num_images, output, overwrite)
    plot_pca_maps(*_open_encoder(model, network, image_size), images, output)
    typer.echo(f"{len(images)} images drawn: {output}")


@visualize.command()
def reconstruct(
    model: Model,
    data: Data,
    output: Picture,
    num_images: NumImages = 8,
    image_size: ImageSize = None,
    mask_ratio: Annotated[
        float | None,
        typer.Option(help="Fraction of the patches to mask; the checkpoint's by default."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the masks.")] = 0,
    split: Split = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw what a MAE checkpoint fills in where patches are masked.

    A model trained with norm_pix_loss predicts no brightness and no contrast; its patches are drawn
    with those of the true ones.
    """
    from .visualization.reconstructions import open_mae, plot_reconstructions

    images = _images_to_draw(data, split, num_images, output, overwrite)
    mae, processor = open_mae(model, image_size=image_size, mask_ratio=mask_ratio)
    plot_reconstructions(mae, processor, images, output, seed=seed)
    typer.echo(f"{len(images)} images drawn: {output}")


if __name__ == "__main__":
    app()
