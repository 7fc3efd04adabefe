"""Preflight checks: fail before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from accelerate import Accelerator

from ...data.dataset_source import StreamingImageSource
from ...data.folder_source import FolderSource, ListedSource
from ...data.image_source import NO_LABEL, ChosenSource, ImageSource
from ...errors import printable
from ...sharing.publish import Target, check_target
from ..checkpoints.card import check_card
from ..config.run_config import RunConfig
from ..dataloader.loader import build_run_loader
from ..dataloader.sampler import BatchPlan
from ..evaluation_images import choose_metric, open_evaluation_images
from ..lora import check_adapters
from ..model import build_trainable, check_start_channels
from ..optimization import check_optimizer
from ..runtime.accelerator import check_same_images
from ..runtime.fsdp import is_sharded
from ..state import CheckedRun
from .batch_size import NUM_STEPS, find_batch_size
from .channels import check_channels, with_statistics
from .teacher import with_teacher


def check(
    run: RunConfig, source: ImageSource | StreamingImageSource, accelerator: Accelerator
) -> CheckedRun:
    """Check a run, and complete it from its data; collective.

    Args:
        run: Requested configuration.
        source: Training images.
        accelerator: Accelerator of the run; its number of micro-batches is set to one that fits
            into memory.

    Raises:
        ValueError: If the run and its data contradict each other.
        FileExistsError: If the run folder is not empty and may not be used.
        PermissionError: If the run is to be pushed to the Hub without the permission to do so.
    """
    check_same_images(source, accelerator)
    run = with_labels_of(source, run)
    run = with_teacher(run, accelerator.print)
    check_start_channels(run)
    check_channels(run, source)
    run = with_statistics(run, source, accelerator)
    is_stream = isinstance(source, StreamingImageSource)
    plan = BatchPlan(
        num_steps=run.schedule.num_steps(None if is_stream else len(source)),  # type: ignore[arg-type]
        start_step=0,
        batch_size=run.schedule.batch_size,
        accumulation_steps=run.runtime.gradient_accumulation_steps,
        num_processes=accelerator.num_processes,
        rank=accelerator.process_index,
    )
    build_run_loader(run, source, plan)
    check_optimizer(run.optimizer, accelerator.device)
    check_adapters(run.lora, sharded=is_sharded(accelerator))
    images = open_evaluation_images(run, source)
    metric = choose_metric(run, images)
    is_pushing = accelerator.is_main_process and not run.start.dry_run
    target = push_target(run) if is_pushing else None
    check_card(run, source)
    if run.runtime.find_batch_size:
        run = _with_batches_that_fit(run, source, plan, accelerator)
        steps = run.runtime.gradient_accumulation_steps
        plan = replace(plan, accumulation_steps=steps)
        accelerator.gradient_accumulation_steps = steps
    return CheckedRun(run, source, plan, images, metric, target)


def _with_batches_that_fit(
    run: RunConfig,
    source: ImageSource | StreamingImageSource,
    plan: BatchPlan,
    accelerator: Accelerator,
) -> RunConfig:
    def batches_of(plan: BatchPlan) -> Iterator[dict[str, Any]]:
        # the trial makes two steps, also for a run of one
        enough = replace(plan, num_steps=max(plan.num_steps, NUM_STEPS))
        return iter(build_run_loader(run, source, enough))

    return find_batch_size(run, plan, accelerator, lambda: build_trainable(run), batches_of)


def push_target(run: RunConfig) -> Target | None:
    """Return the destination of a run on the Hub, after checking permissions; None without a push.

    Raises:
        PermissionError: If the Hub does not accept the token, or the user may not push there.
        ValueError: If the name is not that of a repository, or if the repository must be private
            but is public.
        ConnectionError: If the Hub cannot be reached.
    """
    if run.hub.push_to_hub is None:
        return None
    target = Target(
        run.hub.push_to_hub, private=run.hub.hub_private_repo, revision=run.hub.hub_revision
    )
    check_target(target)
    return target


def labeled_images(
    source: ImageSource | StreamingImageSource, run: RunConfig, say: Callable[[str], None]
) -> ImageSource | StreamingImageSource:
    """Return the images that a run can train on: for a classifier, those that have a label.

    Args:
        source: Training images.
        run: Configuration of the run.
        say: Function that prints a line.
    """
    labels = source.labels() if isinstance(source, ImageSource) and run.is_classifier else None
    if labels is None or (labels != NO_LABEL).all():
        return source
    assert isinstance(source, ImageSource)
    labeled = ChosenSource(source, np.flatnonzero(labels != NO_LABEL))
    labeled.inventory = source.inventory
    say(f"images without a label are not trained on: {len(source) - len(labeled)}")
    return labeled


def with_labels_of(source: ImageSource | StreamingImageSource, run: RunConfig) -> RunConfig:
    """Return the run of a classifier with the class names of its data; other runs unchanged.

    Raises:
        ValueError: If the data has no labels, or one class.
    """
    if not run.is_classifier:
        return run
    if source.label_names is None:
        raise ValueError(_no_labels(source, run.recipe))
    if len(source.label_names) < 2:
        raise ValueError(
            f"{run.recipe} needs at least two classes, but there is only one "
            f"({source.label_names[0]}) for {source.description}; add images of another class."
        )
    model = type(run.model)(**run.model.to_diff_dict())
    model.id2label = dict(enumerate(source.label_names))
    model.label2id = {name: index for index, name in enumerate(source.label_names)}
    return replace(run, model=model)


def _no_labels(source: ImageSource | StreamingImageSource, recipe: str) -> str:
    """Return the error for data without labels."""
    fix = "name the column that holds the labels with --label-column"
    if isinstance(source, StreamingImageSource):
        fix = (
            f"leave out --streaming, as only a ClassLabel column names a stream's classes, or {fix}"
        )
    elif isinstance(source, FolderSource) and not isinstance(source, ListedSource):
        folders = {path.partition("/")[0] if "/" in path else "" for path in source.paths}
        if len(folders) == 1 and folders != {""}:
            return (
                f"{recipe} needs at least two classes, but all of {source.description} are in one "
                f"folder, {printable(folders.pop())!r}; put the images of another class into a "
                "folder beside it, or give a folder whose subfolders are the classes."
            )
        fix = (
            "put the images of each class into a folder with its name, or add a metadata.csv and "
            f"{fix}"
        )
    return f"{recipe} needs labels, but there are none for {source.description}; {fix}."


__all__ = ["check", "labeled_images", "with_labels_of"]
