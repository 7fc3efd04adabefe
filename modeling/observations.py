"""Statistics of a training step for the collapse monitors.

A model records them in its `forward`, from values that it has computed anyway: no extra forward
pass, no random numbers, and no copy from the device until `metrics` is called.
"""

# M images of a micro-batch · R rows (views of images) · K prototypes · D hidden

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .distributed import all_gather, all_reduce_sum, several_processes

MAX_FEATURES = 256  # images; enough for a rank, and the singular values take milliseconds


def entropy(log_probabilities: Tensor) -> Tensor:
    """Return the entropy of each row in nats: (*, K) -> (*)."""
    return torch.special.entr(log_probabilities.exp()).sum(dim=-1)


def mean_cosine(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean cosine similarity between the rows of two (R, D) tensors, in float32."""
    return F.cosine_similarity(first.float(), second.float(), dim=-1).mean()


class Observations:
    """Statistics of one optimizer step, over its micro-batches and all processes."""

    def __init__(self) -> None:
        self._features: list[Tensor] = []
        self._means: dict[str, list[Tensor]] = {}
        self._probabilities: list[Tensor] = []  # each (1 + K,): number of rows, sum of the rows

    @torch.no_grad()
    def record(
        self,
        features: Tensor,
        log_probabilities: Tensor | None = None,
        **metrics: Tensor,
    ) -> None:
        """Record the statistics of one micro-batch.

        Args:
            features: (M, D) features of the network that embeds images, one row per image.
            log_probabilities: (*, K) log-probabilities of the targets, float32; None for an
                objective without prototypes.
            metrics: Scalars that are already computed, or cheap to compute.
        """
        self._features.append(features.detach().float())
        if log_probabilities is not None:
            rows = log_probabilities.flatten(0, -2)
            total = rows.exp().sum(dim=0)
            self._probabilities.append(torch.cat([total.new_tensor([len(rows)]), total]))
            metrics["teacher_entropy"] = entropy(rows).mean()
        for name, value in metrics.items():
            self._means.setdefault(name, []).append(value.detach().float())

    @property
    def empty(self) -> bool:
        """Whether nothing was recorded."""
        return not self._features

    @property
    def num_prototypes(self) -> int | None:
        """K, or None without prototypes."""
        return len(self._probabilities[0]) - 1 if self._probabilities else None

    @torch.no_grad()
    def features(self) -> Tensor:
        """Return the features of up to 256 images of all processes, (N, D) float32.

        Collective: every process must call it.
        """
        own = torch.cat(self._features)
        share = MAX_FEATURES // (dist.get_world_size() if several_processes() else 1)
        return all_gather(own[: max(1, share)], dim=0)[0]

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """Return the mean of each metric over micro-batches and processes.

        Collective: every process must call it. With prototypes, the metrics include (in nats unless
        noted):

        - teacher_entropy: mean entropy of the targets. 0 means one prototype per target, ln K means
          uniform targets.
        - teacher_mean_entropy: entropy of the mean target. 0 means that all images share one
          prototype.
        - teacher_information: information that a target carries about its image, the difference of
          the two above, as a fraction (unitless) of its maximum: ln K, or the logarithm of the
          number of rows if that is smaller. 0 means none.
        - prototypes_in_use: exponential of teacher_mean_entropy (a number of prototypes).
        """
        names = list(self._means)
        means = [torch.stack(self._means[name]).mean() for name in names]
        # the leading 1 sums to the number of processes
        values = torch.stack([self._features[0].new_ones(()), *means])
        if self._probabilities:
            values = torch.cat([values, torch.stack(self._probabilities).sum(dim=0)])
        values = all_reduce_sum(values)
        reduced = values[1 : 1 + len(names)] / values[0]
        metrics = dict(zip(names, reduced.tolist(), strict=True))
        if self._probabilities:
            num_rows, total = values[1 + len(names)], values[2 + len(names) :]
            mean_entropy = torch.special.entr(total / num_rows).sum().item()
            metrics["teacher_mean_entropy"] = mean_entropy
            maximum = math.log(max(2, min(len(total), num_rows.item())))
            metrics["teacher_information"] = (mean_entropy - metrics["teacher_entropy"]) / maximum
            metrics["prototypes_in_use"] = math.exp(mean_entropy)
        return metrics


__all__ = ["MAX_FEATURES", "Observations", "entropy", "mean_cosine"]
