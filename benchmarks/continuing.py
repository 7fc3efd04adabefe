"""Continue an encoder on other images, and measure it on the first and on the second ones.

    pip install -e ".[train,viz,lora]" && sudo apt install tuxpaint-stamps-default
    OMP_NUM_THREADS=1 python -m benchmarks.continuing

An encoder is trained by `dino_demo` on the first images, and continued on the second ones by the
recipes for this, with their defaults and with other learning rates. During each run, k-NN on both
shows what is gained on the second images and lost on the first. The runs have the same number of
steps. The second images are seen as `selfvit train` would: size, mean and std are those of the
checkpoint.

The result of each run is a file in OUTPUT/continuing/, written completely or not at all. A run with
a result is not repeated, so that a stopped benchmark continues where it stopped, and several
processes with different `--variants` can share one OUTPUT. Only the command without `--variants`
writes the page. `--quick` checks in two minutes that everything runs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.continuing_report import draw, render_page
from benchmarks.image_sets import (
    STAMPS,
    LabeledSet,
    accuracies,
    embed,
    fashion_mnist_sample,
    needed,
    stamps,
)
from benchmarks.interleaved import machine, versions
from benchmarks.stored_results import stored_result
from benchmarks.timed_training import keep_encoder, run_of, settings_of, train_timed
from selfvit.atomic_output import atomic_output
from selfvit.evaluation.evaluate import save_metrics
from selfvit.training.config.run_config import RunConfig
from selfvit.training.recipes import RECIPES

NAME = "continuing"
FIRST = ("fashion_mnist", "stamps")
IMAGE_SIZE, PATCH_SIZE = 28, 7  # of the encoder of `dino_demo`, pixels
BATCH_SIZE = 64
NUM_BLOCKS = 4  # so that half of them, which `distill_finetune` keeps, are still two


@dataclass(frozen=True)
class Variant:
    """Way of continuing an encoder.

    Args:
        title: Title for tables.
        recipe: Name of the recipe.
        factor: Learning rate, as a multiple of the recipe's own.
        options: Other options of the recipe.
    """

    title: str
    recipe: str
    factor: float = 1
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def rate(self) -> float:
        """Learning rate for a batch of 256, as `--base-learning-rate`."""
        recipe = RECIPES[self.recipe](None, BATCH_SIZE)
        return self.factor * recipe.schedule.base_learning_rate


GRAM = (("gram_weight", 1.0),)
VARIANTS = {
    "dino-0.25": Variant("dino_finetune", "dino_finetune", 0.25),
    "dino": Variant("dino_finetune", "dino_finetune"),
    "dino-4": Variant("dino_finetune", "dino_finetune", 4),
    "dino-16": Variant("dino_finetune", "dino_finetune", 16),
    "lora": Variant("dino_lora", "dino_lora"),
    "lora-4": Variant("dino_lora", "dino_lora", 4),
    "dinov2": Variant("dinov2_finetune", "dinov2_finetune"),
    "dinov2-4": Variant("dinov2_finetune", "dinov2_finetune", 4),
    "gram": Variant("dinov2_finetune, Gram anchoring", "dinov2_finetune", 1, GRAM),
    "gram-4": Variant("dinov2_finetune, Gram anchoring", "dinov2_finetune", 4, GRAM),
    "distill": Variant("distill_finetune (teacher: the start)", "distill_finetune"),
    "distill-4": Variant("distill_finetune (teacher: the start)", "distill_finetune", 4),
}


@dataclass(frozen=True)
class Continuing:
    """Runs from an encoder of the first images on the second ones.

    Args:
        first: Images that the start is trained on.
        second: Images that it is continued on.
        folder: Folder of the runs.
        start_steps: Number of steps of the start.
        num_steps: Number of steps of each run.
        num_points: Number of checkpoints of each run that are measured; divides `num_steps`.
    """

    first: LabeledSet
    second: LabeledSet
    folder: Path
    start_steps: int
    num_steps: int
    num_points: int

    def start(self, seed: int) -> tuple[Path, dict[str, Any]]:
        """Return checkpoint and result of a seed's start, which is trained if it is missing."""
        folder = self.folder / f"start-seed-{seed}"
        plain = run_of(
            "dino_demo",
            self.first.source,
            self.folder / f"run-start-{seed}",
            seed=seed,
            max_steps=self.start_steps,
            num_hidden_layers=NUM_BLOCKS,
            image_mean=self.first.image_mean,
            image_std=self.first.image_std,
        )
        run = plain.with_options(self.first.augmentation)

        def measure() -> dict[str, Any]:
            cost = train_timed(run, self.first.source)
            check_finite(cost)
            keep_encoder(Path(run.start.output), folder)
            return cost | self.measure(folder)

        return folder, self.result(f"start-seed-{seed}", run, measure)

    def result(self, name: str, run: RunConfig, measure: Callable[[], Any]) -> Any:
        """Return the stored result of a run.

        Raises:
            ValueError: If the file was measured with other settings.
        """
        settings = {
            "num_images": [len(images.pixels) for images in (self.first, self.second)],
            "start_steps": self.start_steps,
            "num_points": self.num_points,
            "run": settings_of(run),
        }
        return stored_result(self.folder / f"{name}.json", settings, measure)

    def measure(self, checkpoint: Path) -> dict[str, float]:
        """Return k-NN accuracy of a checkpoint on the "first" and on the "second" images."""
        found = {}
        for name, images in (("first", self.first), ("second", self.second)):
            splits = images.reporting
            vectors = embed(checkpoint, images, needed(splits))
            metrics = accuracies(vectors, images.labels, splits, with_probe=False)
            found[name] = metrics["knn_20"]
        return found

    def run(self, name: str, seed: int) -> RunConfig:
        """Return the run of a variant, from the start of a seed."""
        variant = VARIANTS[name]
        return run_of(
            variant.recipe,
            self.second.source,
            self.folder / f"run-{name}-{seed}",
            seed=seed,
            init_from=str(self.start(seed)[0]),
            max_steps=self.num_steps,
            batch_size=BATCH_SIZE,
            base_learning_rate=variant.rate,
            save_steps=self.num_steps // self.num_points,
            save_total_limit=self.num_points,
            **dict(variant.options),
        )

    def continued(self, name: str, seed: int) -> dict[str, Any]:
        """Return the "curve" of a variant, from the start on, and the cost of its run."""
        run, interval = self.run(name, seed), self.num_steps // self.num_points

        def measure() -> dict[str, Any]:
            cost = train_timed(run, self.second.source)
            check_finite(cost)
            output = Path(run.start.output)
            _, start = self.start(seed)
            curve = [{"step": 0, "first": start["first"], "second": start["second"]}]
            for step in range(interval, self.num_steps + 1, interval):
                checkpoint = output / "checkpoints" / f"step-{step:08d}"
                curve.append({"step": step, **self.measure(checkpoint)})
            shutil.rmtree(output)
            return {**cost, "curve": curve}

        return self.result(f"{name}-seed-{seed}", run, measure)

    def measure_all(self, seeds: list[int]) -> dict[str, Any]:
        """Return the results of all variants."""
        return {
            "first": self.first.title,
            "second": self.second.title,
            "start_steps": self.start_steps,
            "versions": versions(["torch", "transformers"]),
            "machine": machine(),
            "variants": {
                name: {
                    "title": variant.title,
                    "rate": variant.rate,
                    "factor": variant.factor,
                    "seeds": {str(seed): self.continued(name, seed) for seed in seeds},
                }
                for name, variant in VARIANTS.items()
            },
        }


def check_finite(cost: dict[str, Any]) -> None:
    """Check that a training did not diverge.

    Raises:
        ValueError: If it did.
    """
    if "diverged" in cost:
        raise ValueError(cost["diverged"])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{NAME}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--first", choices=FIRST, default=FIRST[0], help="Images of the start; then the others."
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=list(VARIANTS),
        help="Variants to run, without writing the page; default: all, and the page.",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--start-steps", type=int, default=1200)
    parser.add_argument("--steps", type=int, default=400, help="Steps of each run.")
    parser.add_argument("--points", type=int, default=5, help="Measured checkpoints of each run.")
    parser.add_argument("--limit", type=int, help="Number of images of each set; default: all.")
    parser.add_argument("--stamps", type=Path, default=STAMPS)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument(
        "--quick", action="store_true", help="Train for a few steps, in a temporary folder."
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.start_steps, options.steps, options.points, options.seeds = 4, 4, 2, [0]
        options.limit = options.limit or 300
        options.output = Path(tempfile.mkdtemp(prefix=NAME))
    if options.points < 1 or options.steps % options.points:
        parser.error(f"--steps ({options.steps}) must be a multiple of --points.")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and write its results."""
    options = parse(arguments)
    torch.set_num_threads(1)
    try:
        images = {
            "stamps": stamps(options.stamps, options.limit, IMAGE_SIZE, PATCH_SIZE),
            "fashion_mnist": fashion_mnist_sample(options.limit),
        }
    except FileNotFoundError as error:
        sys.exit(str(error))
    first = images.pop(options.first)
    (second,) = images.values()
    continuing = Continuing(
        first,
        second,
        options.output / NAME / f"{first.name}-{second.name}",
        options.start_steps,
        options.steps,
        options.points,
    )
    if options.variants is not None:
        for name in options.variants:
            for seed in options.seeds:
                continuing.continued(name, seed)
        print("The command without --variants writes the page.")
        return
    results = continuing.measure_all(options.seeds)
    path = options.output / f"{NAME}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known[first.name] = results | {"picture": f"{NAME}_{first.name}.png"}
    draw(results, options.output / known[first.name]["picture"])
    save_metrics(known, path)
    page = render_page(known)
    with atomic_output(options.output / f"{NAME}.md") as unfinished:
        unfinished.write_text(page + "\n", encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
