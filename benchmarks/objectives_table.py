"""Render the comparison of objectives as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

TITLES = {"dino": "DINO", "mae": "MAE", "pmsn": "PMSN", "selfvit": "selfvit", "lightly": "Lightly"}
SIDES = ("selfvit", "lightly")


def render_table(results: dict[str, Any]) -> str:
    """Return the tables of the results of `benchmarks.objectives`, with accuracies in percent."""
    objectives = results["objectives"]
    lines = [
        f"{results['num_train']:,} training and {results['num_test']:,} test images; accuracies in "
        "% as mean (each seed), CPU time per step in milliseconds on one thread (median). "
        + "; ".join(f"{name} {number}" for name, number in results["versions"].items())
        + f"; {results['processor']}.",
        "",
        "| | learning rate | k-NN (k = 20) | linear probe | time per step | k-NN at equal time |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    raw = results["raw_pixels"]
    lines.append(
        f"| raw pixels | | {100 * raw['knn_20']:.1f} | {100 * raw['linear_probe']:.1f} | | |"
    )
    for objective, measured in objectives.items():
        lines += _rows(objective, measured)
    lines += ["", *_ratios(objectives), "", *_sweep(objectives)]
    return "\n".join(lines)


def mean_and_each(values: Iterable[float], scale: float = 100) -> str:
    """Return the mean and the single values, for example "75.1 (75.0, 75.2)"."""
    scaled = [scale * value for value in values]
    each = ", ".join(f"{value:.1f}" for value in scaled)
    return f"{statistics.mean(scaled):.1f} ({each})"


def _rows(objective: str, measured: dict[str, Any]) -> list[str]:
    seeds = list(measured["seeds"].values())
    untrained = [
        mean_and_each(seed["untrained"][key] for seed in seeds)
        for key in ("knn_20", "linear_probe")
    ]
    rows = [f"| {TITLES[objective]}: untrained | | {untrained[0]} | {untrained[1]} | | |"]
    for side in SIDES:
        sides = [seed[side] for seed in seeds]
        cells = [
            f"{measured['rates'][side]:g}",
            mean_and_each(entry["knn_20"] for entry in sides),
            mean_and_each(entry["linear_probe"] for entry in sides),
            mean_and_each((entry["milliseconds_a_step"] for entry in sides), 1),
            mean_and_each(entry["at_equal_time"]["knn_20"] for entry in sides),
        ]
        rows.append(f"| {TITLES[objective]}: {TITLES[side]} | {' | '.join(cells)} |")
    return rows


def _ratios(objectives: dict[str, Any]) -> list[str]:
    lines = [
        "| | steps | CPU seconds, selfvit / Lightly | time per step, Lightly / selfvit |",
        "| --- | --- | --- | --- |",
    ]
    for objective, measured in objectives.items():
        seeds = list(measured["seeds"].values())
        seconds = [statistics.mean(seed[side]["seconds"] for seed in seeds) for side in SIDES]
        ratios = [seed["lightly"]["step_time_ratio"] for seed in seeds]
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        lines.append(
            f"| {TITLES[objective]} | {measured['run']['schedule']['max_steps']:,} "
            f"| {seconds[0]:.0f} / {seconds[1]:.0f} | {statistics.mean(ratios):.2f} ({each}) |"
        )
    return lines


def _sweep(objectives: dict[str, Any]) -> list[str]:
    lines = [
        "Learning rates, chosen by k-NN on held-out images (with another seed and with a part of "
        "the training images as neighbors):",
    ]
    for objective, measured in objectives.items():
        for side in SIDES:
            tried = ", ".join(
                f"{entry['rate']:g}: {100 * entry[side]['knn_20']:.1f}"
                for entry in measured["sweep"]
            )
            rates = [entry["rate"] for entry in measured["sweep"]]
            best = measured["rates"][side]
            at_edge = len(rates) > 1 and best in (min(rates), max(rates))
            note = f"; the best, {best:g}, is at the edge of the grid" if at_edge else ""
            lines.append(f"- {TITLES[objective]}, {TITLES[side]}: {tried}{note}.")
    return lines
