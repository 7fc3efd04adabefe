"""What the collapse monitors cost: training steps of a ViT-S/16 that are read, beside others.

    python benchmarks/monitor_cost.py --output benchmarks/results/monitor_cost.md

One model an objective, its recipe's numbers, noise for images. Steps alternate: the monitors read
every second one, and its CPU time is compared with that of the step before. In training they read
every tenth (`monitor_steps`), so a tenth of the difference is the cost. Two parts are too small to
see in it, and are timed by themselves: the gradient's norm, which every step now has, and the rank
of 256 features, of which a small batch has not as many.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator

from benchmarks.side_by_side import Side, selfvit_side
from selfvit.configuration.configuration_mae import MAEConfig
from selfvit.configuration.configuration_selfvit import SelfViTConfig
from selfvit.evaluation.label_free import feature_standard_deviation, rankme
from selfvit.modeling.observations import MAX_FEATURES
from selfvit.training.collapse import CollapseMonitor
from selfvit.training.monitors import Reporter
from selfvit.training.recipes import RECIPES
from selfvit.training.run import Run, TrainingConfig

OBJECTIVES = {"dino": "dino_vits16_in1k", "mae": "mae_vitb16_in1k", "pmsn": "pmsn_vits16_in1k"}


def run_of(objective: str, output: Path, batch_size: int) -> Run:
    """Return the recipe, of a ViT-S/16; the monitors read every second step."""
    run = RECIPES[OBJECTIVES[objective]](None, None)
    if objective == "mae":
        run = replace(run, model=SelfViTConfig.from_name("vits16", mae_config=MAEConfig()))
    training = replace(
        run.training, batch_size=batch_size, monitor_steps=2, output=str(output), max_steps=100
    )
    return replace(run, training=training)


def noise(objective: str, batch_size: int) -> dict[str, torch.Tensor]:
    """Return views of 224 x 224: two global ones, or target and one random view, or images."""

    def views(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, 3, 224, 224)

    if objective == "dino":
        return {"global_views": views(2, batch_size)}
    if objective == "mae":
        return {"pixel_values": views(batch_size)}
    return {"target_view": views(batch_size), "random_views": views(1, batch_size)}


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds that a call takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def paired_steps(
    objective: str, num_pairs: int, batch_size: int, folder: Path
) -> tuple[list[float], list[float], Side]:
    """Return CPU seconds of steps without a reading and of the next ones with, and the model."""
    run = run_of(objective, folder, batch_size)
    side = selfvit_side(run, run.training)
    num_steps = 2 * (num_pairs + 1)
    reporter = Reporter(
        Accelerator(cpu=True),
        folder,
        start_step=0,
        num_steps=num_steps,
        batch_size=batch_size,
        log_steps=10,
    )
    monitor = CollapseMonitor(reporter.accelerator, side.model, run, reporter, start_step=0)
    seconds = []
    for step in range(num_steps):
        side.step(noise(objective, batch_size), step, num_steps)
        rate = run.training.learning_rate
        reading = cpu_seconds(lambda done=step + 1, rate=rate: monitor.step(done, rate))
        seconds.append(side.seconds[-1] + reading)
    reporter.close()
    return seconds[2::2], seconds[3::2], side  # the first pair warms up


def norm_seconds(side: Side) -> float:
    """Return the CPU seconds of a norm over as many numbers as there are gradients."""
    tensors = [parameter.detach() for _, parameter in side.model.trained_parameters()]
    return statistics.median(
        cpu_seconds(lambda: torch.nn.utils.get_total_norm(tensors)) for _ in range(5)
    )


def rank_seconds(width: int) -> float:
    """Return the CPU seconds of the figures of as many features as are ever taken."""
    features = torch.randn(MAX_FEATURES, width)
    return statistics.median(
        cpu_seconds(lambda: (feature_standard_deviation(features), rankme(features)))
        for _ in range(5)
    )


def row(objective: str, num_pairs: int, batch_size: int) -> str:
    """Measure an objective; return its row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        without, read, side = paired_steps(objective, num_pairs, batch_size, Path(folder))
    plain = statistics.median(without)
    extra = [100 * (b / a - 1) for a, b in zip(without, read, strict=True)]
    low, middle, high = statistics.quantiles(extra, n=4)
    interval = TrainingConfig().monitor_steps
    norm, rank = norm_seconds(side), rank_seconds(side.model.config.hidden_size)
    total = max(middle, 0) / interval + 100 * (norm + rank / interval) / plain
    return (
        f"| {objective} | {plain:.2f} | {middle:+.1f} % ({low:+.1f} to {high:+.1f}) "
        f"| {1000 * norm:.1f} | {1000 * rank:.1f} | {total:.2f} % |"
    )


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lines = [
        "| | step, CPU s | a step that is read (quartiles) | norm, ms | std and rank of 256, ms "
        "| of training |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for objective in arguments.objectives:
        lines.append(row(objective, arguments.pairs, arguments.batch_size))
        print(lines[-1], flush=True)
    lines += [
        "",
        f"ViT-S/16, batch {arguments.batch_size} of 224 x 224, {arguments.pairs} pairs of steps, "
        'float32, one thread of a CPU; medians of CPU time. "Of training": a tenth of the third '
        "column and of the rank, and the norm, as share of a step.",
    ]
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
