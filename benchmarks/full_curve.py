"""Train a demo recipe on all of Fashion-MNIST, and measure when its k-NN passes raw pixels.

    pip install -e ".[train,viz]" && sudo apt install dataset-fashion-mnist
    OMP_NUM_THREADS=1 python -m benchmarks.full_curve --recipe dino_demo --max-steps 10000

The run is that of `selfvit train RECIPE --data train.parquet`, with the views made in the same
process, so that on one thread its CPU time is that of one core. It saves ten checkpoints. k-NN
classifies the 10,000 test images by the 60,000 training images, whose labels training does not use.
A run that is in the work folder already is resumed, or measured if it is finished.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from transformers import AutoImageProcessor

from benchmarks.demo_curve import plot
from benchmarks.fashion_mnist import DEBIAN_FOLDER, LabeledImages, load_splits
from benchmarks.image_sets import LabeledSet, accuracies, embed, fashion_mnist
from benchmarks.interleaved import machine, versions
from benchmarks.small_folder import train
from benchmarks.timed_training import write_encoder
from selfvit import Embedder, save_metrics
from selfvit.atomic_output import atomic_output
from selfvit.training.config.run_config import RunConfig
from selfvit.training.model import build_trainable

NUM_POINTS = 10  # checkpoints of a run


def write_parquet(images: LabeledImages, path: Path) -> None:
    """Write images with their labels, unless the file exists."""
    from datasets import ClassLabel, Dataset, Features, Image
    from PIL import Image as PillowImage

    if path.exists():
        return
    features = Features({"image": Image(), "label": ClassLabel(num_classes=10)})
    columns = {
        "image": [PillowImage.fromarray(pixels) for pixels in images.pixels],
        "label": [int(label) for label in images.labels],
    }
    with atomic_output(path) as unfinished:
        Dataset.from_dict(columns, features=features).to_parquet(unfinished)


def measure(run: Path, images: LabeledSet) -> dict[str, Any]:
    """Return the accuracies of raw pixels, of the untrained encoder, and the curve of a run."""
    config = RunConfig.from_yaml((run / "training.yaml").read_text(encoding="utf-8"))
    untrained = run.with_name(f"{run.name}-untrained")
    if not untrained.exists():
        set_seed(config.start.seed)
        processor = AutoImageProcessor.from_pretrained(run)
        write_encoder(Embedder(build_trainable(config).vit, processor), untrained)
    batch_size = config.schedule.batch_size
    curve = []
    for checkpoint in sorted((run / "checkpoints").glob("step-*")):
        step = int(checkpoint.name.removeprefix("step-"))
        found = accuracies(embed(checkpoint, images), images.labels, images.reporting)
        curve.append({"step": step, "images": step * batch_size, **found})
    return {
        "raw_pixels": accuracies(images.raw_pixels(), images.labels, images.reporting),
        "untrained": accuracies(embed(untrained, images), images.labels, images.reporting),
        "curve": curve,
    }


def render(recipe: str, title: str, result: dict[str, Any]) -> str:
    """Return the page of a result; `title` describes the images."""
    curve, raw_pixels = result["curve"], result["raw_pixels"]["knn_20"]
    rows = ["| step | images seen | CPU minutes | k-NN (k = 20) | linear probe |"]
    rows.append("| --- | --- | --- | --- | --- |")
    rows.append(f"| raw pixels | | | {_percent(result['raw_pixels'])} |")
    rows.append(f"| 0 | 0 | 0 | {_percent(result['untrained'])} |")
    for point in curve:
        minutes = result["cpu_seconds"] / 60 * point["step"] / curve[-1]["step"]
        seen = f"{point['step']:,} | {point['images']:,} | {minutes:.1f}"
        rows.append(f"| {seen} | {_percent(point)} |")
    passed = [point for point in curve if point["knn_20"] > raw_pixels]
    verdict = (
        f"k-NN is above that of raw pixels from step {passed[0]['step']:,} on at the latest."
        if passed
        else "k-NN does not pass that of raw pixels in this run."
    )
    return "\n".join(
        [
            f"# `{recipe}` on all of Fashion-MNIST",
            "",
            f"{title}, one seed, accuracies in %; {verdict} CPU "
            f"minutes are those of the command on one thread of {machine()}; "
            f"{versions(['torch', 'transformers'])}.",
            "",
            *rows,
        ]
    )


def _percent(accuracy: dict[str, float]) -> str:
    return f"{100 * accuracy['knn_20']:.1f} | {100 * accuracy['linear_probe']:.1f}"


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and write its page and its picture."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.full_curve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--recipe", default="dino_demo")
    parser.add_argument("--max-steps", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=DEBIAN_FOLDER, help="Fashion-MNIST.")
    parser.add_argument("--limit", type=int, help="Number of training images; default: all.")
    parser.add_argument("--work", type=Path, default=Path("full_curve_runs"))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    try:
        images = fashion_mnist(options.data, options.limit)
        splits = load_splits(options.data, options.limit)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    options.work.mkdir(parents=True, exist_ok=True)
    data, run = options.work / "train.parquet", options.work / f"{options.recipe}-{options.seed}"
    write_parquet(splits.all_train, data)
    length = ["--max-steps", str(options.max_steps)]
    length += ["--save-steps", str(max(1, options.max_steps // NUM_POINTS))]
    cost = train(options.recipe, data, run, options.seed, [*length, "--num-workers", "0", "--cpu"])
    known = run.with_suffix(".json")
    if known.exists():  # it had finished in an earlier call
        earlier = json.loads(known.read_text(encoding="utf-8"))
        cost = {name: earlier[name] for name in cost}
    result = {**cost, **measure(run, images)}
    save_metrics(result, known)
    page = render(options.recipe, images.title, result)
    with atomic_output(options.output / f"full_{options.recipe}.md") as path:
        path.write_text(page + "\n", encoding="utf-8")
    title = "All of Fashion-MNIST, k = 20"
    plot(
        options.recipe,
        result["curve"],
        result,
        options.output / f"full_{options.recipe}.png",
        title,
    )
    print(page)


if __name__ == "__main__":
    main()
