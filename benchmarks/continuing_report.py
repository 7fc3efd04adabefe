"""Render the measurements of continued encoders as Markdown, and draw their curves."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from selfvit.visualization.figures import new_figure, save_png

TOLERANCE = 0.01  # that k-NN on the first images may lose
STYLES = {0.25: ":", 1: "-", 4: "--", 16: "-."}  # lines by the factor of the learning rate
COLUMNS = ("", "learning rate", "first: end", "second: end", "second: first kept", "CPU seconds")

Curve = list[dict[str, float]]


def mean_curve(seeds: dict[str, dict[str, Any]]) -> Curve:
    """Return the curve whose accuracies are the means over the seeds.

    Args:
        seeds: Results by seed, each with a "curve" of the same steps.
    """
    points = zip(*(found["curve"] for found in seeds.values()), strict=True)
    return [
        {
            "step": point[0]["step"],
            **{name: mean(entry[name] for entry in point) for name in ("first", "second")},
        }
        for point in points
    ]


def last_within(curve: Curve, tolerance: float = TOLERANCE) -> dict[str, float]:
    """Return the last point before the accuracy on the first images falls below its start.

    Args:
        curve: Points with "first" and "second", in [0, 1], from the start on.
        tolerance: Largest loss of "first" at this point and before it.
    """
    kept = curve[0]
    for point in curve:
        if point["first"] < curve[0]["first"] - tolerance:
            break
        kept = point
    return kept


def render_page(results: dict[str, dict[str, Any]]) -> str:
    """Return the page of all directions that were measured.

    Args:
        results: Results by the name of the first images.
    """
    lines = [
        "# Continuing on other images",
        "",
        "An encoder (`dino_demo` with four blocks) is trained on the first images and continued on "
        "the second ones. Accuracies are k-NN (k = 20) in %, means of the seeds, with the change "
        'since the start in parentheses. "Second: first kept" is the accuracy on the second '
        f"images at the last checkpoint up to which the first lost at most {100 * TOLERANCE:g} "
        "point, with its step. Learning rates are `--base-learning-rate`.",
    ]
    for measured in results.values():
        lines += ["", *_section(measured)]
    return "\n".join(lines)


def _section(measured: dict[str, Any]) -> list[str]:
    variants = measured["variants"]
    curves = {name: mean_curve(found["seeds"]) for name, found in variants.items()}
    any_curve = next(iter(curves.values()))
    start, steps = any_curve[0], any_curve[-1]["step"]
    seeds = ", ".join(next(iter(variants.values()))["seeds"])
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    for name, found in variants.items():
        end, kept = curves[name][-1], last_within(curves[name])
        rows.append(
            (
                found["title"],
                f"{found['rate']:.2g}",
                _with_change(end["first"], start["first"]),
                _with_change(end["second"], start["second"]),
                f"{_with_change(kept['second'], start['second'])}, step {kept['step']:.0f}",
                f"{mean(seed['seconds'] for seed in found['seeds'].values()):.0f}",
            )
        )
    return [
        f"## From the {measured['first']} to the {measured['second']}",
        "",
        f"The start was trained for {measured['start_steps']:,} steps, and has "
        f"{100 * start['first']:.1f} on the first images and {100 * start['second']:.1f} on the "
        f"second. Runs of {steps:.0f} steps, seeds {seeds}. {measured['versions']}; "
        f"{measured['machine']}.",
        "",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        f"![k-NN on both sets of images over the steps]({measured['picture']})",
    ]


def _with_change(value: float, start: float) -> str:
    return f"{100 * value:.1f} ({100 * (value - start):+.1f})"


def draw(measured: dict[str, Any], path: Path) -> None:
    """Draw the curves of all variants, on the first and on the second images.

    Args:
        measured: Results of one direction.
        path: PNG file to write.
    """
    figure = new_figure(1500, 520)
    titles = list(dict.fromkeys(found["title"] for found in measured["variants"].values()))
    for number, name in enumerate(("first", "second"), start=1):
        axes = figure.add_subplot(1, 2, number)
        for found in measured["variants"].values():
            curve = mean_curve(found["seeds"])
            axes.plot(
                [point["step"] for point in curve],
                [100 * point[name] for point in curve],
                color=f"C{titles.index(found['title'])}",
                linestyle=STYLES.get(found["factor"], "-"),
                label=f"{found['title']}, {found['rate']:.2g}",
            )
        axes.set(title=measured[name], xlabel="steps", ylabel="k-NN accuracy in %")
        axes.title.set_fontsize(10)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    save_png(figure, path)


__all__ = ["draw", "last_within", "mean_curve", "render_page"]
