"""Deterministic sampling: global batches do not depend on the number of processes or micro-batches.

The draws of images are numbered over the whole run. The number of a draw decides its image and
seeds its augmentation. So a run can start at any step without replaying the earlier ones, and two
processes together see the same global batch as one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler


@dataclass(frozen=True)
class BatchPlan:
    """Assignment of the draws of a run to optimizer steps, micro-batches and processes.

    Args:
        num_steps: Number of optimizer steps of the run.
        start_step: First step to do; above 0 after a resume.
        batch_size: Images of an optimizer step, over all processes and micro-batches.
        accumulation_steps: Number of micro-batches of an optimizer step.
        num_processes: Number of processes that share each micro-batch.
        rank: Rank of this process.

    Raises:
        ValueError: If a batch cannot be divided into equal micro-batches.
    """

    num_steps: int
    start_step: int
    batch_size: int
    accumulation_steps: int
    num_processes: int
    rank: int

    def __post_init__(self) -> None:
        parts = self.accumulation_steps * self.num_processes
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of gradient_accumulation_steps "
                f"({self.accumulation_steps}) times the number of processes "
                f"({self.num_processes}); use {max(1, self.batch_size // parts) * parts}."
            )

    @property
    def micro_batch_size(self) -> int:
        """Number of images that one process holds at a time."""
        return self.batch_size // (self.accumulation_steps * self.num_processes)

    def draws(self) -> Iterator[range]:
        """Yield the numbers of the draws of each micro-batch of this process."""
        for step in range(self.start_step, self.num_steps):
            for part in range(
                self.rank, self.accumulation_steps * self.num_processes, self.num_processes
            ):
                first = step * self.batch_size + part * self.micro_batch_size
                yield range(first, first + self.micro_batch_size)


class ShuffledBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (position, draw) from a new permutation of the source in each epoch.

    The images left over at the end of an epoch, too few for a batch, are dropped.

    Args:
        num_images: Number of images of the source.
        plan: Batches of the run.
        seed: Random seed of the run.

    Raises:
        ValueError: If a batch is larger than the source.
    """

    def __init__(self, num_images: int, plan: BatchPlan, seed: int):
        steps_per_epoch = num_images // plan.batch_size
        if steps_per_epoch == 0:
            raise ValueError(
                f"batch_size ({plan.batch_size}) is larger than the dataset "
                f"({num_images} images), and incomplete batches are dropped; use at most "
                f"{num_images}."
            )
        self.num_images = num_images
        self.plan = plan
        self.seed = seed
        self.draws_per_epoch = steps_per_epoch * plan.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, permutation = -1, np.empty(0, dtype=np.int64)
        for draws in self.plan.draws():
            batch = []
            for draw in draws:
                if draw // self.draws_per_epoch != epoch:
                    epoch = draw // self.draws_per_epoch
                    permutation = np.random.default_rng([self.seed, epoch]).permutation(
                        self.num_images
                    )
                batch.append((int(permutation[draw % self.draws_per_epoch]), draw))
            yield batch

    def __len__(self) -> int:
        return (self.plan.num_steps - self.plan.start_step) * self.plan.accumulation_steps


__all__ = ["BatchPlan", "ShuffledBatches"]
