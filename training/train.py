"""The training script: one loop for every objective.

selfvit train RECIPE --data FOLDER_OR_DATASET --output OUT [--field value ...]
accelerate launch -m selfvit.training.train RECIPE --data ... --output ...
"""

from __future__ import annotations

import inspect
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed
from transformers.utils.logging import disable_progress_bar

from .. import PRETRAINING_CLASSES
from ..data.dataset_source import StreamingImageSource
from ..data.image_source import NO_LABEL, ImageSource
from ..data.sources import open_images
from ..embedding.preprocessing import build_processor
from ..modeling.modeling_selfvit import SelfViTForImageClassification
from .card import RunCard
from .checkpointing import Checkpointer, build_trainable, check_output, prepare_output
from .collapse import CollapseError, CollapseMonitor, roll_back
from .cost import FREE, RunCost
from .data import BatchPlan, build_loader, normalize
from .evaluation import Evaluation, open_evaluation_images
from .faults import end_together, explained_faults
from .hub_pushes import HubPushes, NotPublishedError
from .interruption import Interruption, RunInterrupted
from .monitors import NonFiniteLossError, Reporter, chosen_tracker, start_tracker
from .optimization import build_optimizer, set_schedules
from .plan import describe_plan
from .recipes import RECIPES
from .report import BeforeAfterReport, BestCheckpoint, choose_metric
from .run import Run, TrainingConfig, make_run
from .streaming import divide, stream_state

TRAINABLE_CLASSES = {
    model_class.__name__: model_class
    for model_class in (*PRETRAINING_CLASSES, SelfViTForImageClassification)
}


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
    accelerator = Accelerator(
        cpu=training.cpu,
        mixed_precision=training.mixed_precision,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        log_with=chosen_tracker(training.tracker),
        project_dir=output,
        # buffers (the center) are equal everywhere: they are computed from reduced values
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )

    # --- all that can be wrong, before anything is written
    run = with_labels_of(source, run)
    num_steps = training.num_steps(
        None if isinstance(source, StreamingImageSource) else len(source)
    )
    plan = BatchPlan(
        num_steps=num_steps,
        start_step=0,
        batch_size=training.batch_size,
        accumulation_steps=training.gradient_accumulation_steps,
        num_processes=accelerator.num_processes,
        rank=accelerator.process_index,
    )

    def loader_from(plan: BatchPlan, stream_state: dict[str, Any] | None = None) -> Any:
        return build_loader(
            source,
            run.augmentation,
            plan,
            image_size=run.model.image_height_width,
            patch_size=run.model.patch_size,
            seed=training.seed,
            with_labels=run.is_classifier,
            num_workers=training.num_workers,
            shuffle_buffer=training.shuffle_buffer,
            data_timeout=training.data_timeout,
            stream_state=stream_state,
        )

    loader_from(plan)
    evaluation_images = open_evaluation_images(run, source)
    metric = choose_metric(run, evaluation_images)
    pushes = HubPushes(training, num_steps, accelerator.is_main_process and not training.dry_run)
    card = RunCard(run, source, num_steps, accelerator)
    set_seed(training.seed)
    model = build_trainable(run, TRAINABLE_CLASSES[run.architecture])
    if training.dry_run:
        check_output(run)
        precision = accelerator.mixed_precision
        accelerator.print(describe_plan(run, model, source, plan, loader_from, precision))
        return {}
    if isinstance(source, StreamingImageSource):
        division = divide(source, plan.num_processes, training.num_workers)
        accelerator.print(f"stream: {division}")
    if accelerator.is_main_process:
        prepare_output(run)
    accelerator.wait_for_everyone()

    # --- model and optimizer
    if training.freeze_encoder_ratio == 1:
        model.trained_encoder.requires_grad_(False)
    if training.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    processor = build_processor(
        run.model, resize=training.resize, mean=training.image_mean, std=training.image_std
    )
    wrapped, optimizer = accelerator.prepare(model, build_optimizer(model, training))
    checkpointer = Checkpointer(accelerator, model, processor, run)
    set_seed(training.seed, device_specific=True)  # drop path differs between processes

    # --- what it starts from
    evaluation = Evaluation(model, processor, run, evaluation_images)
    best = BestCheckpoint(model, processor, output, metric, save_code=training.save_code)
    report = BeforeAfterReport(accelerator, evaluation, run, best)
    report.measure_before()

    # --- resume
    start_step = 0
    state: dict[str, Any] = {}
    if training.resume and (checkpoint := checkpointer.newest()) is not None:
        state = checkpointer.load(checkpoint)
        if state["data"] != source.fingerprint:
            raise ValueError(
                f"the data set changed since {checkpoint} was saved: {training.data} is no longer "
                "the same. Bring it back, or start anew with --init_from."
            )
        start_step = state["step"]
        if start_step == num_steps and (output / "config.json").exists():
            accelerator.print(f"{output} is trained to its end already.")
            report.require_improvement()
            pushes.result()
            return {}

    # --- the loop
    start_tracker(accelerator, output)
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
    loader = loader_from(replace(plan, start_step=start_step), state.get("stream"))
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
        if training.eval_steps and (done % training.eval_steps == 0 or done == num_steps):
            if accelerator.is_main_process:
                metrics = evaluation(done)
                reporter.record(done, metrics)
                best.offer(done, metrics, card.render(model, done, metrics, cost.read()))
            accelerator.wait_for_everyone()
        stopping = interruption.agreed(accelerator)
        if done % training.save_steps == 0 or done == num_steps or stopping:
            spent = cost.read()
            saved = checkpointer.save(
                {
                    "step": done,
                    "data": source.fingerprint,
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
    metrics = report.measure_after(num_steps) or metrics
    picture = card.draw(model, processor) if accelerator.is_main_process else None
    checkpointer.save_result(
        card.render(model, num_steps, metrics, cost.read(), report.comparison, picture)
    )
    cost.close()
    end_together(accelerator)
    report.require_improvement()  # before the model is published
    pushes.result()
    return metrics


def with_labels_of(source: ImageSource | StreamingImageSource, run: Run) -> Run:
    """Give a classifier the names of the classes of its data.

    Raises:
        ValueError: if the data has no labels.
    """
    if not run.is_classifier:
        return run
    if source.label_names is None:
        fix = "put the images of each class into a folder of its name"
        if isinstance(source, StreamingImageSource):
            fix = (
                "of a stream only a ClassLabel's names are known beforehand: leave out --streaming"
            )
        raise ValueError(
            f"{source.description} has no labels, and {run.recipe} needs them: {fix}, or name the "
            "column with --label_column."
        )
    labels = source.labels() if isinstance(source, ImageSource) else None
    if labels is not None and (labels == NO_LABEL).any():
        raise ValueError(
            f"{(labels == NO_LABEL).sum()} of the {len(labels)} images have no label, and "
            f"{run.recipe} needs them all; leave these images out."
        )
    model = type(run.model)(**run.model.to_diff_dict())
    model.id2label = dict(enumerate(source.label_names))
    model.label2id = {name: index for index, name in enumerate(source.label_names)}
    return replace(run, model=model)


def to_model_inputs(
    batch: dict[str, Any], training: TrainingConfig, device: torch.device
) -> dict[str, Any]:
    """Move a batch to the device, and normalise its views there: uint8 travels faster."""
    moved = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    return {
        name: normalize(value, training.image_mean, training.image_std)
        if value.dtype == torch.uint8
        else value
        for name, value in moved.items()
    }


def train_or_roll_back(
    run: Run, source: ImageSource | StreamingImageSource, interruption: Interruption
) -> None:
    """Train; after a collapse, go on from the last checkpoint before it, if the run asks for it."""
    try:
        train(run, source, interruption)
    except CollapseError as error:
        if run.training.on_collapse != "rollback" or error.kept is None:
            raise
        again = roll_back(run, error.with_traceback(None))  # it would keep the model in memory
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
        print(f"trained: {run.training.output}")


if __name__ == "__main__":
    main()
