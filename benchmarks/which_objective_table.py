"""Render the comparison of all objectives at equal CPU time as Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import mean
from typing import Any

from benchmarks.objectives_table import mean_and_each

# Objectives in the order of the table; the last one needs a teacher that another one trained.
TITLES = {
    "dino": "DINO",
    "mae": "MAE",
    "pmsn": "PMSN",
    "dinov2": "DINOv2",
    "lejepa": "LeJEPA",
    "distill": "distillation",
}
COLUMNS = (
    "",
    "k-NN (k = 20)",
    "linear probe",
    "learning rate",
    "steps",
    "CPU seconds",
    "ms per step",
    "memory, MiB",
)


def render_page(results: dict[str, Any]) -> str:
    """Return the page of the results of `benchmarks.which_objective`."""
    lines = [
        "# All objectives at equal CPU time",
        "",
        "One encoder for all objectives (four blocks of width 128, 16 patches) from the same "
        f"initial weights, about {results['budget']:g} CPU seconds of training on one thread each, "
        "with the demo recipes and the best of the same learning rates. Accuracies in % as mean "
        "(each seed). CPU seconds are those of all steps with their augmentation, without reading "
        "and decoding. Memory is the peak of the process above what it needs without training. "
        f"{results['versions']}; {results['machine']}.",
    ]
    for measured in results["sets"]:
        lines += ["", f"## {measured['title']}", "", measured["note"], "", *_table(measured)]
        lines += ["", *_sweeps(measured["objectives"])]
    return "\n".join(lines)


def _table(measured: dict[str, Any]) -> list[str]:
    empty = [""] * (len(COLUMNS) - 3)
    rows: list[Iterable[str]] = [COLUMNS, ["---"] * len(COLUMNS)]
    raw = measured["raw_pixels"]
    accuracies = (f"{100 * raw[name]:.1f}" for name in ("knn_20", "linear_probe"))
    rows.append(["raw pixels", *accuracies, *empty])
    rows.append(["untrained", *_accuracies(measured["untrained"]), *empty])
    rows += [_row(name, found) for name, found in measured["objectives"].items()]
    return [f"| {' | '.join(row)} |" for row in rows]


def _row(objective: str, found: dict[str, Any]) -> list[str]:
    seeds = list(found["seeds"].values())
    title, seconds = TITLES[objective], mean(seed["seconds"] for seed in seeds)
    time = f"{seconds:.0f}"
    if "teacher" in found:
        title += f" from {TITLES[found['teacher']]}"
        teacher = mean(seed["teacher_seconds"] for seed in seeds)
        time += f"; {seconds + teacher:.0f} with the teacher's training"
    return [
        title,
        *_accuracies(found["seeds"]),
        f"{found['rate']:g}",
        f"{seeds[0]['num_steps']:,}",
        time,
        f"{1000 * mean(seed['step_seconds'] for seed in seeds):.1f}",
        f"{mean(seed['memory'] for seed in seeds) / 2**20:.0f}",
    ]


def _accuracies(seeds: dict[str, dict[str, float]]) -> list[str]:
    return [
        mean_and_each(seed[name] for seed in seeds.values()) for name in ("knn_20", "linear_probe")
    ]


def _sweeps(objectives: dict[str, Any]) -> list[str]:
    lines = ["Learning rates, by k-NN on images that are not reported, with another seed:", ""]
    for objective, found in objectives.items():
        rates = [entry["rate"] for entry in found["sweep"]]
        tried = ", ".join(
            f"{entry['rate']:g}: "
            + ("diverged" if "diverged" in entry else f"{100 * entry['knn_20']:.1f}")
            for entry in found["sweep"]
        )
        at_edge = len(rates) > 1 and found["rate"] in (min(rates), max(rates))
        note = f"; the best, {found['rate']:g}, is at the edge of the grid" if at_edge else ""
        lines.append(f"- {TITLES[objective]}: {tried}{note}.")
    return lines


__all__ = ["TITLES", "render_page"]
