"""Tables of the benchmark of duplicates."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from benchmarks.duplicates_images import PLANTED, Kinds, Pair
from selfvit.exploration.duplication.threshold import Threshold

MAX_LISTED = 12  # false pairs of a section


@dataclass
class Measured:
    """Metrics of a method on one set of images, a value per seed.

    Args:
        precisions: Share of the pairs found that are planted.
        recalls: Share of the planted pairs that is found.
        by_kind: Number of planted pairs found, by kind of the copy, over all seeds.
        false: Pairs found that are not planted, with the number of seeds.
        settings: Threshold, as text.
    """

    precisions: list[float] = field(default_factory=list)
    recalls: list[float] = field(default_factory=list)
    by_kind: Counter[str] = field(default_factory=Counter)
    false: Counter[Pair] = field(default_factory=Counter)
    settings: list[str] = field(default_factory=list)


def section(
    title: str,
    measured: dict[str, Measured],
    estimates: list[Threshold],
    num_images: int,
    seeds: list[int],
    kinds: Kinds,
) -> list[str]:
    """Return the section of one set of images.

    Args:
        title: Title of the section.
        measured: Metrics by method.
        estimates: Thresholds that selfvit measured, one per seed.
        num_images: Number of images without the copies.
        seeds: Seeds of the copies.
        kinds: Kinds of copies.
    """
    num_planted = round(PLANTED * num_images)
    false = measured["selfvit"].false
    lines = [
        f"## {title}",
        "",
        f"{num_images:,} images and {num_planted} copies, seeds {seeds[0]} to {seeds[-1]}: mean "
        "(least to greatest).",
        "",
        *table(measured, num_planted, kinds),
        "",
        "selfvit estimated a precision of "
        f"{_spread([estimate.precision for estimate in estimates])} and a recall of "
        f"{_spread([estimate.recall for estimate in estimates])}.",
        "",
        f"False pairs of selfvit: {false.total()} in {len(seeds)} seeds, {len(false)} different.",
        "",
    ]
    for (first, second), count in false.most_common(MAX_LISTED):
        lines.append(f"- {first} and {second}: {count} {'seed' if count == 1 else 'seeds'}")
    if len(false) > MAX_LISTED:
        lines.append(f"- and {len(false) - MAX_LISTED} more")
    return [*lines, ""] if false else lines


def table(measured: dict[str, Measured], num_planted: int, kinds: Kinds) -> list[str]:
    """Return the metrics as lines of a Markdown table."""
    names = list(kinds)
    lines = [
        "| method | threshold | precision | recall | recall: " + " | ".join(names) + " |",
        "| --- | --- | --- | --- |" + " --- |" * len(names),
    ]
    for name, entry in measured.items():
        seeds = len(entry.recalls)
        per_kind = Counter(names[number % len(names)] for number in range(num_planted))
        shares = [f"{entry.by_kind[kind] / (seeds * per_kind[kind]):.3f}" for kind in names]
        settings = sorted(set(entry.settings))
        setting = settings[0]
        if len(settings) > 1:
            setting += f" to {settings[-1].split()[-1]}"
        columns = [name, setting, _spread(entry.precisions), _spread(entry.recalls), *shares]
        lines.append("| " + " | ".join(columns) + " |")
    return lines


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
