"""Train two implementations of an objective alternately, step by step, and measure both.

Both use the same batches in the same order. A temporary slowdown of the machine affects both.
"""

# B batch · V views · N patches · S steps · E embedding

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from benchmarks.fashion_mnist import MEAN, STD, GrayImageSource, LabeledImages
from selfvit.evaluation.knn import weighted_knn_accuracy
from selfvit.evaluation.linear_probe import linear_probe_accuracy
from selfvit.modeling.registry import TRAINABLE_CLASSES
from selfvit.training.config.run_config import RunConfig
from selfvit.training.dataloader.collate import normalize
from selfvit.training.dataloader.loader import build_loader
from selfvit.training.dataloader.sampler import BatchPlan
from selfvit.training.loop import forward_backward, optimizer_step
from selfvit.training.optimization import build_optimizer, set_schedules
from selfvit.training.state import TrainState

NUM_SNAPSHOTS = 40  # per encoder; the resolution of equal times is 2.5 % of the run
NUM_CURVE_POINTS = 5


@dataclass
class Side:
    """Implementation in training.

    Args:
        model: Model of selfvit, or a model with the same interface.
        run: Configuration of the run, with the learning rate and its schedule.
        encoder: Part of the model that computes the embeddings.
        embed: Function from the encoder and pixels (B, C, H, W) to embeddings (B, E).
        seconds: CPU seconds of each step: forward, backward, optimizer, teacher.
        losses: Loss of each step.
        snapshots: Copies of the encoder, by number of completed steps.
    """

    model: Any
    run: RunConfig
    encoder: nn.Module
    embed: Callable[[Any, Tensor], Tensor]
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    snapshots: dict[int, nn.Module] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.optimizer = build_optimizer(self.model, self.run.optimizer)
        self.accelerator = Accelerator(cpu=True)
        self.model.train()

    def step(self, batch: dict[str, Any], step: int, num_steps: int) -> None:
        """Train one step on a batch of the loader, and measure its CPU time.

        Raises:
            ValueError: If the loss is not finite.
        """
        start = time.process_time()
        set_schedules(self.optimizer, self.run.schedule, step, num_steps)
        scheduled = self.model.scheduled_values(step, num_steps)
        state = TrainState(
            self.run, self.accelerator, self.model, self.model, self.optimizer, num_steps, step=step
        )
        loss = forward_backward(state, iter([batch]), scheduled)
        optimizer_step(state)
        self.model.after_optimizer_step(step, num_steps)
        self.seconds.append(time.process_time() - start)
        self.losses.append(loss.item())
        if not math.isfinite(self.losses[-1]):
            raise ValueError(
                f"the loss must be finite, but is {self.losses[-1]} at step {step}; use a lower "
                "learning rate."
            )

    def take_snapshot(self, step: int) -> None:
        """Store a copy of the encoder after `step` steps."""
        self.snapshots[step] = copy.deepcopy(self.encoder).eval()

    def cpu_time(self, step: int) -> float:
        """Return the CPU seconds of the first `step` steps."""
        return math.fsum(self.seconds[:step])


def build_selfvit(run: RunConfig) -> Any:
    """Return the model of a run, initialized with the seed of the run."""
    torch.manual_seed(run.start.seed)
    return TRAINABLE_CLASSES[run.architecture](run.model)


def embed_with_selfvit(encoder: Any, pixel_values: Tensor) -> Tensor:
    """Return embeddings (B, E) with the pooling of the configuration."""
    return encoder.embed(pixel_values)


def selfvit_side(run: RunConfig) -> Side:
    """Return the selfvit implementation of a run."""
    model = build_selfvit(run)
    return Side(model, run, model.vit, embed_with_selfvit)


def lightly_side(run: RunConfig) -> Side:
    """Return the Lightly implementation of a run, with the weights of the selfvit model.

    Raises:
        ImportError: If Lightly is not installed.
    """
    try:
        from benchmarks.lightly_encoder import embed
        from benchmarks.lightly_models import COUNTERPARTS
    except ModuleNotFoundError as error:
        raise ImportError(
            f'{error.name} is not installed; run pip install -e ".[train,bench]".'
        ) from error
    model = COUNTERPARTS[run.architecture](build_selfvit(run))
    return Side(model, run, model.encoder, embed)


def batches_of(run: RunConfig, images: LabeledImages, num_steps: int) -> Iterator[dict[str, Any]]:
    """Yield the batch of each step, as in a training run of selfvit.

    Only the noise of the masks differs: it consists of the numbers that Lightly's
    `random_token_mask` draws from torch's generator seeded with `mask_seed`, without the first
    number, which belongs to the class token. Both sides therefore mask the same patches.
    """
    plan = BatchPlan(
        num_steps=num_steps,
        start_step=0,
        batch_size=run.schedule.batch_size,
        accumulation_steps=1,
        num_processes=1,
        rank=0,
    )
    loader = build_loader(
        GrayImageSource(images),
        run.augmentation,
        plan,
        image_size=run.model.image_height_width,
        patch_size=run.model.patch_size,
        seed=run.start.seed,
        with_labels=False,
        num_workers=0,
        shuffle_buffer=0,
    )
    for step, batch in enumerate(loader):
        assert not batch["skipped"]
        if "noise" in batch:
            *others, num_patches = batch["noise"].shape
            generator = torch.Generator().manual_seed(mask_seed(run.start.seed, step))
            batch["noise"] = torch.rand(*others, 1 + num_patches, generator=generator)[..., 1:]
        yield batch


def mask_seed(seed: int, step: int) -> int:
    """Return the seed of torch's generator for a step; it is set before the step of each side."""
    return seed * 1_000_000 + step


def train_side_by_side(run: RunConfig, images: LabeledImages, sides: list[Side]) -> float:
    """Train all sides, and return the CPU seconds for preparing the batches.

    Args:
        run: Run whose `max_steps` is the number of steps and whose seed determines the order, the
            views and the masks.
        images: Training images.
        sides: Implementations of the objective; they take turns at going first.
    """
    num_steps = run.schedule.max_steps
    assert num_steps is not None
    snapshot_steps = set(np.linspace(0, num_steps, NUM_SNAPSHOTS + 1).round().astype(int).tolist())
    for side in sides:
        side.take_snapshot(0)
    batches = batches_of(run, images, num_steps)
    data_seconds = 0.0
    for step in range(num_steps):
        start = time.process_time()
        batch = next(batches)
        data_seconds += time.process_time() - start
        for side in sides if step % 2 == 0 else sides[::-1]:
            torch.manual_seed(mask_seed(run.start.seed, step))
            side.step(batch, step, num_steps)
            if step + 1 in snapshot_steps:
                side.take_snapshot(step + 1)
    return data_seconds


@torch.inference_mode()
def embed_images(side: Side, step: int, images: LabeledImages, batch_size: int = 250) -> Tensor:
    """Return the embeddings (N, E) of images from the encoder snapshot at `step`."""
    vectors = []
    for pixels in torch.from_numpy(images.pixels).split(batch_size):
        views = pixels.unsqueeze(1).expand(-1, 3, -1, -1)
        pixel_values = normalize(views, [MEAN] * 3, [STD] * 3)
        vectors.append(side.embed(side.snapshots[step], pixel_values))
    return torch.cat(vectors)


def knn_of(side: Side, step: int, neighbors: LabeledImages, queries: LabeledImages) -> float:
    """Return the accuracy of weighted k-NN, k = 20 (DINO, arXiv 2104.14294, App. F.1)."""
    vectors = [embed_images(side, step, images) for images in (neighbors, queries)]
    return weighted_knn_accuracy(vectors[0], neighbors.labels, vectors[1], queries.labels, ks=[20])[
        20
    ]


def measure_accuracies(side: Side, step: int, train: LabeledImages, test: LabeledImages) -> dict:
    """Return the accuracies of k-NN and linear probe for a snapshot of the encoder."""
    vectors = [embed_images(side, step, images).numpy() for images in (train, test)]
    return accuracies(vectors[0], train.labels, vectors[1], test.labels)


def accuracies(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray
) -> dict:
    """Return the accuracies "knn_20" and "linear_probe" of vectors (N, E), in [0, 1]."""
    arrays = (train, train_labels, test, test_labels)
    return {
        "knn_20": weighted_knn_accuracy(*arrays, ks=[20])[20],
        "linear_probe": linear_probe_accuracy(*arrays),
    }


def step_at_equal_time(side: Side, seconds: float) -> int:
    """Return the step of the first snapshot at or after a CPU time, or of the last snapshot.

    Rounding up to the next snapshot favors the slower side.
    """
    return next(
        (step for step in sorted(side.snapshots) if side.cpu_time(step) >= seconds),
        max(side.snapshots),
    )
