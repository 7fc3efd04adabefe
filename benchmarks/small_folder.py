"""Train on a small folder from random weights with nothing but --data and --output.

    python -m benchmarks.small_folder --data /usr/share/tuxpaint/stamps --seeds 0 1 2

The folders of the data are the classes (Debian package tuxpaint-stamps-default); training does not
use them. Each seed trains on all images, and on 300 of them in 6 folders, by the command
`selfvit train RECIPE --data FOLDER --output RUN`. The table has the k-NN accuracy (5-fold) of every
saved checkpoint, of the untrained encoder and of raw pixels, on the images of the training.

A run that is in the work folder already is resumed, or measured if it is finished. `--options` adds
options of `selfvit train`, to try other settings; their results belong into another --output.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import set_seed
from transformers import AutoImageProcessor

from benchmarks.objectives import processor_name
from selfvit import EmbeddedImages, Embedder, open_images, save_metrics
from selfvit.atomic_output import atomic_output
from selfvit.data.image_source import ImageSource
from selfvit.evaluation.knn import weighted_knn_hits
from selfvit.evaluation.raw_pixels import RawPixelEmbedder
from selfvit.training.config.run_config import RunConfig
from selfvit.training.model import build_trainable

STAMPS = Path("/usr/share/tuxpaint/stamps")
RESULTS = Path(__file__).parent / "results" / "small_folder.md"
NUM_FOLDS = 5
NEIGHBORS = (10, 20)
FEW_IMAGES, FEW_FOLDERS = 300, 6


def cross_validated_knn(embedded: EmbeddedImages) -> dict[str, float]:
    """Return the k-NN accuracy of vectors, each image classified by those of the other folds.

    Args:
        embedded: Labeled vectors.

    Returns:
        Accuracy in % by name, "knn_10" and "knn_20".
    """
    from sklearn.model_selection import StratifiedKFold

    vectors, labels = embedded.vectors, embedded.labels
    assert labels is not None
    hits: dict[int, list[np.ndarray]] = {k: [] for k in NEIGHBORS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes with fewer images than folds
        folds = list(
            StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=0).split(vectors, labels)
        )
    for rest, fold in folds:
        found = weighted_knn_hits(
            vectors[rest], labels[rest], vectors[fold], labels[fold], ks=NEIGHBORS
        )
        for k, hit in found.items():
            hits[k].append(hit)
    return {f"knn_{k}": 100 * float(np.concatenate(hit).mean()) for k, hit in hits.items()}


def write_few(source: ImageSource, folder: Path) -> None:
    """Copy `FEW_IMAGES` images of the `FEW_FOLDERS` largest classes, drawn with a fixed seed.

    Args:
        source: Labeled image files.
        folder: Folder to write, unless it exists.
    """
    labels = source.labels()
    if folder.exists() or labels is None or source.label_names is None:
        return
    largest = np.argsort(-np.bincount(labels), kind="stable")[:FEW_FOLDERS]
    members = np.flatnonzero(np.isin(labels, largest))
    chosen = np.random.default_rng(0).permutation(members)[:FEW_IMAGES]
    with atomic_output(folder) as unfinished:
        for position in chosen:
            path = Path(str(source[int(position)].image))
            place = unfinished / source.label_names[labels[position]]
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place / f"{position:05d}{path.suffix}")


def train(recipe: str, data: Path, output: Path, seed: int, options: list[str]) -> dict[str, float]:
    """Run the command; return its wall-clock and CPU seconds, both 0 if it had finished already."""
    command = [sys.executable, "-m", "selfvit.training.train", recipe, "--data", str(data)]
    command += ["--output", str(output), "--seed", str(seed), "--save-total-limit", "1000"]
    if (output / "training.yaml").exists():
        command.append("--resume")
    started, cpu_started = time.perf_counter(), _cpu_seconds()
    subprocess.run([*command, *options], check=True)
    return {"seconds": time.perf_counter() - started, "cpu_seconds": _cpu_seconds() - cpu_started}


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(output: Path, data: Path) -> dict[str, Any]:
    """Return the accuracies of a run: "raw_pixels", "untrained", and "curve" by step."""
    source = open_images(data)
    run = RunConfig.from_yaml((output / "training.yaml").read_text(encoding="utf-8"))
    processor = AutoImageProcessor.from_pretrained(output)
    set_seed(run.start.seed)
    untrained = build_trainable(run).vit
    curve = {}
    for checkpoint in sorted((output / "checkpoints").glob("step-*")):
        embedder = Embedder.from_pretrained(checkpoint, device="cpu")
        curve[int(checkpoint.name.removeprefix("step-"))] = cross_validated_knn(
            embedder.embed(source)
        )
    return {
        "raw_pixels": cross_validated_knn(RawPixelEmbedder(untrained, processor).embed(source)),
        "untrained": cross_validated_knn(Embedder(untrained, processor).embed(source)),
        "curve": curve,
    }


def render(results: dict[str, dict[int, Any]], recipe: str) -> str:
    """Return the tables of the results: one for each set of images, one row for each moment."""
    lines = [
        f"k-NN accuracy in % (k = 10 / k = 20), {NUM_FOLDS}-fold, after `selfvit train {recipe} "
        f"--data FOLDER --output RUN`. CPU: {processor_name()}, {os.cpu_count()} cores.",
    ]
    for name, by_seed in results.items():
        seeds = sorted(by_seed)
        steps = sorted({step for seed in seeds for step in by_seed[seed]["curve"]})
        rows: list[tuple[str, list[Any]]] = [
            ("raw pixels", [by_seed[seed]["raw_pixels"] for seed in seeds]),
            ("untrained", [by_seed[seed]["untrained"] for seed in seeds]),
            *(
                (f"step {step:,}", [by_seed[seed]["curve"].get(step) for seed in seeds])
                for step in steps
            ),
        ]
        lines += ["", f"## {name}", "", _row(["", *(f"seed {seed}" for seed in seeds), "mean"])]
        lines.append(_row(["---"] * (len(seeds) + 2)))
        lines += [_row([title, *map(_shown, values), _mean(values)]) for title, values in rows]
        lines += ["", *(_cost(seed, by_seed[seed]) for seed in seeds)]
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _shown(values: dict[str, float] | None) -> str:
    return "" if values is None else " / ".join(f"{value:.1f}" for value in values.values())


def _mean(values: list[dict[str, float] | None]) -> str:
    known = [value for value in values if value is not None]
    return _shown({name: statistics.mean(value[name] for value in known) for name in known[0]})


def _cost(seed: int, result: dict[str, Any]) -> str:
    return (
        f"Seed {seed}: {result['seconds'] / 60:.1f} minutes, "
        f"{result['cpu_seconds'] / 60:.1f} CPU minutes."
    )


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and write its table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.small_folder",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=STAMPS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipe", default="dino")
    parser.add_argument("--sets", nargs="+", choices=("all", "few"), default=["all", "few"])
    parser.add_argument("--work", type=Path, default=Path("small_folder_runs"))
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[])
    given = parser.parse_args(arguments)
    source = open_images(given.data)
    few = given.work / "few"
    write_few(source, few)
    folders = {
        f"All {len(source)} images": ("all", given.data),
        f"{FEW_IMAGES} images in {FEW_FOLDERS} folders": ("few", few),
    }
    results: dict[str, dict[int, Any]] = {}
    for seed in given.seeds:
        for name, (kind, data) in folders.items():
            if kind not in given.sets:
                continue
            output = given.work / f"{given.recipe}-{kind}-{seed}"
            known = output.with_suffix(".json")
            cost = train(given.recipe, data, output, seed, given.options)
            if known.exists():  # it had finished in an earlier call
                earlier = json.loads(known.read_text(encoding="utf-8"))
                cost = {key: earlier[key] for key in cost}
            result = {**cost, **measure(output, data)}
            save_metrics(result, known)
            results.setdefault(name, {})[seed] = result
            text = render(results, given.recipe)
            with atomic_output(given.output) as unfinished:
                unfinished.write_text(text + "\n", encoding="utf-8")
    print(given.output.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
