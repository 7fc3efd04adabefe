"""DINO: a student predicts the output of a momentum teacher for other views (arXiv 2104.14294).

DINO adds to the encoder a projection head, a teacher with the architecture of the student, and a
center of the teacher's outputs.
"""

# B batch · G global views · V all views · K prototypes · D hidden

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.utils.generic import can_return_tuple

from ..configuration.configuration_dino import DINOConfig
from ..configuration.configuration_dinov2 import DINOv2Config
from ..configuration.configuration_selfvit import SelfViTConfig
from .koleo import koleo_loss
from .modeling_selfvit import SelfViTModel, SelfViTPreTrainedModel
from .momentum_teacher import MomentumTeacher
from .observations import mean_cosine
from .schedules import cosine_schedule, linear_schedule
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
        return F.linear(features, F.normalize(self.direction, dim=-1) * self.magnitude)


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

    def __init__(
        self,
        num_prototypes: int,
        student_temperature: float,
        center_momentum: float,
        sinkhorn_iterations: int = 0,
    ):
        super().__init__(num_prototypes, center_momentum, sinkhorn_iterations)
        self.student_temperature = student_temperature

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


__all__ = ["DINOHead", "DINOLoss", "DINOOutput", "SelfViTForDINO"]
