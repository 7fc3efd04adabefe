"""Before a run: its processes, and all that can be wrong, told before anything is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from ...data.dataset_source import StreamingImageSource
from ...data.image_source import NO_LABEL, ImageSource
from ..callbacks.hub import HubPushes
from ..checkpoints.card import RunCard
from ..config.run_config import Run
from ..dataloader.collate import to_model_inputs
from ..dataloader.loader import loader_of
from ..dataloader.sampler import BatchPlan
from ..evaluation import EvaluationImages, choose_metric, open_evaluation_images
from ..lora import check_adapters
from ..model import build_trainable
from ..optimization import check_optimizer
from ..runtime.accelerator import check_same_images
from ..runtime.fsdp import is_sharded
from .batch_size import find_batch_size


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


__all__ = ["Preparation", "prepare", "with_labels_of"]
