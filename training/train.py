"""The training script: one loop for every objective.

selfvit train RECIPE --data FOLDER_OR_DATASET --output OUT [--field value ...]
accelerate launch -m selfvit.training.train RECIPE --data ... --output ...
"""

from __future__ import annotations

import inspect
import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from transformers.utils.logging import disable_progress_bar

from ..data.dataset_source import StreamingImageSource
from ..data.image_source import ImageSource
from ..data.sources import open_images
from ..embedding.preprocessing import build_processor
from ..errors import one_line_errors
from .callbacks.before_after import BeforeAfterReport
from .callbacks.best_checkpoint import BestCheckpoint
from .callbacks.collapse import CollapseMonitor
from .callbacks.cost import FREE, RunCost
from .callbacks.images import LoggedImages
from .callbacks.progress import Reporter
from .callbacks.trackers import start_trackers
from .checkpoints.checkpointer import Checkpointer
from .checkpoints.model_writer import ModelWriter
from .checkpoints.rollback import roll_back
from .checkpoints.run_folder import check_output, check_shared, note_place_of_data, prepare_output
from .config.arguments import make_run
from .config.run_config import Run
from .config.training_config import TrainingConfig
from .dataloader.collate import to_model_inputs
from .dataloader.streaming import divide, stream_state
from .evaluation import Evaluation
from .exceptions import CollapseError, NonFiniteLossError, NotPublishedError, RunInterrupted
from .model import build_trainable
from .optimization import build_optimizer, set_schedules
from .preflight.batch_size import as_it_was_started
from .preflight.checks import prepare
from .preflight.dry_run import describe_plan
from .recipes import RECIPES
from .runtime.accelerator import build_accelerator, end_together, meet
from .runtime.errors import explained_faults
from .runtime.fsdp import WholeModel, num_shards
from .runtime.signals import Interruption


def train(
    run: Run,
    source: ImageSource | StreamingImageSource,
    interruption: Interruption | None = None,
) -> dict[str, float]:
    """Train a model and leave it in `run.training.output`.

    Args:
        run: what to train and how.
        source: the images.
        interruption: asks the run to stop; without one, signals do what they do elsewhere.

    Returns:
        The last evaluation's figures, or those of the report; empty without.

    Raises:
        ValueError: if run and data do not fit together; nothing was written then.
        FileExistsError: if the output folder is taken.
        NonFiniteLossError: if the loss is no longer a number; the last checkpoint stays.
        PermissionError: if it is to be pushed to the Hub, and may not; nothing was written then.
        NotPublishedError: if the run is trained, but could not be pushed.
        CollapseError: if the outputs collapse, and `on_collapse` is not to warn only.
        NoImprovementError: if the run was to improve the encoder and did not; all is saved.
        TimeoutError: if an image cannot be read within `data_timeout`.
        RunInterrupted: if it was asked to stop; it has saved.
    """
    training = run.training
    interruption = interruption or Interruption()
    output = Path(training.output)
    accelerator = build_accelerator(training)
    prepared = prepare(run, source, accelerator)
    run, plan, num_steps = prepared.run, prepared.plan, prepared.plan.num_steps
    training, card, pushes = run.training, prepared.card, prepared.pushes
    set_seed(training.seed)
    model = build_trainable(run)
    check_output(run)  # in all processes, so that each can say what is wrong
    if training.dry_run:
        layout = accelerator.mixed_precision, num_shards(accelerator)
        accelerator.print(describe_plan(run, model, source, plan, prepared.loader, *layout))
        return {}
    if isinstance(source, StreamingImageSource):
        accelerator.print(f"stream: {divide(source, plan.num_processes, training.num_workers)}")
    meet(accelerator)  # nobody writes before all have looked
    if accelerator.is_main_process:
        prepare_output(run)
    accelerator.wait_for_everyone()
    check_shared(output)

    # --- model and optimizer
    if training.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    processor = build_processor(
        run.model, resize=training.resize, mean=training.image_mean, std=training.image_std
    )
    whole = WholeModel(accelerator, model)
    wrapped, optimizer = accelerator.prepare(model, build_optimizer(model, training))
    writer = ModelWriter(whole, processor, save_code=training.save_code)
    checkpointer = Checkpointer(accelerator, optimizer, writer, run)
    set_seed(training.seed, device_specific=True)  # drop path differs between processes

    # --- what it starts from
    evaluation = Evaluation(whole.model, processor, run, prepared.images, accelerator.device)
    best = BestCheckpoint(writer, output, prepared.metric, evaluation.data)
    report = BeforeAfterReport(accelerator, evaluation, run, best)
    report.measure_before()

    # --- resume
    start_step = 0
    state: dict[str, Any] = {}
    if training.resume and (checkpoint := checkpointer.newest()) is not None:
        state = checkpointer.load(checkpoint)
        if state["data"] != source.fingerprint:
            raise ValueError(
                f"the data set changed since {checkpoint} was saved: it was "
                f"{state.get('images', training.data)}, and is {source.description}. Bring it back "
                "(--data USER/NAME@REVISION for a data set of the Hub), or start anew with "
                "--init_from."
            )
        start_step = state["step"]
        if start_step == num_steps and (output / "config.json").exists():
            accelerator.print(f"{output} is trained to its end already.")
            report.require_improvement()
            pushes.result()
            return {}

    if training.resume and accelerator.is_main_process:
        note_place_of_data(run)

    # --- the loop
    start_trackers(accelerator, run, start_step)
    meter = training.energy_meter if accelerator.is_main_process else "none"
    cost = RunCost(state.get("cost", FREE), meter)
    reporter = Reporter(
        accelerator,
        output,
        start_step=start_step,
        num_steps=num_steps,
        batch_size=training.batch_size,
        log_steps=training.log_steps,
    )
    monitor = CollapseMonitor(
        accelerator, model, run, reporter, start_step=start_step, state=state.get("monitors")
    )
    pictures = LoggedImages(accelerator, model, processor, reporter, training.image_steps)
    loader = prepared.loader(replace(plan, start_step=start_step), state.get("stream"))
    batches = iter(loader)
    num_frozen_steps = round(training.freeze_encoder_ratio * num_steps)
    metrics: dict[str, float] = state.get("metrics", {})
    interruption.defer()
    for step in range(start_step, num_steps):
        # --- schedules
        learning_rate = set_schedules(optimizer, training, step, num_steps)
        scheduled = model.scheduled_values(step, num_steps)
        model.train()
        if step < num_frozen_steps:
            model.trained_encoder.eval()

        # --- views, loss, backward
        losses = []
        for _ in range(training.gradient_accumulation_steps):
            batch = next(batches)
            reporter.skip(batch.pop("skipped"))
            inputs = to_model_inputs(batch, training, accelerator.device)
            with accelerator.accumulate(wrapped):
                with accelerator.autocast():  # of a sharded model Accelerate leaves it to the loop
                    result = wrapped(**inputs, **scheduled)
                accelerator.backward(result.loss)
            losses.append(result.loss.detach())
        loss = accelerator.reduce(torch.stack(losses).mean(), "mean").item()
        if not math.isfinite(loss):
            raise NonFiniteLossError(loss, step + 1, run.recipe, checkpointer.newest())

        # --- clip, step, teacher
        model.before_optimizer_step(step, num_steps)
        if step < num_frozen_steps:
            for parameter in model.trained_encoder.parameters():
                parameter.grad = None
        largest = math.inf if training.max_gradient_norm is None else training.max_gradient_norm
        norm = float(accelerator.clip_grad_norm_(model.parameters(), largest))
        figures = {"loss": loss, "learning_rate": learning_rate, **scheduled, "gradient_norm": norm}
        optimizer.step()
        optimizer.zero_grad()
        figures |= model.after_optimizer_step(step, num_steps)

        # --- log, evaluate, save
        done = step + 1
        monitor.step(done, learning_rate)
        metrics = {}  # a card has the figures of its own weights, or none
        reporter.step(done, figures)
        pictures.step(done, inputs)
        if training.eval_steps and (done % training.eval_steps == 0 or done == num_steps):
            whole.gather()
            if accelerator.is_main_process:
                metrics = evaluation(done)
                reporter.record(done, metrics)
                best.offer(done, metrics, partial(card.render, model, done, metrics, cost.read()))
            accelerator.wait_for_everyone()
        stopping = interruption.agreed(accelerator)
        if done % training.save_steps == 0 or done == num_steps or stopping:
            spent = cost.read()
            saved = checkpointer.save(
                {
                    "step": done,
                    "data": source.fingerprint,
                    "images": source.description,
                    "monitors": monitor.state_dict(),
                    "metrics": metrics,
                    "cost": spent,
                    "stream": stream_state(loader),
                },
                card.render(model, done, metrics, spent),
            )
            pushes.checkpoint(done, saved)
        if stopping and done < num_steps:
            reporter.close()
            cost.close()
            stopped = RunInterrupted(stopping, done, num_steps)
            accelerator.print(stopped.message)
            end_together(accelerator)
            raise stopped

    # --- the result
    reporter.close()
    whole.gather()
    metrics = report.measure_after(num_steps) or metrics
    picture = card.draw(whole.model, processor) if accelerator.is_main_process else None
    checkpointer.save_result(
        card.render(model, num_steps, metrics, cost.read(), report.comparison, picture)
    )
    cost.close()
    end_together(accelerator)
    report.require_improvement()  # before the model is published
    pushes.result()
    return metrics


def train_or_roll_back(
    run: Run, source: ImageSource | StreamingImageSource, interruption: Interruption
) -> None:
    """Train; after a collapse, go on from the last checkpoint before it, if the run asks for it."""
    try:
        train(run, source, interruption)
    except CollapseError as error:
        if run.training.on_collapse != "rollback" or error.kept is None:
            raise
        started = as_it_was_started(run) if run.training.find_batch_size else run
        again = roll_back(started, error.with_traceback(None))  # it would keep the model in memory
        train(again, source, interruption)


def open_source(training: TrainingConfig) -> ImageSource | StreamingImageSource:
    """Open the images that a run trains on."""
    return open_images(
        training.data,
        split=training.split,
        streaming=training.streaming,
        image_column=training.image_column,
        label_column=training.label_column,
    )


def overview() -> str:
    """Return what `selfvit train --help` prints."""
    lines = ["selfvit train RECIPE --data FOLDER_OR_DATASET --output OUT [--FIELD VALUE ...]", ""]
    for name, recipe in RECIPES.items():
        summary, _, _ = (inspect.getdoc(recipe) or "").partition("\n")
        lines.append(f"  {name:<18} {summary}")
    return "\n".join([*lines, "", "selfvit train RECIPE --help lists the fields of a recipe."])


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, train, and say what came of it."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] in ([], ["--help"], ["-h"]):
        print(overview())
        return
    disable_progress_bar()  # transformers' own, of files it writes
    sources: list[ImageSource | StreamingImageSource] = []

    def count_images(training: TrainingConfig) -> int | None:
        sources.append(open_source(training))
        return None if isinstance(sources[0], StreamingImageSource) else len(sources[0])

    run = make_run(arguments, RECIPES, count_images)
    source = sources[0] if sources else open_source(run.training)
    try:
        with Interruption() as interruption, explained_faults():
            train_or_roll_back(run, source, interruption)
    except NotPublishedError as error:
        print(f"trained: {run.training.output}")
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    if not run.training.dry_run:
        PartialState().print(f"trained: {run.training.output}")


if __name__ == "__main__":
    with one_line_errors():
        main()
