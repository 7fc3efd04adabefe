"""DINOv2: DINO's loss on class tokens and iBOT's loss on masked patches (arXiv 2304.07193).

The student sees global views with masked patches, and local views. Its class tokens predict the
teacher's class tokens of other views (DINO), and its masked patches the teacher's patches of the
same view, which the teacher sees unmasked (iBOT, arXiv 2111.07832). KoLeo spreads the class tokens.
Gram anchoring (DINOv3, arXiv 2508.10104, Sec. 4) keeps the similarities of patches close to those
of a frozen network.

Where implementations differ, this one follows the equations of the papers:

- Sinkhorn-Knopp works in the log domain; the reference overflows for large logits.
- The class loss is the mean over pairs of different views, also without local views; the reference
  divides by 3 instead of 2 then.
- The center of the patches moves by masked patches only, as in DINOv2; in iBOT, by all of them.
- Neighbors in KoLeo are images of all processes, so that the loss does not depend on their number.
- A mask belongs to its image, and half of the global views are masked, one per image. The reference
  draws the masked views and their ratios per batch of a process.
"""

# B batch · G global views · V all views · I global views of all images, G * B · N patches of a view
# M masked patches of all views · K prototypes · D hidden

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.utils.generic import can_return_tuple

from ..configuration.configuration_dinov2 import DINOv2Config
from ..configuration.configuration_selfvit import SelfViTConfig
from .dino_head import DINOHead, DINOLastLayer, DINOLoss
from .distributed import StepMetrics
from .gram import gram_loss
from .koleo import koleo_loss
from .modeling_selfvit import SelfViTModel, SelfViTPreTrainedModel
from .momentum_teacher import MomentumTeacher, copy_student
from .observations import mean_cosine
from .schedules import cosine_schedule, linear_schedule
from .teacher_targets import TeacherTargets

TERMS = ("class_loss", "patch_loss", "koleo", "gram")


@dataclass
class DINOv2Output(ModelOutput):
    """Output of SelfViTForDINOv2. All values are float32 scalars.

    Args:
        loss: Sum of the terms, each times its weight in the configuration.
        class_loss: Cross-entropy of class tokens in nats, mean over pairs of different views and
            over images.
        patch_loss: Cross-entropy of masked patches in nats, mean over the patches of a view, then
            over all global views, where a view without a mask counts as 0.
        teacher_entropy: Entropy of the teacher's class tokens in nats, mean over global views and
            images.
        koleo: KoLeo regularizer, sum over global views. None if its weight is 0.
        gram: Difference of patch similarities from those of the Gram teacher. None if its weight
            is 0.
    """

    loss: Tensor | None = None
    class_loss: Tensor | None = None
    patch_loss: Tensor | None = None
    teacher_entropy: Tensor | None = None
    koleo: Tensor | None = None
    gram: Tensor | None = None


def masked_patches(bool_masked_pos: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places of masked patches and their weights in the mean over views.

    Args:
        bool_masked_pos: (I, N) bool; False is keep, True is mask.

    Returns:
        Indices (M,) into the patches of all views, I * N, in their order. Weights (M,) float32,
        1 / (masked patches of its view * I); the weights of a masked view sum to 1 / I.
    """
    num_views, num_patches = bool_masked_pos.shape
    ids = bool_masked_pos.flatten().nonzero().squeeze(1)
    weights = 1 / (num_views * bool_masked_pos.sum(dim=1).float())  # (I,)
    return ids, weights[ids // num_patches]


class DINOv2Head(nn.Module):
    """Projection heads of class tokens and patches; one head for both, unless they are separate."""

    def __init__(self, in_features: int, config: DINOv2Config):
        super().__init__()
        self.class_head = DINOHead(in_features, config)
        self.patch_head = DINOHead(in_features, config) if config.separate_patch_head else None

    def forward(self, class_tokens: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) and (M, D) -> (B, K) and (M, K)."""
        if self.patch_head is not None:
            return self.class_head(class_tokens), self.patch_head(patches)
        logits = self.class_head(torch.cat([class_tokens, patches]))
        return logits[: len(class_tokens)], logits[len(class_tokens) :]

    def last_layers(self) -> list[DINOLastLayer]:
        """Return the last layer of each head."""
        heads = [self.class_head] if self.patch_head is None else [self.class_head, self.patch_head]
        return [head.last_layer for head in heads]


class PatchLoss(TeacherTargets):
    """Cross-entropy between teacher and student on masked patches (iBOT, arXiv 2111.07832).

    The loss owns the center of the teacher's masked patches.
    """

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        weights: Tensor,
        teacher_temperature: float,
    ) -> Tensor:
        """Return the loss, and accumulate the teacher's logits for the center.

        Args:
            student_logits: (M, K) of the masked patches of this process; M may be 0.
            teacher_logits: (M, K) of the same patches; no gradient flows into them.
            weights: (M,) weights of the patches, see `masked_patches`.
            teacher_temperature: Unitless, above 0; smaller is sharper.

        Returns:
            Scalar, float32.
        """
        with torch.autocast(student_logits.device.type, enabled=False):
            student_logits = student_logits.float() / self.student_temperature
            teacher_logits = teacher_logits.detach().float()
            self.accumulate_for_center(teacher_logits)
            targets = self.teacher_log_probabilities(teacher_logits, teacher_temperature).exp()
            # log_softmax, since logsumexp does not compile for a number of rows that varies
            cross_entropy = -(targets * F.log_softmax(student_logits, dim=-1)).sum(dim=-1)  # (M,)
            return (weights * cross_entropy).sum()


class DINOv2Loss(nn.Module):
    """Losses of class tokens and masked patches, each with its own center."""

    def __init__(self, config: DINOv2Config):
        super().__init__()
        settings = (
            config.num_prototypes,
            config.student_temperature,
            config.center_momentum,
            config.sinkhorn_iterations,
        )
        self.class_loss = DINOLoss(*settings)
        self.patch_loss = PatchLoss(*settings)

    def update_centers(self) -> None:
        """Move both centers, once per optimizer step."""
        self.class_loss.update_center()
        self.patch_loss.update_center()


class DINOv2Network(nn.Module):
    """Encoder with projection heads: the student."""

    def __init__(self, config: SelfViTConfig):
        super().__init__()
        self.vit = SelfViTModel(config)
        self.head = DINOv2Head(config.hidden_size, config.dinov2_config)


class GramTeacher(nn.Module):
    """Frozen encoder whose patch similarities the student keeps."""

    def __init__(self, config: SelfViTConfig):
        super().__init__()
        self.vit = SelfViTModel(config)


class SelfViTForDINOv2(MomentumTeacher, SelfViTPreTrainedModel):
    """DINOv2 with a teacher and a student, and with Gram anchoring also a frozen Gram teacher.

    `vit` and `head` are the teacher, which embeds images; `student` is trained. `gram_teacher`
    exists if `gram_weight` is above 0. It is a copy of the encoder that the run starts from, and
    is saved with the other weights, so a run can be resumed where that encoder is not available.
    """

    main_input_name = "global_views"
    objective_field = "dinov2_config"
    uses_mask_token = True
    _no_split_modules = [
        "SelfViTPatchEmbeddings",
        "SelfViTEmbeddings",
        "SelfViTLayer",
        "DINOv2Head",
    ]
    _keep_in_fp32_modules_strict = ["loss"]  # the centers: their updates are too small for bf16
    _keys_to_ignore_on_load_unexpected = [r"^gram_teacher\."]  # of a run with Gram anchoring

    def __init__(self, config: SelfViTConfig):
        super().__init__(config)
        if not config.use_mask_token:
            raise ValueError(
                f"use_mask_token ({config.use_mask_token}) must be True for SelfViTForDINOv2, "
                "which replaces masked patches by a mask token; pass use_mask_token=True."
            )
        self.vit = SelfViTModel(config)
        self.head = DINOv2Head(config.hidden_size, config.dinov2_config)
        self.student = DINOv2Network(config)
        has_anchor = config.dinov2_config.gram_weight > 0
        self.gram_teacher = GramTeacher(config) if has_anchor else None
        self.loss = DINOv2Loss(config.dinov2_config)
        self._metrics = StepMetrics()
        self.post_init()
        self.init_teacher_from_student()
        self.init_gram_teacher()
        self.train()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize one module, as in the encoder except for the following.

        Last layers of the heads: as in DINO. Centers: 0.
        """
        super()._init_weights(module)
        if isinstance(module, DINOLastLayer):
            module.reset_parameters()
        elif isinstance(module, TeacherTargets):
            init.zeros_(module.center)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint. Without a Gram teacher in it, its encoder becomes the Gram teacher.

        Args:
            pretrained_model_name_or_path: Checkpoint folder or Hub id.
            args: Positional arguments for transformers' `from_pretrained`.
            kwargs: Keyword arguments for transformers' `from_pretrained`.
        """
        with_loading_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
        )
        missing = {name for name in info["missing_keys"] if name.startswith("gram_teacher.")}
        has_encoder = not any(name.startswith("vit.") for name in info["missing_keys"])
        if missing and has_encoder:
            model.init_gram_teacher()
            info["missing_keys"] = set(info["missing_keys"]) - missing
        return (model, info) if with_loading_info else model

    def init_gram_teacher(self) -> None:
        """Copy the teacher's encoder to the Gram teacher, if there is one."""
        if self.gram_teacher is not None:
            copy_student(self.vit, self.gram_teacher.vit)

    def init_student_from_teacher(self) -> None:
        """Copy the encoder that the run starts from to the student and to the Gram teacher."""
        super().init_student_from_teacher()
        self.init_gram_teacher()

    def start_new_run(self) -> None:
        """Replace the Gram teacher of the checkpoint, which is of an earlier start."""
        self.init_gram_teacher()

    def train(self, mode: bool = True) -> SelfViTForDINOv2:
        """Set the mode of the student; teachers stay in evaluation mode, without gradients."""
        super().train(mode)
        for teacher in (self.vit, self.head, self.gram_teacher):
            if teacher is not None:
                teacher.train(False).requires_grad_(False)
        return self

    @can_return_tuple
    def forward(
        self,
        global_views: Tensor,
        local_views: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        gram_views: Tensor | None = None,
        teacher_temperature: float | None = None,
    ) -> DINOv2Output:
        """Compute the loss of one (micro-)batch of views.

        Args:
            global_views: (G, B, C, H, W) views for teacher and student; G is 2 in the paper.
            local_views: (V - G, B, C, h, w) smaller crops for the student only, or None.
            bool_masked_pos: (G, B, N); patches with True (1) are masked for the student. None
                masks nothing, which is an error in training.
            gram_views: (G, B, C, *, *) the global views in another resolution for the Gram teacher;
                the global views themselves if None.
            teacher_temperature: Unitless; `teacher_temperature` of the configuration if None.

        Returns:
            Loss, its terms and teacher_entropy.

        Raises:
            ValueError: If shapes do not match, masks are missing in training, or there are Gram
                views without a Gram teacher.
        """
        if teacher_temperature is None:
            teacher_temperature = self.config.dinov2_config.teacher_temperature
        shape = global_views.shape[:2]  # (G, B)
        images = global_views.flatten(0, 1)
        masks = self._masks(global_views, bool_masked_pos)  # (I, N)
        ids, weights = masked_patches(masks)
        with torch.no_grad():
            teacher_tokens, teacher_patches = self._tokens(self.vit, images)
            targets, patch_targets = self.head(teacher_tokens, teacher_patches.flatten(0, 1)[ids])

        # one batch per size of crops for the encoder, one batch of all rows for the head
        tokens, patches = self._tokens(self.student.vit, images, masks)  # (I, D), (I, N, D)
        class_tokens = [tokens]
        if local_views is not None and len(local_views):
            class_tokens += self.student.vit.class_tokens(local_views.flatten(0, 1))
        logits, patch_logits = self.student.head(
            torch.cat(class_tokens), patches.flatten(0, 1)[ids]
        )
        targets = targets.unflatten(0, shape)  # (G, B, K)
        classes = self.loss.class_loss(
            logits.unflatten(0, (-1, shape[1])), targets, teacher_temperature
        )
        output = DINOv2Output(
            class_loss=classes.loss,
            patch_loss=self.loss.patch_loss(
                patch_logits, patch_targets, weights, teacher_temperature
            ),
            teacher_entropy=classes.teacher_entropy,
            koleo=self._koleo(tokens.unflatten(0, shape)),
            gram=self._gram(patches, images, gram_views),
        )
        output.loss = self._weighted_sum(output)
        if self.training:
            self._metrics.add(**{name: output[name] for name in TERMS if name in output})
            self._observe(output, tokens, teacher_tokens, targets, teacher_temperature)
        return output

    def _masks(self, global_views: Tensor, bool_masked_pos: Tensor | None) -> Tensor:
        """Return the masks of all global views, (I, N) bool."""
        rows, columns = self.vit.embeddings.patch_embeddings.grid_of(global_views.flatten(0, 1))
        shape = (*global_views.shape[:2], rows * columns)
        if bool_masked_pos is None:
            weight = self.config.dinov2_config.patch_loss_weight
            if self.training and weight:
                raise ValueError(
                    f"patch_loss_weight ({weight}) needs masks in training; pass bool_masked_pos, "
                    "as the augmentation masked_multi_crop does, or set patch_loss_weight to 0."
                )
            bool_masked_pos = torch.zeros(shape, dtype=torch.bool, device=global_views.device)
        elif bool_masked_pos.shape != shape:
            raise ValueError(
                f"bool_masked_pos must be (global views, batch, patches), {shape}, got "
                f"{tuple(bool_masked_pos.shape)}; pass one value per patch, or None."
            )
        return bool_masked_pos.flatten(0, 1).bool()

    def _tokens(
        self, encoder: SelfViTModel, images: Tensor, masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return class tokens (I, D) and patches (I, N, D), normalized."""
        tokens = encoder(images, bool_masked_pos=masks).last_hidden_state
        return tokens[:, 0], tokens[:, self.config.num_prefix_tokens :]

    def _koleo(self, features: Tensor) -> Tensor | None:
        """Return the sum of the KoLeo regularizer over views, (G, B, D)."""
        if self.config.dinov2_config.koleo_weight == 0:
            return None
        return len(features) * koleo_loss(features)

    def _gram(self, patches: Tensor, images: Tensor, gram_views: Tensor | None) -> Tensor | None:
        """Compare the student's patches (I, N, D) with those of the Gram teacher."""
        if self.gram_teacher is None:
            if gram_views is not None:
                raise ValueError(
                    "gram_views are for the Gram teacher, which gram_weight (0) disables; set "
                    "gram_weight above 0, or leave out gram_views (gram_resolution_factor 1)."
                )
            return None
        views = images if gram_views is None else gram_views.flatten(0, 1)
        with torch.no_grad():
            anchors = self._tokens(self.gram_teacher.vit, views)[1]
        grid_of = self.vit.embeddings.patch_embeddings.grid_of
        return gram_loss(patches, anchors, grid_of(images), grid_of(views))

    def _weighted_sum(self, output: DINOv2Output) -> Tensor:
        config = self.config.dinov2_config
        loss = config.class_loss_weight * output.class_loss
        loss = loss + config.patch_loss_weight * output.patch_loss
        if output.koleo is not None:
            loss = loss + config.koleo_weight * output.koleo
        return loss if output.gram is None else loss + config.gram_weight * output.gram

    @torch.no_grad()
    def _observe(
        self,
        output: DINOv2Output,
        tokens: Tensor,
        teacher_tokens: Tensor,
        targets: Tensor,
        teacher_temperature: float,
    ) -> None:
        if self.observations is None:
            return
        assert output.class_loss is not None and output.teacher_entropy is not None
        class_loss = self.loss.class_loss
        self.observations.record(
            teacher_tokens[: targets.shape[1]],  # one view per image
            class_loss.teacher_log_probabilities(targets.float(), teacher_temperature),
            kl_teacher_student=output.class_loss - output.teacher_entropy,
            student_teacher_cosine=mean_cosine(tokens, teacher_tokens),
            center_norm=class_loss.center.norm(),
        )

    def trained_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Return names and parameters of the student."""
        return self.student.named_parameters(prefix="student")

    def scheduled_values(self, step: int, num_steps: int) -> dict[str, float]:
        """Return the teacher's temperature: a linear warm-up, then constant."""
        config = self.config.dinov2_config
        num_warmup_steps = round(config.teacher_temperature_warmup_ratio * num_steps)
        temperature = linear_schedule(
            step, num_warmup_steps, config.warmup_teacher_temperature, config.teacher_temperature
        )
        return {"teacher_temperature": temperature}

    def before_optimizer_step(self, step: int, num_steps: int) -> None:
        """Freeze the last layers in the first steps, as in DINO."""
        if step < round(self.config.dinov2_config.freeze_last_layer_ratio * num_steps):
            for last_layer in self.student.head.last_layers():
                for parameter in last_layer.parameters():
                    parameter.grad = None

    def after_optimizer_step(self, step: int, num_steps: int) -> dict[str, float]:
        """Update the teacher, with momentum along a cosine, and the centers."""
        config = self.config.dinov2_config
        momentum = cosine_schedule(
            step, num_steps, config.teacher_momentum, config.teacher_momentum_end
        )
        self.update_teacher(momentum)
        self.loss.update_centers()
        return {"teacher_momentum": momentum} | self._metrics.take()


__all__ = [
    "DINOv2Head",
    "DINOv2Loss",
    "DINOv2Output",
    "PatchLoss",
    "SelfViTForDINOv2",
    "masked_patches",
]
