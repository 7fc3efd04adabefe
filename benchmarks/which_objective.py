"""Compare all objectives of selfvit at equal CPU time, from the same initial encoder.

    pip install -e ".[train]" && sudo apt install dataset-fashion-mnist tuxpaint-stamps-default
    OMP_NUM_THREADS=1 python -m benchmarks.which_objective

Each objective is trained by `train`, with its demo recipe, one encoder of four blocks for all, and
a number of steps that takes `--budget` CPU seconds on one thread: the time of a step is measured
first. It includes the views, the forward and backward passes of all networks of the objective, the
optimizer and the teacher's update. It leaves out reading and decoding, which is done before, since
all objectives do it alike. All schedules end with the last step.

For each objective, every learning rate of one grid is tried with one seed; k-NN on images that are
not reported chooses the best. With it, the objective is trained with the other seeds and measured.
The teacher of `distill` is the encoder of the best other objective, by the same k-NN, that was
trained with the same seed before. The table has the time of `distill` with and without that of its
teacher.

The result of each training is a file in OUTPUT/which_objective/, beside its encoder, and is written
completely or not at all. A training with a result is not repeated. A stopped benchmark therefore
continues where it stopped, a grid can be extended, and several processes with different
`--objectives` can share one OUTPUT; the command without `--objectives` then only writes the table.
Train `distill` last. `--quick` checks in two minutes that everything runs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.fashion_mnist import DEBIAN_FOLDER
from benchmarks.image_sets import STAMPS, fashion_mnist, stamps
from benchmarks.interleaved import machine, versions
from benchmarks.which_objective_runs import DISTILL, OBJECTIVES, RATES, SWEEP_SEED, Comparison
from benchmarks.which_objective_table import render_page
from selfvit.atomic_output import atomic_output
from selfvit.evaluation.evaluate import save_metrics

NAME = "which_objective"
SETS = ("fashion_mnist", "stamps")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{NAME}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--objectives",
        nargs="+",
        choices=OBJECTIVES,
        help="Objectives to train, without writing the table; default: all, and the table.",
    )
    parser.add_argument("--images", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--budget", type=float, default=75, help="CPU seconds of each training.")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--limit", type=int, help="Number of images of each set; default: all.")
    parser.add_argument("--data", type=Path, default=DEBIAN_FOLDER, help="Fashion-MNIST.")
    parser.add_argument("--stamps", type=Path, default=STAMPS)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="Train for half a second with one rate and one seed, in a temporary folder.",
    )
    options = parser.parse_args(arguments)
    if SWEEP_SEED in options.seeds:
        parser.error(
            f"seeds must not include {SWEEP_SEED}, which chooses the rates; choose another one."
        )
    if options.budget <= 0:
        parser.error(f"--budget ({options.budget:g}) must be above 0 seconds.")
    if options.quick:
        options.budget, options.rates, options.seeds = 0.5, [1e-3], [0]
        options.limit = options.limit or 240
        options.output = Path(tempfile.mkdtemp(prefix=NAME))
    return options


def comparisons(options: argparse.Namespace) -> list[Comparison]:
    """Return the comparison on each set of images.

    Raises:
        FileNotFoundError: If a set is not installed.
        ValueError: If a set cannot be read.
    """
    load = {
        "fashion_mnist": lambda: fashion_mnist(options.data, options.limit),
        "stamps": lambda: stamps(options.stamps, options.limit),
    }
    found = []
    for name in options.images:
        folder = options.output / NAME / name
        plain = Comparison(load[name](), folder, options.budget, options.rates, options.seeds)
        found.append(replace(plain, num_timed_steps=6) if options.quick else plain)
    return found


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and write its results."""
    options = parse(arguments)
    torch.set_num_threads(1)
    try:
        compared = comparisons(options)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    if options.objectives is not None:
        chosen = sorted(options.objectives, key=OBJECTIVES.index)
        for comparison in compared:
            missing = set(comparison.missing_teachers()) - set(chosen)
            if DISTILL in chosen and missing:
                sys.exit(
                    f"distill needs the results of the other objectives on {comparison.images.name}"
                    f", but {', '.join(sorted(missing))} are not measured; measure them first."
                )
            for objective in chosen:
                rate = comparison.measure(objective)["rate"]
                print(f"{comparison.images.name}: {objective} is measured, learning rate {rate:g}")
        print("The command without --objectives writes the table.")
        return
    results = {
        "budget": options.budget,
        "versions": versions(["torch", "transformers", "selfvit"]),
        "machine": machine(),
        "sets": [comparison.measure_all() for comparison in compared],
    }
    page = render_page(results)
    save_metrics(results, options.output / f"{NAME}.json")
    with atomic_output(options.output / f"{NAME}.md") as path:
        path.write_text(page + "\n", encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
