"""Distillation: a student of any size learns the similarities of a frozen teacher.

Both networks see the same view of an image. For the global loss, the similarities of an image to
the teacher's vectors of other images, which are kept in a queue (SEED, arXiv 2101.04731), are those
of the teacher. For the local loss, the similarities between the patches of an image are. Two linear
layers map the student's features to the width of the teacher.

Views are the same for both networks, images are blended with each other, and long schedules help
(arXiv 2106.05237).
"""

# B batch · C channels · H, W pixels · N patches · D student hidden · E teacher hidden
# M queue · Q vectors that an image is compared with

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.utils.generic import can_return_tuple

from ..configuration.configuration_distill import DistillConfig
from ..configuration.configuration_selfvit import SelfViTConfig
from .distributed import StepMetrics, all_gather
from .frozen_teacher import FrozenTeacher, TeacherFeatures, open_teacher
from .modeling_selfvit import SelfViTModel, SelfViTPreTrainedModel
from .observations import mean_cosine

# Logit of an empty row of the queue. Its probability is 0; with -inf, KL would be NaN.
EMPTY = -1e4


@dataclass
class DistillOutput(ModelOutput):
    """Output of SelfViTForDistill. All values are float32 scalars.

    Args:
        loss: Sum of `global_loss` and `local_weight` times `local_loss`.
        global_loss: Divergence of the student's similarities to the queue, in nats, mean over
            images.
        local_loss: Divergence of its similarities between patches, in nats, mean over patches; None
            if `local_weight` is 0.
    """

    loss: Tensor | None = None
    global_loss: Tensor | None = None
    local_loss: Tensor | None = None


def mix_images(pixel_values: Tensor, mixing: Tensor) -> Tensor:
    """Blend each image with another one of the batch (mixup, arXiv 1710.09412), with one share.

    Args:
        pixel_values: (B, C, H, W).
        mixing: (B, 2) random numbers from 0 to 1. The order of the first ones is the permutation of
            the images; the second number of the first image is the share that all images keep.

    Returns:
        (B, C, H, W).
    """
    partners = mixing[:, 0].argsort()
    share = mixing[0, 1].to(pixel_values.dtype)
    return pixel_values[partners].lerp(pixel_values, share)


def resize_patches(patches: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Resize patches to another grid, bilinearly: (B, N, E) -> (B, N', E)."""
    if grid == new_grid:
        return patches
    maps = patches.transpose(1, 2).unflatten(2, grid)  # (B, E, rows, columns)
    maps = F.interpolate(maps, size=new_grid, mode="bilinear", align_corners=False)
    return maps.flatten(2).transpose(1, 2)


def global_loss(
    student: Tensor,
    teacher: Tensor,
    queue: Tensor,
    temperature: float,
    is_filled: Tensor | None = None,
) -> Tensor:
    """Return KL(teacher || student) of the similarities to a queue (SEED, arXiv 2101.04731).

    Args:
        student: (B, E) float32, rows of length 1.
        teacher: (B, E) float32, rows of length 1.
        queue: (Q, E) float32 vectors of the teacher.
        temperature: Unitless, above 0; smaller is sharper.
        is_filled: (Q,) bool; rows with False are left out. None for all rows.

    Returns:
        Scalar in nats, mean over images.
    """
    logits = [vectors @ queue.T / temperature for vectors in (student, teacher)]  # (B, Q)
    if is_filled is not None:
        logits = [values.masked_fill(~is_filled, EMPTY) for values in logits]
    return _divergence(*logits)


def local_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return KL(teacher || student) of the similarities between the patches of an image.

    Gradients flow through both sides of the student's similarities.

    Args:
        student: (B, N, E) float32, rows of length 1.
        teacher: (B, N, E) float32, rows of length 1.
        temperature: Unitless, above 0; smaller is sharper.

    Returns:
        Scalar in nats, mean over images and patches.
    """
    logits = [patches @ patches.mT / temperature for patches in (student, teacher)]  # (B, N, N)
    return _divergence(*(values.flatten(0, 1) for values in logits))


def _divergence(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return KL(teacher || student) of two softmaxes, mean over rows."""
    return F.kl_div(
        F.log_softmax(student_logits, dim=-1),
        F.log_softmax(teacher_logits, dim=-1),
        reduction="batchmean",
        log_target=True,
    )


class DistillHead(nn.Module):
    """Linear layers from the student's features to the width of the teacher."""

    def __init__(self, hidden_size: int, config: DistillConfig):
        super().__init__()
        width = config.teacher_hidden_size
        self.global_projection = nn.Linear(hidden_size, width)
        self.local_projection = nn.Linear(hidden_size, width) if config.local_weight else None

    def forward(self, class_tokens: Tensor, patches: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, D) and (B, N, D) -> (B, E) and (B, N, E), or None without a local loss."""
        local = None if self.local_projection is None else self.local_projection(patches)
        return self.global_projection(class_tokens), local


class DistillLoss(nn.Module):
    """Global loss through a queue of teacher vectors, and local loss.

    The loss owns the queue: the newest teacher vectors of all processes, the newest first. An image
    is compared with the vectors of its own batch and with those of the queue, M in total and at
    least its batch. `update_queue` adds the batch once per optimizer step, so the loss itself
    changes nothing. The queue is saved with the model, and a resumed run continues with it.

    With gradient accumulation, the batch is a micro-batch: images are not compared with those of
    the other micro-batches of a step. Accumulation is therefore not exactly equivalent to a larger
    batch.
    """

    queue: Tensor  # (M, E) float32; rows of length 1, and rows of 0 until it is full

    def __init__(self, config: DistillConfig):
        super().__init__()
        self.config = config
        shape = (config.queue_size, config.teacher_hidden_size)
        self.register_buffer("queue", torch.zeros(shape, dtype=torch.float32))
        self._pending: list[Tensor] = []  # teacher vectors of the micro-batches of this step

    def forward(
        self,
        class_tokens: Tensor,
        patches: Tensor | None,
        grid: tuple[int, int],
        teacher: TeacherFeatures,
    ) -> DistillOutput:
        """Compute the loss of the images of a (micro-)batch.

        Args:
            class_tokens: (B, E) projected class tokens of the student.
            patches: (B, N, E) projected patches of the student; None without a local loss.
            grid: Number of rows and of columns of the student's patches.
            teacher: Features of the teacher for the same images.
        """
        config, temperature = self.config, self.config.temperature
        with torch.autocast(class_tokens.device.type, enabled=False):
            student_vectors = F.normalize(class_tokens.float(), dim=-1)
            teacher_vectors = F.normalize(teacher.class_tokens.detach().float(), dim=-1)
            batch, _ = all_gather(teacher_vectors, dim=0)
            if self.training:
                self._pending.append(batch)
            num_compared = max(config.queue_size, len(batch))
            compared = torch.cat([batch, self.queue.float()])[:num_compared]  # (Q, E)
            is_filled = compared.any(dim=1)
            loss = first = global_loss(
                student_vectors, teacher_vectors, compared, temperature, is_filled
            )
            second = None
            if patches is not None:
                resized = resize_patches(patches.float(), grid, teacher.grid)
                second = local_loss(
                    F.normalize(resized, dim=-1),
                    F.normalize(teacher.patches.detach().float(), dim=-1),
                    temperature,
                )
                loss = first + config.local_weight * second
        return DistillOutput(loss=loss, global_loss=first, local_loss=second)

    @torch.no_grad()
    def update_queue(self) -> None:
        """Add the teacher vectors since the last call, and drop the oldest ones."""
        if self._pending:
            newest = torch.cat([*reversed(self._pending), self.queue])
            self.queue.copy_(newest[: len(self.queue)])
            self._pending = []


class SelfViTForDistill(SelfViTPreTrainedModel):
    """Distillation: `vit` is the student, which is trained and embeds images.

    The teacher is opened at the first `forward`, or by `load_teacher`. A checkpoint opens without
    it.
    """

    objective_field = "distill_config"
    run_buffers = ("loss.queue",)
    _no_split_modules = [
        "SelfViTPatchEmbeddings",
        "SelfViTEmbeddings",
        "SelfViTLayer",
        "DistillHead",
    ]
    _keep_in_fp32_modules_strict = ["loss"]  # vectors have length 1

    def __init__(self, config: SelfViTConfig):
        super().__init__(config)
        self.vit = SelfViTModel(config)
        self.head = DistillHead(config.hidden_size, config.distill_config)
        self.loss = DistillLoss(config.distill_config)
        self._teacher: FrozenTeacher | None = None
        self._metrics = StepMetrics()
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize one module, as in the encoder except for the following.

        Queue: empty, all rows 0.
        """
        super()._init_weights(module)
        if isinstance(module, DistillLoss):
            init.zeros_(module.queue)

    def load_teacher(self, teacher: FrozenTeacher | None = None) -> FrozenTeacher:
        """Open the teacher, unless it is open already, or use another one.

        Args:
            teacher: Teacher to use from now on; None for the one that the configuration names.

        Raises:
            FileNotFoundError: If the teacher cannot be found or opened.
            ValueError: If the configuration names no teacher, or its weights are not those that the
                student was trained with.
        """
        if teacher is not None:
            self._teacher = teacher
        if self._teacher is None:
            distill = self.config.distill_config
            self._teacher = open_teacher(distill.teacher, distill.teacher_revision)
        return self._teacher

    def outside_parameters(self) -> Iterable[nn.Parameter]:
        """Return the parameters of the teacher."""
        return self.load_teacher().parameters()

    @can_return_tuple
    def forward(self, pixel_values: Tensor, mixing: Tensor | None = None) -> DistillOutput:
        """Compute the loss of one (micro-)batch of images.

        Args:
            pixel_values: (B, C, H, W) images, normalized by the mean and std of the teacher; H and
                W are multiples of the patch sizes of student and teacher.
            mixing: (B, 2) random numbers from 0 to 1 for `mix_images`. Drawn if None. Without
                `mixup`, and in evaluation mode, images are not mixed.

        Returns:
            Loss and its terms.

        Raises:
            FileNotFoundError: If the teacher cannot be found or opened.
            ValueError: If the teacher does not fit the images or the configuration.
        """
        distill = self.config.distill_config
        if self.training and distill.mixup:
            if mixing is None:
                mixing = torch.rand(len(pixel_values), 2, device=pixel_values.device)
            pixel_values = mix_images(pixel_values, mixing)
        teacher = self.load_teacher()(pixel_values)
        if teacher.class_tokens.shape[-1] != distill.teacher_hidden_size:
            raise ValueError(
                f"teacher_hidden_size ({distill.teacher_hidden_size}) must be the width of the "
                f"teacher's vectors, {teacher.class_tokens.shape[-1]}."
            )
        hidden_states = self.vit(pixel_values).last_hidden_state
        grid = self.vit.embeddings.patch_embeddings.grid_of(pixel_values)
        class_tokens = hidden_states[:, 0]
        projected, patches = self.head(
            class_tokens, hidden_states[:, self.config.num_prefix_tokens :]
        )
        output = self.loss(projected, patches, grid, teacher)
        if self.training:
            self._metrics.add(**{name: output[name] for name in output if name != "loss"})
        if self.training and self.observations is not None:
            self.observations.record(
                class_tokens,
                student_teacher_cosine=mean_cosine(projected, teacher.class_tokens),
            )
        return output

    @torch.no_grad()
    def start_new_run(self) -> None:
        """Empty the queue, whose vectors may be those of another teacher."""
        self.loss.queue.zero_()

    def after_optimizer_step(self, step: int, num_steps: int) -> dict[str, float]:
        """Add the teacher's vectors of this step to the queue."""
        self.loss.update_queue()
        return self._metrics.take()


__all__ = [
    "DistillHead",
    "DistillLoss",
    "DistillOutput",
    "SelfViTForDistill",
    "global_loss",
    "local_loss",
    "mix_images",
    "resize_patches",
]
