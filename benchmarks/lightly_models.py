"""Objectives built from Lightly's encoders, heads, losses and masking.

Each class follows Lightly's example of the objective, with the interface of a selfvit model, so
that both sides of the comparison share the code for the optimizer, schedules and gradient clipping.
These models also implement what the papers describe but the examples omit: the teacher and its head
start as a copy of the student, prototypes are trained, the class token counts as a token in
masking, and focal views are not masked. Every model starts from the weights of the selfvit model
that it is compared with.
"""

# B batch · V views · R random views · N patches · T tokens · D hidden · K prototypes

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from lightly.loss import DINOLoss, KoLeoLoss, PMSNLoss
from lightly.models.modules import (
    DINOProjectionHead,
    MaskedVisionTransformerDecoderTIMM,
    MaskedVisionTransformerTIMM,
)
from lightly.models.modules.heads import MSNProjectionHead
from lightly.models.utils import (
    deactivate_requires_grad,
    get_at_index,
    normalize_mean_var,
    patchify,
    random_token_mask,
    repeat_token,
    set_at_index,
    update_momentum,
)
from torch import Tensor, nn

from benchmarks.lightly_encoder import build_encoder, timm_state
from selfvit import (
    SelfViTConfig,
    SelfViTForDINO,
    SelfViTForMAE,
    SelfViTForPMSN,
)
from selfvit.modeling.schedules import cosine_schedule, linear_schedule


@dataclass
class LightlyOutput:
    """Output of a step: the scalar loss."""

    loss: Tensor


class LightlyModel(nn.Module):
    """Base class with the interface of `SelfViTPreTrainedModel` for training.

    Args:
        config: Configuration of the selfvit model that it is compared with.
    """

    undecayed_parameters: tuple[str, ...] = ()

    def __init__(self, config: SelfViTConfig):
        super().__init__()
        self.config = config

    @property
    def encoder(self) -> MaskedVisionTransformerTIMM:
        """Network that computes the embeddings."""
        raise NotImplementedError

    def trained_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Return names and parameters that the optimizer trains."""
        return (
            (name, parameter)
            for name, parameter in self.named_parameters()
            if parameter.requires_grad
        )

    def scheduled_values(self, step: int, num_steps: int) -> dict[str, float]:
        """Return scheduled arguments of `forward` for a step."""
        return {}

    def before_optimizer_step(self, step: int, num_steps: int) -> None:
        """Modify gradients before a step of the optimizer."""

    def after_optimizer_step(self, step: int, num_steps: int) -> None:
        """Update parameters that the optimizer does not train."""


class LightlyDINO(LightlyModel):
    """DINO as in Lightly's example (each view separately), with the KoLeo loss in addition."""

    def __init__(self, start: SelfViTForDINO):
        super().__init__(start.config)
        dino = start.config.dino_config
        assert dino.num_head_layers == 3, "DINOProjectionHead has three layers before the last"
        # Local views have another size than the stored positions.
        self.student_backbone = build_encoder(start.student.vit, dynamic_img_size=True)
        self.student_head, self.teacher_head = (
            DINOProjectionHead(
                start.config.hidden_size,
                dino.head_hidden_size,
                dino.head_bottleneck_size,
                dino.num_prototypes,
                norm_last_layer=dino.normalize_last_layer,
            )
            for _ in range(2)
        )
        self._copy_head(start)
        self.teacher_backbone = copy.deepcopy(self.student_backbone)
        # weight_norm creates a tensor that deepcopy cannot copy.
        self.teacher_head.load_state_dict(self.student_head.state_dict())
        deactivate_requires_grad(self.teacher_backbone)
        deactivate_requires_grad(self.teacher_head)
        self.criterion = DINOLoss(
            output_dim=dino.num_prototypes,
            student_temp=dino.student_temperature,
            center_momentum=dino.center_momentum,
        )
        self.koleo = KoLeoLoss()
        self._schedules = start.scheduled_values

    @torch.no_grad()
    def _copy_head(self, start: SelfViTForDINO) -> None:
        linear = [layer for layer in self.student_head.layers if isinstance(layer, nn.Linear)]
        for theirs, ours in zip(linear, start.student.head.layers, strict=True):
            theirs.load_state_dict(ours.state_dict())
        last_layer = start.student.head.last_layer
        self.student_head.last_layer.weight_v.copy_(last_layer.direction)
        self.student_head.last_layer.weight_g.copy_(last_layer.magnitude)

    @property
    def encoder(self) -> MaskedVisionTransformerTIMM:
        """Encoder of the teacher."""
        return self.teacher_backbone

    def forward(
        self,
        global_views: Tensor,
        teacher_temperature: float,
        local_views: Tensor | None = None,
    ) -> LightlyOutput:
        """Return the loss of views (V, B, C, h, w)."""
        teacher_out = [self.teacher_head(self.teacher_backbone(view)) for view in global_views]
        views = [*global_views, *(() if local_views is None else local_views)]
        features = [self.student_backbone(view) for view in views]
        student_out = [self.student_head(feature) for feature in features]
        loss = self.criterion(teacher_out, student_out, teacher_temperature)
        weight = self.config.dino_config.koleo_weight
        if weight:
            of_views = [self.koleo(feature) for feature in features[: len(global_views)]]
            loss = loss + weight * sum(of_views) / len(of_views)
        return LightlyOutput(loss)

    def scheduled_values(self, step: int, num_steps: int) -> dict[str, float]:
        """Return the teacher temperature of a step, as in selfvit."""
        return self._schedules(step, num_steps)

    def before_optimizer_step(self, step: int, num_steps: int) -> None:
        """Freeze the last layer in the first steps; Lightly counts epochs, this counts steps."""
        self.student_head.freeze_last_layer = round(
            self.config.dino_config.freeze_last_layer_ratio * num_steps
        )
        self.student_head.cancel_last_layer_gradients(current_epoch=step)

    def after_optimizer_step(self, step: int, num_steps: int) -> None:
        """Update the teacher with the momentum schedule of selfvit."""
        dino = self.config.dino_config
        momentum = cosine_schedule(
            step, num_steps, dino.teacher_momentum, dino.teacher_momentum_end
        )
        update_momentum(self.student_backbone, self.teacher_backbone, momentum)
        update_momentum(self.student_head, self.teacher_head, momentum)


class LightlyMAE(LightlyModel):
    """MAE as in Lightly's example, with the decoder that replaces the deprecated one."""

    def __init__(self, start: SelfViTForMAE):
        super().__init__(start.config)
        mae = start.config.mae_config
        self.backbone = build_encoder(start.vit)
        self.decoder_embed = nn.Linear(start.config.hidden_size, mae.decoder_hidden_size)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            num_patches=self.backbone.vit.patch_embed.num_patches,
            embed_dim=mae.decoder_hidden_size,
            depth=mae.decoder_num_layers,
            num_heads=mae.decoder_num_attention_heads,
            mlp_ratio=mae.decoder_mlp_ratio,
            initialize_weights=False,
        )
        self.decoder_pred = nn.Linear(
            mae.decoder_hidden_size, start.config.patch_size**2 * start.config.num_channels
        )
        self.decoder_embed.load_state_dict(start.decoder.embedding.state_dict())
        self.decoder_pred.load_state_dict(start.decoder.prediction.state_dict())
        state = {
            name: value
            for name, value in start.decoder.state_dict().items()
            if not name.startswith(("embedding.", "prediction."))
        }
        self.decoder.load_state_dict(timm_state(state))
        self.criterion = nn.MSELoss()

    @property
    def encoder(self) -> MaskedVisionTransformerTIMM:
        """The only encoder."""
        return self.backbone

    def forward(self, pixel_values: Tensor, noise: Tensor) -> LightlyOutput:
        """Return the loss of images (B, C, H, W); `random_token_mask` draws its own noise."""
        mae = self.config.mae_config
        size = (len(pixel_values), self.backbone.sequence_length)  # (B, 1 + N)
        idx_keep, idx_mask = random_token_mask(size, mask_ratio=mae.mask_ratio)
        encoded = self.decoder_embed(self.backbone.encode(pixel_values, idx_keep=idx_keep))
        tokens = set_at_index(repeat_token(self.decoder.mask_token, size), idx_keep, encoded)
        decoded = self.decoder(tokens)  # (B, 1 + N, E)
        predictions = self.decoder_pred(get_at_index(decoded, idx_mask))
        # Index 0 is the class token, so patches start at index 1.
        targets = get_at_index(patchify(pixel_values, self.config.patch_size), idx_mask - 1)
        if mae.norm_pix_loss:
            targets = normalize_mean_var(targets)
        return LightlyOutput(self.criterion(predictions, targets))


class LightlyPMSN(LightlyModel):
    """PMSN as in Lightly's example, with trained prototypes and unmasked focal views."""

    undecayed_parameters = ("prototypes",)

    def __init__(self, start: SelfViTForPMSN):
        super().__init__(start.config)
        pmsn = start.config.pmsn_config
        assert pmsn.prior == "power_law", "PMSNLoss supports only this prior"
        assert pmsn.kl_direction == "prior_to_mean", "PMSNLoss supports only this direction"
        assert pmsn.entropy_weight == 0, "PMSNLoss has no entropy term"
        # Focal views have another size than the stored positions.
        self.anchor_backbone = build_encoder(start.student.vit, dynamic_img_size=True)
        self.anchor_projection_head = MSNProjectionHead(
            start.config.hidden_size, pmsn.head_hidden_size, pmsn.head_output_size
        )
        layers = self.anchor_projection_head.layers
        ours = start.student.head
        for index, module in ((0, ours.fc1), (3, ours.fc2), (6, ours.fc3)):
            layers[index].load_state_dict(module.state_dict())
        self.backbone = copy.deepcopy(self.anchor_backbone)
        self.projection_head = copy.deepcopy(self.anchor_projection_head)
        deactivate_requires_grad(self.backbone)
        deactivate_requires_grad(self.projection_head)
        self.prototypes = nn.Parameter(start.prototypes.detach().clone())
        self.criterion = PMSNLoss(
            temperature=pmsn.student_temperature,
            sinkhorn_iterations=pmsn.sinkhorn_iterations,
            regularization_weight=pmsn.regularization_weight,
            power_law_exponent=pmsn.power_law_exponent,
        )

    @property
    def encoder(self) -> MaskedVisionTransformerTIMM:
        """Encoder of the target network."""
        return self.backbone

    def forward(
        self,
        target_view: Tensor,
        random_views: Tensor,
        noise: Tensor,
        focal_views: Tensor | None = None,
    ) -> LightlyOutput:
        """Return the loss of views (V, B, C, h, w); `random_token_mask` draws its own noise."""
        pmsn = self.config.pmsn_config
        targets = self.projection_head(self.backbone(target_view))
        random_views = random_views.flatten(0, 1)  # (R * B, C, H, W)
        size = (len(random_views), self.anchor_backbone.sequence_length)  # (R * B, 1 + N)
        idx_keep, _ = random_token_mask(size, mask_ratio=pmsn.patch_drop_ratio)
        features = [self.anchor_backbone(random_views, idx_keep=idx_keep)]
        if focal_views is not None:
            features.append(self.anchor_backbone(focal_views.flatten(0, 1)))
        anchors = [self.anchor_projection_head(rows) for rows in features]
        loss = self.criterion(
            torch.cat(anchors),  # (V * B, E)
            targets,
            self.prototypes,
            target_sharpen_temperature=pmsn.teacher_temperature / pmsn.student_temperature,
        )
        return LightlyOutput(loss)

    def after_optimizer_step(self, step: int, num_steps: int) -> None:
        """Update the target network with the momentum schedule of selfvit."""
        pmsn = self.config.pmsn_config
        momentum = linear_schedule(
            step, num_steps + 1, pmsn.teacher_momentum, pmsn.teacher_momentum_end
        )
        update_momentum(self.anchor_backbone, self.backbone, momentum)
        update_momentum(self.anchor_projection_head, self.projection_head, momentum)


# Models of Lightly by the name of the selfvit class that they are compared with.
COUNTERPARTS: dict[str, Callable[[Any], LightlyModel]] = {
    "SelfViTForDINO": LightlyDINO,
    "SelfViTForMAE": LightlyMAE,
    "SelfViTForPMSN": LightlyPMSN,
}
