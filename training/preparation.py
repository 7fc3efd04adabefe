"""Before a run: its processes, and all that can be wrong, told before anything is written."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import InitProcessGroupKwargs, gather_object
from torch import Tensor
from torch.utils.data import DataLoader

from ..data.dataset_source import StreamingImageSource
from ..data.image_source import NO_LABEL, ImageSource
from .adapters import check_adapters
from .batch_plan import BatchPlan
from .batch_size import find_batch_size
from .card import RunCard
from .data import build_loader, to_model_inputs
from .evaluation import EvaluationImages, open_evaluation_images
from .faults import meet
from .hub_pushes import HubPushes
from .optimization import check_optimizer
from .report import choose_metric
from .run import Run
from .sharding import is_sharded, settle_sharding
from .trackers import chosen_trackers
from .trained_model import build_trainable
from .training_config import TrainingConfig


def build_accelerator(training: TrainingConfig) -> Accelerator:
    """Return Accelerate's handle on the processes, in the configuration that it was launched with.

    Raises:
        ValueError: if that does not go together with the run, a tracker is not installed, or
            several processes were launched that would each train alone.
    """
    # Accelerate has no argument yet for what torch 2.14 calls forward_sync_buffers
    warnings.filterwarnings("ignore", message=r"`broadcast_buffers` is deprecated")
    if training.num_workers <= TrainingConfig.num_workers:  # on fewer cores they take turns
        warnings.filterwarnings("ignore", message="This DataLoader will create")
    accelerator = Accelerator(
        cpu=training.cpu,
        mixed_precision=training.mixed_precision,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        log_with=chosen_trackers(training.tracker) or None,
        project_dir=Path(training.output),
        kwargs_handlers=[
            # buffers (the center) are equal everywhere: they are computed from reduced values
            DistributedDataParallelKwargs(broadcast_buffers=False),
            # the others wait while one evaluates or reads a slow image; NCCL's own limit is 10 min
            InitProcessGroupKwargs(timeout=timedelta(minutes=30)),
        ],
    )
    meet(accelerator)  # so that what all refuse is not told by some as the death of the others
    launched = int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1
    if accelerator.num_processes < launched:  # they would write into one folder, too
        raise ValueError(
            f"{launched} processes were launched, and each would train alone, as there is no GPU "
            "for them here; give --cpu true to train together on the CPU."
        )
    settle_sharding(accelerator, training)
    return accelerator


@dataclass(frozen=True)
class Preparation:
    """A run that was checked, with what it is going to need; nothing is written yet.

    Args:
        run: with the classes of its data, and the micro-batches that fit into memory.
        source: the images.
        plan: of its batches.
        images: that it is evaluated on, if it is.
        metric: the figure that judges it, if any.
        pushes: to the Hub.
        card: of its checkpoints.
    """

    run: Run
    source: ImageSource | StreamingImageSource
    plan: BatchPlan
    images: EvaluationImages | None
    metric: str | None
    pushes: HubPushes
    card: RunCard

    def loader(self, plan: BatchPlan, stream_state: dict[str, Any] | None = None) -> DataLoader:
        """Return a loader of a plan's batches; of a stream, from where its readers stood."""
        return loader_of(self.run, self.source, plan, stream_state)


def prepare(
    run: Run, source: ImageSource | StreamingImageSource, accelerator: Accelerator
) -> Preparation:
    """Check a run, and find what it leaves open.

    Args:
        run: as it was asked for.
        source: the images.
        accelerator: of `build_accelerator`; is told how often gradients are accumulated.

    Raises:
        ValueError: if run and data do not fit together.
        FileExistsError: if the output folder is taken.
        PermissionError: if the run is to be pushed to the Hub, and may not.
    """
    check_same_images(source, accelerator)
    run = with_labels_of(source, run)
    training = run.training
    is_stream = isinstance(source, StreamingImageSource)
    plan = BatchPlan(
        num_steps=training.num_steps(None if is_stream else len(source)),  # type: ignore[arg-type]
        start_step=0,
        batch_size=training.batch_size,
        accumulation_steps=training.gradient_accumulation_steps,
        num_processes=accelerator.num_processes,
        rank=accelerator.process_index,
    )
    loader_of(run, source, plan)
    check_optimizer(training, accelerator.device)
    check_adapters(training, sharded=is_sharded(accelerator))
    images = open_evaluation_images(run, source)
    metric = choose_metric(run, images)
    is_pushing = accelerator.is_main_process and not training.dry_run
    pushes = HubPushes(training, plan.num_steps, is_pushing)
    card = RunCard(run, source, plan.num_steps, accelerator)
    if training.find_batch_size:  # last, as its trials take a while
        run, plan = _with_batches_that_fit(run, source, plan, accelerator)
        card.run = run
    return Preparation(run, source, plan, images, metric, pushes, card)


def check_same_images(source: ImageSource | StreamingImageSource, accelerator: Accelerator) -> None:
    """Refuse images that differ between processes: machines that each have a copy of their own.

    Raises:
        ValueError: with what two of them have.
    """
    if accelerator.num_processes == 1:
        return
    everyone = gather_object([(platform.node(), source.description, source.fingerprint)])
    for rank, (node, description, fingerprint) in enumerate(everyone):
        if fingerprint != everyone[0][2]:
            raise ValueError(
                f"the processes do not see the same images: number 0 has {everyone[0][1]} on "
                f"{everyone[0][0]}, number {rank} has {description} on {node}. Share the folder, "
                "or copy it whole; of a data set of the Hub, give a revision (USER/NAME@REVISION)."
            )


def loader_of(
    run: Run,
    source: ImageSource | StreamingImageSource,
    plan: BatchPlan,
    stream_state: dict[str, Any] | None = None,
) -> DataLoader:
    """Return a loader of a run's views."""
    return build_loader(
        source,
        run.augmentation,
        plan,
        image_size=run.model.image_height_width,
        patch_size=run.model.patch_size,
        seed=run.training.seed,
        with_labels=run.is_classifier,
        num_workers=run.training.num_workers,
        shuffle_buffer=run.training.shuffle_buffer,
        data_timeout=run.training.data_timeout,
        stream_state=stream_state,
    )


def _with_batches_that_fit(
    run: Run,
    source: ImageSource | StreamingImageSource,
    plan: BatchPlan,
    accelerator: Accelerator,
) -> tuple[Run, BatchPlan]:
    def inputs_from(plan: BatchPlan) -> Iterator[dict[str, Tensor]]:
        for batch in loader_of(run, source, plan):
            del batch["skipped"]
            yield to_model_inputs(batch, run.training, accelerator.device)

    found = find_batch_size(run, plan, accelerator, lambda: build_trainable(run), inputs_from)
    steps = found.training.gradient_accumulation_steps
    accelerator.gradient_accumulation_steps = steps
    return found, replace(plan, accumulation_steps=steps)


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


__all__ = ["Preparation", "build_accelerator", "loader_of", "prepare", "with_labels_of"]
