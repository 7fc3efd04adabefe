"""Measure k-NN accuracy of the demo over training, for several seeds, compared with raw pixels.

    python benchmarks/demo_curve.py --objective dino --seeds 0 1 2 --long-epochs 100

The results are two Markdown tables and a plot: the demo for each seed, and one longer run that is
evaluated during training (none with 0 epochs). All accuracies are measured on the test images,
which were not used to choose the recipes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from selfvit.visualization.figures import new_figure, save_png

EXAMPLES = Path(__file__).parent.parent / "examples"
SAMPLE = EXAMPLES / "fashion_mnist_sample"
ENCODERS = ("raw_pixels", "untrained", "trained")


def run_demo(objective: str, seed: int, folder: Path, options: list[str]) -> dict:
    """Run the demo with some options of it and return its metrics.json."""
    command = [sys.executable, str(EXAMPLES / "demo.py"), "--objective", objective]
    command += ["--output", str(folder), "--seed", str(seed), *options]
    subprocess.run(command, check=True)
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def demo_table(by_seed: dict[int, dict]) -> str:
    """Return a Markdown table of the accuracies of each seed and their mean."""
    lines = ["| | k-NN (k = 20) | linear probe |", "| --- | --- | --- |"]
    for name in ENCODERS:
        cells = []
        for measure in ("knn_20", "linear_probe"):
            values = [100 * metrics[name][measure] for metrics in by_seed.values()]
            each = ", ".join(f"{value:.1f}" for value in values)
            mean = statistics.mean(values)
            cells.append(f"{mean:.1f}" if name == "raw_pixels" else f"{mean:.1f} ({each})")
        lines.append(f"| {name.replace('_', ' ')} | {cells[0]} | {cells[1]} |")
    seconds = [metrics["seconds"]["train"] for metrics in by_seed.values()]
    losses = [metrics["loss"] for metrics in by_seed.values()]
    lines += ["", f"Seeds {', '.join(map(str, by_seed))}; training took "]
    lines[-1] += (
        ", ".join(f"{value:.0f}" for value in seconds) + " s. Loss at the start, highest, end: "
    )
    lines[-1] += "; ".join(
        "{start:.2f}, {highest:.2f}, {end:.2f}".format(**loss) for loss in losses
    )
    return "\n".join(lines) + "."


def long_run(objective: str, epochs: int, folder: Path, evaluations: int = 10) -> list[dict]:
    """Train longer with evaluations; return the lines of the log that contain their metrics."""
    command = [
        *(sys.executable, "-m", "selfvit.training.train", f"{objective}_demo"),
        *("--data", str(SAMPLE / "train.parquet"), "--output", str(folder)),
        *("--epochs", str(epochs), "--save-steps", "100000"),
        *("--eval-train", str(SAMPLE / "train.parquet")),
        *("--eval-test", str(SAMPLE / "test.parquet")),
    ]
    batch_size = 64
    steps = epochs * (8000 // batch_size)
    command += ["--batch-size", str(batch_size), "--eval-steps", str(steps // evaluations)]
    subprocess.run(command, check=True)
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    curve = [record for record in map(json.loads, lines) if "knn_20" in record]
    return [{**record, "images": record["step"] * batch_size} for record in curve]


def curve_table(curve: list[dict]) -> str:
    """Return a Markdown table of the longer run."""
    lines = ["| images seen | epochs | k-NN (k = 20) | linear probe |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {point['images']:,} | {point['images'] / 8000:.1f} | {100 * point['knn_20']:.1f} "
        f"| {100 * point['linear_probe']:.1f} |"
        for point in curve
    ]
    return "\n".join(lines)


def plot(
    label: str,
    curve: list[dict],
    metrics: dict,
    path: Path,
    title: str = "Fashion-MNIST sample, k = 20",
) -> None:
    """Plot k-NN accuracy over images seen; `metrics` of the demo contain the untrained accuracy."""
    raw_pixels, untrained = (metrics[name]["knn_20"] for name in ("raw_pixels", "untrained"))
    figure = new_figure(800, 480)
    axes = figure.add_subplot()
    images = [0, *(point["images"] for point in curve)]
    accuracy = [untrained, *(point["knn_20"] for point in curve)]
    axes.plot(images, [100 * value for value in accuracy], marker="o", label=label)
    axes.axhline(100 * raw_pixels, color="gray", linestyle="--", label="raw pixels")
    axes.set(xlabel="images seen", ylabel="k-NN accuracy in %", title=title)
    axes.legend()
    save_png(figure, path)


def main() -> None:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objective", default="dino")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--long-epochs", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--teacher", help="Teacher of distill.")
    parser.add_argument("--max-steps", help="Number of optimizer steps of the demo.")
    arguments = parser.parse_args()
    given = {"--teacher": arguments.teacher, "--max-steps": arguments.max_steps}
    options = [part for pair in given.items() if pair[1] is not None for part in pair]
    objective, output = arguments.objective, arguments.output
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        by_seed = {
            seed: run_demo(objective, seed, Path(folder) / f"seed{seed}", options)
            for seed in arguments.seeds
        }
        table = demo_table(by_seed)
        (output / f"demo_{objective}.md").write_text(table + "\n", encoding="utf-8")
        print(table)
        if arguments.long_epochs == 0:
            return
        curve = long_run(objective, arguments.long_epochs, Path(folder) / "long")
    table = curve_table(curve)
    (output / f"demo_curve_{objective}.md").write_text(table + "\n", encoding="utf-8")
    print(table)
    plot(objective, curve, next(iter(by_seed.values())), output / f"demo_curve_{objective}.png")


if __name__ == "__main__":
    main()
