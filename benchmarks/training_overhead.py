"""Measure the overhead of monitors, log, trackers, pictures and the before/after report.

    python -m benchmarks.training_overhead --output benchmarks/results/training_overhead.md

For each objective, a ViT-S/16 is trained with the settings of a recipe on random noise. In every
second step, the monitors run, a line is logged (also to TensorBoard), and pictures are drawn. Each
part is timed separately; the overhead of the monitors within a step is the difference to the step
before. In real training, these parts run every tenth and every thousandth step, so their cost is
divided accordingly. Two parts are too small to be visible in the difference and are timed
separately: the norm of the gradients, and the rank of 256 features, more than a small batch has.

The cost of the report has two parts. An evaluation of a few large images gives the time to decode
and embed an image; an evaluation of many tiny images gives the time of k-NN, linear probe, RankMe
and the other metrics. The sum is divided by the steps of a run of `dino_finetune`. The time to
prepare the views is not included in a step, so all percentages are slightly too high.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from benchmarks.side_by_side import Side, build_selfvit, selfvit_side
from selfvit.configuration.configuration_mae import MAEConfig
from selfvit.configuration.configuration_selfvit import SelfViTConfig
from selfvit.data.sources import open_images
from selfvit.embedding.preprocessing import build_processor
from selfvit.evaluation.comparison import compare
from selfvit.evaluation.label_free import feature_standard_deviation, rankme
from selfvit.modeling.observations import MAX_FEATURES
from selfvit.training.augmentations.multi_crop import MultiCrop
from selfvit.training.callbacks.collapse import CollapseMonitor
from selfvit.training.callbacks.images import ImageLogger
from selfvit.training.callbacks.progress import ProgressLogger
from selfvit.training.callbacks.trackers import Trackers, start_trackers
from selfvit.training.config.run_config import RunConfig
from selfvit.training.config.tracker_names import NEEDS, chosen_trackers
from selfvit.training.config.training_config import MonitoringConfig
from selfvit.training.dataloader.collate import REPORTS, to_model_inputs
from selfvit.training.evaluation import MAX_VIEW_IMAGES, Evaluation, open_evaluation_images
from selfvit.training.recipes import RECIPES
from selfvit.training.state import TrainState

OBJECTIVES = {"dino": "dino_finetune", "mae": "mae_vitb16_in1k", "pmsn": "pmsn_vits16_in1k"}
NUM_REPORTED = 2000  # images of the dataset
NUM_EMBEDDED = 60  # images embedded at full size
TEST_SHARE = 1 / 5  # fraction of a labeled dataset; view retrieval uses these images
NUM_LINES = 30


def run_of(objective: str, output: Path, batch_size: int) -> RunConfig:
    """Return the run of a recipe with a ViT-S/16 that monitors and logs every second step."""
    run = RECIPES[OBJECTIVES[objective]](NUM_REPORTED, None)
    if objective == "mae":
        run = replace(run, model=SelfViTConfig.from_name("vits16", mae_config=MAEConfig()))
    return run.replace(
        batch_size=batch_size,
        output=str(output),
        max_steps=100,
        num_workers=0,
        monitor_steps=2,
        log_steps=2,
        image_steps=2,
    )


def noise(run: RunConfig, batch_size: int) -> dict[str, Any]:
    """Return a batch of noise with the shapes of the views of the recipe."""
    reports: dict[str, Any] = {name: [] for name in REPORTS}

    def views(*shape: int, size: int = 224) -> torch.Tensor:
        return torch.randint(256, (*shape, 3, size, size), dtype=torch.uint8)

    augmentation = run.augmentation
    if isinstance(augmentation, MultiCrop):
        local = views(augmentation.num_local_views, batch_size, size=augmentation.local_view_size)
        return reports | {"global_views": views(2, batch_size), "local_views": local}
    if run.architecture == "SelfViTForMAE":
        return reports | {"pixel_values": views(batch_size), "noise": torch.rand(batch_size, 196)}
    return reports | {"target_view": views(batch_size), "random_views": views(1, batch_size)}


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


@dataclass
class Spent:
    """CPU seconds of the parts of a run, one number per step or event."""

    plain: list[float] = field(default_factory=list)  # steps without monitoring
    read: list[float] = field(default_factory=list)  # the following steps, with monitoring
    bar: list[float] = field(default_factory=list)
    line: list[float] = field(default_factory=list)
    picture: list[float] = field(default_factory=list)


@contextmanager
def logger_of(run: RunConfig, tracker: str) -> Iterator[ProgressLogger]:
    """Open a reporter with a tracker in the folder of a run."""
    output = Path(run.start.output)
    accelerator = Accelerator(
        cpu=True, log_with=chosen_trackers(tracker) or None, project_dir=output
    )
    start_trackers(accelerator, run, 0)
    logger = ProgressLogger(accelerator, run)
    yield logger
    logger.close()
    Trackers(accelerator).close()


def paired_steps(run: RunConfig, num_pairs: int) -> tuple[Spent, Side]:
    """Train pairs of steps, the second one with monitoring; return the times and the model."""
    side = selfvit_side(run)
    num_steps = 2 * (num_pairs + 1)
    spent = Spent()
    with logger_of(run, "tensorboard") as logger:
        accelerator = logger.accelerator
        state = TrainState(run, accelerator, side.model, side.model, side.optimizer, num_steps)
        monitor = CollapseMonitor(accelerator, run, logger)
        pictures = ImageLogger(accelerator, build_processor(run.model), logger, 2)
        for callback in (monitor, logger):
            callback.on_train_begin(state)
        for step in range(num_steps):
            batch, done, rate = noise(run, run.schedule.batch_size), step + 1, 1e-5
            side.step(batch, step, num_steps)
            metrics = {"loss": side.losses[-1], "learning_rate": rate, "gradient_norm": 1.0}
            state.inputs = to_model_inputs(batch, run.preprocessing, accelerator.device)
            state.step, state.metrics = done, metrics
            reading = cpu_seconds(lambda: monitor.on_step_end(state))
            logging = cpu_seconds(lambda: logger.on_step_end(state))
            # step 1 would draw, too
            drawing = 0.0 if done % 2 else cpu_seconds(lambda: pictures.on_step_end(state))
            if step < 2:
                continue  # the first pair warms up
            (spent.read if done % 2 == 0 else spent.plain).append(side.seconds[-1] + reading)
            (spent.line if done % 2 == 0 else spent.bar).append(logging)
            if done % 2 == 0:
                spent.picture.append(drawing)
    return spent, side


def norm_seconds(side: Side) -> float:
    """Return the CPU seconds of a norm over all trained parameters."""
    tensors = [parameter.detach() for _, parameter in side.model.trained_parameters()]
    return statistics.median(
        cpu_seconds(lambda: torch.nn.utils.get_total_norm(tensors)) for _ in range(5)
    )


def rank_seconds(width: int) -> float:
    """Return the CPU seconds of the feature metrics for the maximum number of features."""
    features = torch.randn(MAX_FEATURES, width)
    return statistics.median(
        cpu_seconds(lambda: (feature_standard_deviation(features), rankme(features)))
        for _ in range(5)
    )


def objective_row(objective: str, spent: Spent, side: Side) -> tuple[str, float]:
    """Return the table row of an objective, and its total overhead in % of a step."""
    defaults = MonitoringConfig()
    plain = statistics.median(spent.plain)
    extra = [100 * (b / a - 1) for a, b in zip(spent.plain, spent.read, strict=True)]
    low, middle, high = statistics.quantiles(extra, n=4)
    norm, rank = norm_seconds(side), rank_seconds(side.model.config.hidden_size)
    bar, line, picture = map(statistics.median, (spent.bar, spent.line, spent.picture))
    shares = {
        "monitors": max(middle, 0) / defaults.monitor_steps
        + 100 * (norm + rank / defaults.monitor_steps) / plain,
        "log": 100 * (bar + max(line - bar, 0) / defaults.log_steps) / plain,
        "pictures": 100 * picture / defaults.image_steps / plain,
    }
    cells = [
        *(objective, f"{plain:.2f}", f"{middle:+.1f} % ({low:+.1f} to {high:+.1f})"),
        *(f"{1000 * value:.1f}" for value in (norm, rank, bar, line, picture)),
        *(f"{share:.2f} %" for share in shares.values()),
        f"**{sum(shares.values()):.2f} %**",
    ]
    return f"| {' | '.join(cells)} |", sum(shares.values())


def write_images(folder: Path, number: int, size: int) -> None:
    """Write JPEG images of noise in ten class folders."""
    rng = np.random.default_rng(0)
    for index in range(number):
        place = folder / str(index % 10)
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{index}.jpg")


def measurement_seconds(run: RunConfig, number: int, size: int) -> float:
    """Return the CPU seconds of one evaluation and half of the comparison of two evaluations."""
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), number, size)
        source = open_images(folder)
        images = open_evaluation_images(run.replace(eval_steps=1), source)
        evaluation = Evaluation(build_selfvit(run), build_processor(run.model), run, images)
        seconds = cpu_seconds(lambda: evaluation.measure(0))
        before = evaluation.measure(0)
        return seconds + cpu_seconds(lambda: compare(before, before, "knn_20")) / 2


def forwards(number: int) -> float:
    """Return the number of images that an evaluation embeds: all, and two views of test images."""
    return number + 2 * min(TEST_SHARE * number, MAX_VIEW_IMAGES)


def report_lines(run: RunConfig, step_seconds: float, others: float) -> list[str]:
    """Measure the cost of the report, and return its table.

    Args:
        run: Run of DINO.
        step_seconds: CPU seconds of a training step.
        others: Overhead of everything except the report, in % of a step.
    """
    per_image = step_seconds / run.schedule.batch_size
    embedding = measurement_seconds(run, NUM_EMBEDDED, 256) / forwards(NUM_EMBEDDED)
    tiny = run.with_options({"num_hidden_layers": 1, "image_size": 32})
    metrics = measurement_seconds(tiny, NUM_REPORTED, 32)
    report = 2 * (embedding * forwards(NUM_REPORTED) + metrics)
    recipe = RECIPES["dino_finetune"](NUM_REPORTED, None).schedule
    whole = recipe.epochs * (NUM_REPORTED // recipe.batch_size) * recipe.batch_size
    lines = [
        f"Report: {1000 * embedding:.0f} ms to decode and embed an image, "
        f"{metrics:.1f} s for the metrics of {NUM_REPORTED:,}, so {report:.0f} s before and after.",
        "",
        "| run of `dino_finetune` on 2,000 images | training, CPU s | report | total |",
        "| --- | --- | --- | --- |",
    ]
    for name, num_seen in (
        (f"its default, {recipe.epochs} epochs", whole),
        ("5 epochs", whole / 6),
        ("100 steps of 64", 100 * recipe.batch_size),
    ):
        share = 100 * report / (num_seen * per_image)
        lines.append(
            f"| {name} | {num_seen * per_image:,.0f} | {share:.2f} % | **{share + others:.2f} %** |"
        )
    return lines


def tracker_lines(run: RunConfig) -> list[str]:
    """Measure each installed tracker; return a table of milliseconds per line."""
    lines = ["| tracker | line in log.jsonl and in the tracker, ms |", "| --- | --- |"]
    for tracker in ("none", *NEEDS):
        try:
            chosen_trackers(tracker)
        except ValueError:
            lines.append(f"| {tracker} | not installed |")
            continue
        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
            logger_of(run.replace(output=folder), tracker) as logger,
        ):
            seconds = []
            for step in range(1, NUM_LINES + 1):
                start = time.perf_counter()
                logger.log_metrics(step, {f"metric_{index}": step / 7 for index in range(8)})
                seconds.append(time.perf_counter() - start)
        lines.append(f"| {tracker} | {1000 * statistics.median(seconds):.1f} |")
    return lines


def main() -> None:
    """Measure the overhead, and print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--batch-size", "--batch_size", type=int, default=8)
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lines = [
        "| | step, CPU s | monitored step (quartiles) | norm, ms | std and rank of 256, ms "
        "| bar, ms | bar and line, ms | pictures, ms | monitors | log | pictures | total |",
        "|" + " --- |" * 12,
    ]
    dino: tuple[RunConfig, float, float] | None = None
    for objective in arguments.objectives:
        with tempfile.TemporaryDirectory() as folder:
            run = run_of(objective, Path(folder), arguments.batch_size)
            spent, side = paired_steps(run, arguments.pairs)
        row, share = objective_row(objective, spent, side)
        lines.append(row)
        print(row, flush=True)
        if objective == "dino":
            dino = run, statistics.median(spent.plain), share
    defaults = MonitoringConfig()
    lines += [
        "",
        f"ViT-S/16, batch {arguments.batch_size} of 224 x 224 (DINO with its six local views of "
        f"96 x 96), {arguments.pairs} pairs of steps, float32, one CPU thread; medians of CPU "
        f"time. The percentages are for the default intervals: monitors and a line every "
        f"{defaults.monitor_steps} steps, pictures every {defaults.image_steps:,}.",
        "",
    ]
    if dino is not None:
        lines += [*report_lines(*dino), ""]
        lines += tracker_lines(dino[0])
    print("\n".join(lines))
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
