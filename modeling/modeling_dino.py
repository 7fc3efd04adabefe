"""DINO: a student predicts the output of a momentum teacher for other views (arXiv 2104.14294).

DINO adds to the encoder a projection head, a teacher with the architecture of the student, and a
center of the teacher's outputs.
"""

# B batch · G global views · V all views · K prototypes · D hidden

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils.generic import can_return_tuple

from ..configuration.configuration_selfvit import SelfViTConfig
from .dino_head import DINOHead, DINOLastLayer, DINOLoss, DINOOutput
from .koleo import koleo_loss
from .modeling_selfvit import SelfViTModel, SelfViTPreTrainedModel
from .momentum_teacher import MomentumTeacher
from .observations import mean_cosine
from .schedules import cosine_schedule, linear_schedule


class DINONetwork(nn.Module):
    """Encoder with projection head: the student."""

    def __init__(self, config: SelfViTConfig):
        super().__init__()
        self.vit = SelfViTModel(config)
        self.head = DINOHead(config.hidden_size, config.dino_config)


class SelfViTForDINO(MomentumTeacher, SelfViTPreTrainedModel):
    """DINO with a teacher and a student.

    `vit` and `head` are the teacher, which embeds images; `student` is trained.
    """

    main_input_name = "global_views"
    objective_field = "dino_config"
    _no_split_modules = ["SelfViTPatchEmbeddings", "SelfViTEmbeddings", "SelfViTLayer", "DINOHead"]
    _keep_in_fp32_modules_strict = ["loss"]  # the center: its updates are too small for bf16

    def __init__(self, config: SelfViTConfig):
        super().__init__(config)
        dino = config.dino_config
        self.vit = SelfViTModel(config)
        self.head = DINOHead(config.hidden_size, config.dino_config)
        self.student = DINONetwork(config)
        self.loss = DINOLoss(dino.num_prototypes, dino.student_temperature, dino.center_momentum)
        self.post_init()
        self.init_teacher_from_student()
        self.train()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize one module, as in the encoder except for the following.

        Last layer of the head: directions uniform in +-1/sqrt(bottleneck) (torch's default for a
        linear layer), magnitudes 1. Center: 0.
        """
        super()._init_weights(module)
        if isinstance(module, DINOLastLayer):
            module.reset_parameters()
        elif isinstance(module, DINOLoss):
            init.zeros_(module.center)

    def train(self, mode: bool = True) -> SelfViTForDINO:
        """Set the mode of the student. The teacher stays in evaluation mode, without gradients.

        Drop path therefore applies to the student only. `from_pretrained` calls this last, which
        disables the gradients of a loaded teacher.
        """
        super().train(mode)
        for teacher in (self.vit, self.head):
            teacher.train(False).requires_grad_(False)
        return self

    @can_return_tuple
    def forward(
        self,
        global_views: Tensor,
        local_views: Tensor | None = None,
        teacher_temperature: float | None = None,
    ) -> DINOOutput:
        """Compute the loss of one (micro-)batch of views.

        Args:
            global_views: (G, B, C, H, W) views for teacher and student; G is 2 in the paper.
            local_views: (V - G, B, C, h, w) smaller crops for the student only, or None.
            teacher_temperature: Unitless; `teacher_temperature` of the configuration if None.

        Returns:
            Loss and teacher_entropy.
        """
        if teacher_temperature is None:
            teacher_temperature = self.config.dino_config.teacher_temperature
        num_global_views, batch_size = global_views.shape[:2]
        with torch.no_grad():
            (teacher_features,) = self.vit.class_tokens(global_views.flatten(0, 1))
            teacher_logits = self.head(teacher_features)  # (G * B, K)

        # one batch per size of crops for the encoder, one batch of all crops for the head
        crops = (
            [global_views]
            if local_views is None or len(local_views) == 0
            else [global_views, local_views]
        )
        features = [self.student.vit.class_tokens(views.flatten(0, 1))[0] for views in crops]
        student_logits = self.student.head(torch.cat(features))  # (V * B, K)
        teacher_logits = teacher_logits.unflatten(0, (num_global_views, batch_size))
        outputs = self.loss(
            student_logits.unflatten(0, (-1, batch_size)), teacher_logits, teacher_temperature
        )
        if self.training and self.observations is not None:
            with torch.no_grad():
                self.observations.record(
                    teacher_features[:batch_size],  # one view per image
                    self.loss.teacher_log_probabilities(
                        teacher_logits.float(), teacher_temperature
                    ),
                    kl_teacher_student=outputs.loss - outputs.teacher_entropy,
                    student_teacher_cosine=mean_cosine(features[0], teacher_features),
                    center_norm=self.loss.center.norm(),
                )
        koleo_weight = self.config.dino_config.koleo_weight
        if koleo_weight:
            global_features = features[0].unflatten(0, (num_global_views, batch_size))
            outputs.loss = outputs.loss + koleo_weight * koleo_loss(global_features)
        return outputs

    def trained_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Return names and parameters of the student."""
        return self.student.named_parameters(prefix="student")

    def scheduled_values(self, step: int, num_steps: int) -> dict[str, float]:
        """Return the teacher's temperature: a linear warm-up, then constant (Sec. 3.2)."""
        dino = self.config.dino_config
        num_warmup_steps = round(dino.teacher_temperature_warmup_ratio * num_steps)
        temperature = linear_schedule(
            step, num_warmup_steps, dino.warmup_teacher_temperature, dino.teacher_temperature
        )
        return {"teacher_temperature": temperature}

    def before_optimizer_step(self, step: int, num_steps: int) -> None:
        """Freeze the last layer in the first steps (Appendix D, "Training stability")."""
        if step < round(self.config.dino_config.freeze_last_layer_ratio * num_steps):
            for parameter in self.student.head.last_layer.parameters():
                parameter.grad = None

    def after_optimizer_step(self, step: int, num_steps: int) -> dict[str, float]:
        """Update the teacher, with momentum along a cosine (Sec. 3.1), and the center."""
        dino = self.config.dino_config
        momentum = cosine_schedule(
            step, num_steps, dino.teacher_momentum, dino.teacher_momentum_end
        )
        self.update_teacher(momentum)
        self.loss.update_center()
        return {"teacher_momentum": momentum}


__all__ = ["SelfViTForDINO"]
