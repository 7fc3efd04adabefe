"""Compare the objectives of selfvit and Lightly on the complete Fashion-MNIST.

    pip install -e ".[train,bench]" && sudo apt install dataset-fashion-mnist
    OMP_NUM_THREADS=1 python -m benchmarks.objectives

Both sides start from the same weights. They are trained alternately, step by step, in one process
and one thread, on identical views and masks and with the same optimizer code. For each objective,
both sides are trained with every learning rate of a grid and one seed. The best rate of each side
is chosen by k-NN on held-out training images. With this rate, both sides are trained with the other
seeds and measured once on the test images.

The results are k-NN and linear probe after the same number of steps, the CPU time of the training
steps without data loading, and k-NN after the same CPU time: the slower side is measured at the
time when the faster one was finished. At that time, the learning rate of the slower side had not
reached its end yet. The curves are in the JSON file.

The result of each training is a file in OUTPUT/objectives/, which is written completely or not at
all. A training with a result is not repeated. A stopped benchmark therefore continues where it
stopped, a grid can be extended, and several processes with different `--objectives` can share one
OUTPUT; the same command with all objectives then only writes the table.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import objectives_runs
from benchmarks.fashion_mnist import DEBIAN_FOLDER, Splits, load_splits
from benchmarks.objectives_table import render_table
from benchmarks.side_by_side import (
    NUM_CURVE_POINTS,
    Side,
    accuracies,
    knn_of,
    lightly_side,
    measure_accuracies,
    selfvit_side,
    step_at_equal_time,
    train_side_by_side,
)
from benchmarks.stored_results import stored_result
from selfvit.atomic_output import atomic_output
from selfvit.evaluation.evaluate import save_metrics

SWEEP_SEED = 100  # must not be one of the reported seeds
NUM_SWEEP_NEIGHBORS = 10_000  # embedding all training images would take as long as training
SIDES: dict[str, Callable[..., Side]] = {"selfvit": selfvit_side, "lightly": lightly_side}


@dataclass(frozen=True)
class Benchmark:
    """Benchmark with its data, settings and output.

    Args:
        splits: Images.
        output: Folder of the results.
        num_steps: Number of optimizer steps of each training; None for the default of the
            objective.
        sides: Names of the implementations to train, from `SIDES`.
    """

    splits: Splits
    output: Path
    num_steps: int | None = None
    sides: tuple[str, ...] = ("selfvit", "lightly")

    def result(self, name: str, settings: dict, measure: Callable[[], dict]) -> dict:
        """Return the result of a measurement, from its file if there is one.

        Args:
            name: Name of the file.
            settings: Settings of the measurement, stored in the file.
            measure: Function that computes the result.

        Raises:
            ValueError: If the file contains other settings.
        """
        path = self.output / "objectives" / f"{name}.json"
        return stored_result(path, {**settings, "num_images": self._num_images}, measure)

    @property
    def _num_images(self) -> int:
        return len(self.splits.train) + len(self.splits.held_out)

    def train(
        self, objective: str, rates: dict[str, float], seed: int
    ) -> tuple[dict[str, Side], dict]:
        """Train every side with its learning rate; return the sides, and their times and losses."""
        run = objectives_runs.run_of(objective, seed, self.num_steps)
        sides = {
            name: SIDES[name](objectives_runs.at_rate(run, rates[name])) for name in self.sides
        }
        data_seconds = train_side_by_side(run, self.splits.train, list(sides.values()))
        return sides, {
            name: {
                "rate": rates[name],
                "seconds": side.cpu_time(len(side.seconds)),
                "milliseconds_a_step": 1000 * statistics.median(side.seconds),
                "data_seconds": data_seconds,
                "loss_start": side.losses[0],
                "loss_end": statistics.mean(side.losses[-10:]),
            }
            for name, side in sides.items()
        }

    def try_rate(self, objective: str, rate: float) -> dict:
        """Return the k-NN accuracy on held-out images of each side with a learning rate."""

        def measure() -> dict:
            sides, report = self.train(objective, dict.fromkeys(self.sides, rate), SWEEP_SEED)
            neighbors = self.splits.train.take(slice(NUM_SWEEP_NEIGHBORS))
            for name, side in sides.items():
                last = max(side.snapshots)
                report[name]["knn_20"] = knn_of(side, last, neighbors, self.splits.held_out)
            return report

        run = objectives_runs.run_of(objective, SWEEP_SEED, self.num_steps)
        settings = {"run": run.to_dict(), "rate": rate, "sides": self.sides}
        return self.result(f"{objective}-rate-{rate:g}", settings, measure)

    def measure_seed(self, objective: str, rates: dict[str, float], seed: int) -> dict:
        """Return the results of one seed, each side with its best learning rate."""
        run = objectives_runs.run_of(objective, seed, self.num_steps)
        settings = {"run": run.to_dict(), "rates": rates, "sides": self.sides}
        name = "-".join(
            [objective, "seed", str(seed), *(f"{rates[side]:g}" for side in self.sides)]
        )
        return self.result(name, settings, lambda: self._measure(objective, rates, seed))

    def _measure(self, objective: str, rates: dict[str, float], seed: int) -> dict:
        sides, report = self.train(objective, rates, seed)
        train, test = self.splits.all_train, self.splits.test
        untrained = measure_accuracies(next(iter(sides.values())), 0, train, test)
        shortest = min(entry["seconds"] for entry in report.values())
        for name, side in sides.items():
            last, equal = max(side.snapshots), step_at_equal_time(side, shortest)
            report[name] |= measure_accuracies(side, last, train, test)
            report[name]["at_equal_time"] = {
                "step": equal,
                "seconds": side.cpu_time(equal),
                **(
                    {key: report[name][key] for key in ("knn_20", "linear_probe")}
                    if equal == last
                    else measure_accuracies(side, equal, train, test)
                ),
            }
            report[name]["curve"] = self._curve(side)
        if len(sides) == 2:
            pairs = zip(sides["lightly"].seconds, sides["selfvit"].seconds, strict=True)
            report["lightly"]["step_time_ratio"] = statistics.median(a / b for a, b in pairs)
        return {"untrained": untrained, **report}

    def _curve(self, side: Side) -> list[dict]:
        """Return k-NN accuracy on held-out images over steps and CPU time."""
        steps = sorted(side.snapshots)[1:]  # without the untrained one
        chosen = np.linspace(0, len(steps), NUM_CURVE_POINTS + 1).round().astype(int)[1:] - 1
        neighbors = self.splits.train.take(slice(NUM_SWEEP_NEIGHBORS))
        return [
            {
                "step": step,
                "seconds": side.cpu_time(step),
                "knn_20": knn_of(side, step, neighbors, self.splits.held_out),
            }
            for step in dict.fromkeys(steps[max(0, index)] for index in chosen)
        ]

    def measure_raw_pixels(self) -> dict:
        """Return the accuracies of raw pixels."""
        train, test = self.splits.all_train, self.splits.test

        def measure() -> dict:
            vectors = [
                images.pixels.reshape(len(images), -1).astype(np.float32) / 255
                for images in (train, test)
            ]
            return accuracies(vectors[0], train.labels, vectors[1], test.labels)

        return self.result("raw-pixels", {}, measure)

    def measure(self, objective: str, rates: list[float], seeds: list[int]) -> dict[str, Any]:
        """Return all results of an objective: the sweep, the chosen learning rates, the seeds."""
        sweep = {rate: self.try_rate(objective, rate) for rate in rates}
        chosen = {}
        for name in self.sides:
            by_accuracy = {sweep[rate][name]["knn_20"]: rate for rate in reversed(rates)}
            chosen[name] = by_accuracy[max(by_accuracy)]  # the first one if several are equal
        return {
            "run": objectives_runs.run_of(objective, seeds[0], self.num_steps).to_dict(),
            "sweep": [{"rate": rate, **report} for rate, report in sweep.items()],
            "rates": chosen,
            "seeds": {str(seed): self.measure_seed(objective, chosen, seed) for seed in seeds},
        }


def processor_name() -> str:
    """Return the CPU model reported by Linux, or else the architecture."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.objectives",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = list(objectives_runs.CHANGES)
    parser.add_argument("--objectives", nargs="+", choices=names, default=names)
    parser.add_argument(
        "--steps", type=int, help="Steps of each training; default: depends on the objective."
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=list(objectives_runs.RATES))
    parser.add_argument(
        "--images", type=int, help="Number of training images; default: all 60,000."
    )
    parser.add_argument("--data", type=Path, default=DEBIAN_FOLDER)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        splits = load_splits(options.data, options.images)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))

    benchmark = Benchmark(splits, options.output, options.steps)
    results: dict[str, Any] = {
        "num_train": len(splits.all_train),
        "num_test": len(splits.test),
        "versions": {name: version(name) for name in ("torch", "lightly", "timm")},
        "processor": processor_name(),
        "raw_pixels": benchmark.measure_raw_pixels(),
        "objectives": {
            name: benchmark.measure(name, options.rates, options.seeds)
            for name in options.objectives
        },
    }
    table = render_table(results)
    save_metrics(results, options.output / "objectives.json")
    with atomic_output(options.output / "objectives.md") as path:
        path.write_text(table + "\n", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
