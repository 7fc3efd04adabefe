"""What a training step shows of itself: figures that tell whether the outputs still say anything.

A model notes them in its `forward` when it is asked to; no forward pass is run for them, no random
number is drawn, and nothing is read back from the device before `figures`.
"""

# M images of a micro-batch · R rows (views of images) · K prototypes · D hidden

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .distributed import all_gather, all_reduce_sum, several_processes

MAX_FEATURES = 256  # images; enough for a rank, and its singular values take milliseconds


def entropy(log_probabilities: Tensor) -> Tensor:
    """Return the entropy in nats of each row: (*, K) -> (*)."""
    return torch.special.entr(log_probabilities.exp()).sum(dim=-1)


def mean_cosine(first: Tensor, second: Tensor) -> Tensor:
    """Return the cosine of the rows of two (R, D), mean over rows, in float32."""
    return F.cosine_similarity(first.float(), second.float(), dim=-1).mean()


class Observations:
    """What one optimizer step showed, over its micro-batches and all processes."""

    def __init__(self) -> None:
        self._features: list[Tensor] = []
        self._means: dict[str, list[Tensor]] = {}
        self._probabilities: list[Tensor] = []  # each (1 + K,): number of rows, and their sum

    @torch.no_grad()
    def note(
        self,
        features: Tensor,
        log_probabilities: Tensor | None = None,
        **figures: Tensor,
    ) -> None:
        """Take note of a micro-batch.

        Args:
            features: (M, D), a row an image, of the network to take features from.
            log_probabilities: (*, K) of the targets, float32, where there are prototypes.
            figures: scalars that the objective has computed anyway, or cheaply.
        """
        self._features.append(features.detach().float())
        if log_probabilities is not None:
            rows = log_probabilities.flatten(0, -2)
            total = rows.exp().sum(dim=0)
            self._probabilities.append(torch.cat([total.new_tensor([len(rows)]), total]))
            figures["teacher_entropy"] = entropy(rows).mean()
        for name, value in figures.items():
            self._means.setdefault(name, []).append(value.detach().float())

    @property
    def empty(self) -> bool:
        """Whether nothing was noted: a model that shows nothing of itself."""
        return not self._features

    @property
    def num_prototypes(self) -> int | None:
        """K, or None without prototypes."""
        return len(self._probabilities[0]) - 1 if self._probabilities else None

    @torch.no_grad()
    def features(self) -> Tensor:
        """Return up to 256 images' features of all processes, (N, D) float32; collective."""
        own = torch.cat(self._features)
        share = MAX_FEATURES // (dist.get_world_size() if several_processes() else 1)
        return all_gather(own[: max(1, share)], dim=0)[0]

    @torch.no_grad()
    def figures(self) -> dict[str, float]:
        """Return the figures, means over micro-batches and processes; collective.

        With prototypes, among them (in nats):

        - teacher_entropy: of a target, on average. 0 is one prototype, ln K all of them alike.
        - teacher_mean_entropy: of the mean target. 0: all images have the same prototype.
        - teacher_information: their difference, what a target tells of its image, as a share of the
          most it could, ln K or that of the number of rows (unitless). 0: nothing.
        - prototypes_in_use: the exponential of teacher_mean_entropy.
        """
        names = list(self._means)
        means = [torch.stack(self._means[name]).mean() for name in names]
        values = torch.stack([self._features[0].new_ones(()), *means])  # counts the processes
        if self._probabilities:
            values = torch.cat([values, torch.stack(self._probabilities).sum(dim=0)])
        values = all_reduce_sum(values)
        reduced = values[1 : 1 + len(names)] / values[0]
        figures = dict(zip(names, reduced.tolist(), strict=True))
        if self._probabilities:
            num_rows, total = values[1 + len(names)], values[2 + len(names) :]
            mean_entropy = torch.special.entr(total / num_rows).sum().item()
            figures["teacher_mean_entropy"] = mean_entropy
            most = math.log(max(2, min(len(total), num_rows.item())))
            figures["teacher_information"] = (mean_entropy - figures["teacher_entropy"]) / most
            figures["prototypes_in_use"] = math.exp(mean_entropy)
        return figures


__all__ = ["MAX_FEATURES", "Observations", "entropy", "mean_cosine"]
