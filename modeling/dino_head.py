"""Projection head and loss of DINO (arXiv 2104.14294), which DINOv2 shares."""

# B batch · G global views · V all views · K prototypes · D hidden

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput

from ..configuration.configuration_dino import DINOConfig
from ..configuration.configuration_dinov2 import DINOv2Config
from .teacher_targets import TeacherTargets


@dataclass
class DINOOutput(ModelOutput):
    """Output of SelfViTForDINO.

    Args:
        loss: Scalar, float32; cross-entropy in nats, mean over pairs of different views and over
            images, plus `koleo_weight` times the KoLeo regularizer.
        teacher_entropy: Scalar; entropy of the teacher's output in nats, mean over global views and
            images. It approaches 0 if the teacher collapses to one prototype, and ln K if it
            collapses to a uniform output.
    """

    loss: Tensor | None = None
    teacher_entropy: Tensor | None = None


EPS = 1e-12  # of F.normalize
PROTOTYPES_AT_A_TIME = 8192


class NormalizedLinear(torch.autograd.Function):
    """`F.linear` whose weight is `F.normalize` of its rows times fixed magnitudes.

    The whole weight is never in memory: it is computed for some prototypes at a time, and again in
    the backward pass. With 65,536 prototypes, each copy of it would have 64 MiB. For up to
    `PROTOTYPES_AT_A_TIME`, results and gradients are those of the two operations bit for bit.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, directions: Tensor, magnitudes: Tensor) -> Tensor:
        """(*, bottleneck), (K, bottleneck) and (K, 1) -> (*, K)."""
        norms = directions.norm(dim=-1, keepdim=True)
        ctx.save_for_backward(features, directions, norms, magnitudes)
        logits = [
            F.linear(features, _unit_rows(*part).mul_(part_magnitudes).to(features.dtype))
            for *part, part_magnitudes in _split(directions, norms, magnitudes)
        ]
        return torch.cat(logits, dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of features and directions."""
        features, directions, norms, magnitudes = ctx.saved_tensors
        inputs = features.flatten(0, -2)  # (N, bottleneck)
        of_features = torch.zeros_like(inputs, dtype=torch.float32)
        of_directions = torch.empty_like(directions)
        of_logits = gradients[0].flatten(0, -2).split(PROTOTYPES_AT_A_TIME, dim=-1)
        parts = _split(of_directions, directions, norms, magnitudes)
        for of_part, (result, rows, sizes, scales) in zip(of_logits, parts, strict=True):
            units = _unit_rows(rows, sizes)
            of_features += of_part @ (units * scales).to(of_part.dtype)
            of_units = (of_part.T @ inputs) * scales
            lengths = sizes.clamp_min(EPS)
            of_lengths = (-of_units * (units / lengths)).sum(dim=-1, keepdim=True)
            of_lengths.masked_fill_(sizes < EPS, 0)
            torch.div(of_units, lengths, out=result)
            result += of_lengths * (rows / sizes).masked_fill_(sizes == 0, 0)
        return of_features.to(features.dtype).view_as(features), of_directions, None


def _split(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.split(PROTOTYPES_AT_A_TIME) for tensor in tensors), strict=True)


def _unit_rows(rows: Tensor, norms: Tensor) -> Tensor:
    return rows / norms.clamp_min(EPS)


class DINOLastLayer(nn.Module):
    """Weight-normalized linear layer without bias (Sec. 3.2, Appendix C).

    Logits are cosines (the inputs have norm 1) times a magnitude. Direction and magnitude are plain
    tensors, because transformers renames torch's `weight_g` and `weight_v` while loading.
    """

    def __init__(self, in_features: int, out_features: int, train_magnitude: bool):
        super().__init__()
        self.direction = nn.Parameter(torch.empty(out_features, in_features))
        magnitude = torch.ones(out_features, 1)
        if train_magnitude:
            self.magnitude = nn.Parameter(magnitude)
        else:
            self.register_buffer("magnitude", magnitude)

    def reset_parameters(self) -> None:
        """Draw directions uniformly in +-1/sqrt(bottleneck), and set magnitudes to 1."""
        bound = 1 / math.sqrt(self.direction.shape[1])
        init.uniform_(self.direction, -bound, bound)
        init.ones_(self.magnitude)

    def forward(self, features: Tensor) -> Tensor:
        """(*, bottleneck) -> (*, K)."""
        if self.magnitude.requires_grad:
            return F.linear(features, F.normalize(self.direction, dim=-1) * self.magnitude)
        logits: Tensor = NormalizedLinear.apply(features, self.direction, self.magnitude)
        return logits


class DINOHead(nn.Module):
    """Projection head: MLP with GELU, L2 normalization, weight-normalized layer (Appendix C)."""

    def __init__(self, in_features: int, config: DINOConfig | DINOv2Config):
        super().__init__()
        widths = (
            [in_features]
            + [config.head_hidden_size] * (config.num_head_layers - 1)
            + [config.head_bottleneck_size]
        )
        self.layers = nn.ModuleList(
            [nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)]
        )
        self.last_layer = DINOLastLayer(
            config.head_bottleneck_size,
            config.num_prototypes,
            train_magnitude=not config.normalize_last_layer,
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, K)."""
        for layer in self.layers[:-1]:
            features = F.gelu(layer(features))
        features = self.layers[-1](features)
        # float32, because in fp16 the squared norm can overflow and epsilon (1e-12) is 0
        features = F.normalize(features.float(), dim=-1).to(features.dtype)
        return self.last_layer(features)


class DINOLoss(TeacherTargets):
    """Cross-entropy between teacher and student over pairs of different views (Sec. 3.1, Alg. 1).

    The loss owns the center of the teacher's outputs.
    """

    def forward(
        self, student_logits: Tensor, teacher_logits: Tensor, teacher_temperature: float
    ) -> DINOOutput:
        """Compute the loss, and accumulate the teacher's logits for the center.

        Args:
            student_logits: (V, B, K); the first G views are the global views, in the same order as
                the teacher's.
            teacher_logits: (G, B, K); no gradient flows into them.
            teacher_temperature: Unitless, above 0; smaller is sharper.

        Raises:
            ValueError: If there is no pair of different views, or the shapes do not match.
        """
        num_views, num_global_views = len(student_logits), len(teacher_logits)
        if (
            num_views < 2
            or not 1 <= num_global_views <= num_views
            or student_logits.shape[1:] != teacher_logits.shape[1:]
        ):
            raise ValueError(
                "student_logits must be (views, batch, prototypes) with at least 2 views, and "
                "teacher_logits the same for the global views, which come first; got "
                f"{tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}. Pass at least "
                "two global views, or one and local views."
            )
        with torch.autocast(student_logits.device.type, enabled=False):
            student_logits = student_logits.float() / self.student_temperature
            teacher_logits = teacher_logits.detach().float()
            self.accumulate_for_center(teacher_logits)
            teacher_log_probabilities = self.teacher_log_probabilities(
                teacher_logits, teacher_temperature
            )
            teacher_probabilities = teacher_log_probabilities.exp()  # (G, B, K)

            # A teacher's row p sums to 1, so its cross-entropy with view v is
            # logsumexp(s_v) - <p, s_v>. The sum over the V - 1 other views needs no log-softmax
            # per pair.
            others = student_logits.sum(dim=0) - student_logits[:num_global_views]  # (G, B, K)
            agreement = (teacher_probabilities * others).sum(dim=(0, 2))  # (B,)
            log_normalizer = student_logits.logsumexp(dim=-1)  # (V, B)
            # a global view is not compared with itself
            own = log_normalizer[:num_global_views].sum(dim=0)
            normalizers = num_global_views * log_normalizer.sum(dim=0) - own  # (B,)
            num_pairs = num_global_views * (num_views - 1)
            loss = (normalizers - agreement).mean() / num_pairs
            entropy = -(teacher_probabilities * teacher_log_probabilities).sum(dim=-1).mean()
        return DINOOutput(loss=loss, teacher_entropy=entropy)


__all__ = ["DINOHead", "DINOLastLayer", "DINOLoss", "DINOOutput", "NormalizedLinear"]
