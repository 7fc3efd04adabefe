"""Configuration of DINOv2: DINO with a loss on masked patches (arXiv 2304.07193)."""

# No `from __future__ import annotations`: `@strict` cannot check annotations that are strings.

from huggingface_hub.dataclasses import strict

from .field_ranges import check_fractions, check_least, check_positive
from .objective_config import ObjectiveConfig


@strict
class DINOv2Config(ObjectiveConfig):
    """Heads, losses and schedules of DINOv2.

    The loss is the sum of four weighted terms: DINO's loss on class tokens, the loss of iBOT (arXiv
    2111.07832) on masked patches, the KoLeo regularizer, summed over the global views, and Gram
    anchoring (DINOv3, arXiv 2508.10104, Sec. 4). Defaults are those of DINOv2's
    ssl_default_config.yaml. Ratios of a schedule are fractions of all training steps.

    Args:
        class_loss_weight: Weight of the loss on class tokens.
        patch_loss_weight: Weight of the loss on masked patches.
        koleo_weight: Weight of the KoLeo regularizer on the class tokens of the global views
            (from DINOv2; DINO has none). It compares the images of a micro-batch, so gradient
            accumulation is not exactly equivalent to a larger batch.
        gram_weight: Weight of Gram anchoring, which keeps the similarities of an image's patches
            close to those of a frozen network: the checkpoint that the run starts from. 0 disables
            it.
        separate_patch_head: Whether patches have a head and prototypes of their own; otherwise
            they share those of the class tokens.
        num_prototypes: Number of prototypes (K), which an image is assigned to.
        head_hidden_size: Width of the head's hidden layers.
        head_bottleneck_size: Width before the weight-normalized last layer.
        num_head_layers: Number of linear layers before the last layer.
        normalize_last_layer: Whether to fix the magnitudes of the last layer at 1. This is more
            stable; the reference trains them for ViT-S.
        student_temperature: Temperature of the student's softmax; unitless.
        teacher_temperature: Temperature of the teacher's softmax; unitless.
        warmup_teacher_temperature: Temperature of the teacher's softmax at the start of the linear
            warm-up; unitless.
        teacher_temperature_warmup_ratio: Length of that warm-up, as a fraction of the steps.
        teacher_momentum: EMA momentum of the teacher at the first step.
        teacher_momentum_end: EMA momentum of the teacher at the last step.
        center_momentum: EMA momentum of the center.
        sinkhorn_iterations: Number of Sinkhorn iterations that balance the targets of a batch over
            the prototypes; 0 disables it.
        freeze_last_layer_ratio: Fraction of the steps, from the start, in which the last layer is
            frozen.
    """

    model_type = "selfvit_dinov2"
    base_config_key = "dinov2_config"
    weight_fields = (
        "separate_patch_head",
        "num_prototypes",
        "head_hidden_size",
        "head_bottleneck_size",
        "num_head_layers",
        "normalize_last_layer",
    )

    class_loss_weight: float | int = 1.0  # dino.loss_weight
    patch_loss_weight: float | int = 1.0  # ibot.loss_weight
    koleo_weight: float | int = 0.1  # dino.koleo_loss_weight
    gram_weight: float | int = 0.0  # DINOv3, Sec. 4: 1, in adaptation to a resolution 1.5
    separate_patch_head: bool = False  # ibot.separate_head; true in train/vitl14.yaml
    num_prototypes: int = 65536  # dino.head_n_prototypes
    head_hidden_size: int = 2048  # dino.head_hidden_dim
    head_bottleneck_size: int = 256  # dino.head_bottleneck_dim
    num_head_layers: int = 3  # dino.head_nlayers
    normalize_last_layer: bool = False  # layers/dino_head.py: weight_g is trained
    student_temperature: float | int = 0.1  # loss/dino_clstoken_loss.py
    teacher_temperature: float | int = 0.07  # teacher.teacher_temp
    warmup_teacher_temperature: float | int = 0.04  # teacher.warmup_teacher_temp
    teacher_temperature_warmup_ratio: float | int = 0.3  # 30 of 100 epochs
    teacher_momentum: float | int = 0.992  # teacher.momentum_teacher
    teacher_momentum_end: float | int = 1.0  # teacher.final_momentum_teacher
    center_momentum: float | int = 0.9  # loss/dino_clstoken_loss.py
    sinkhorn_iterations: int = 0  # train.centering: "centering"; 3 for "sinkhorn_knopp"
    freeze_last_layer_ratio: float | int = 0.01  # optim.freeze_last_layer_epochs: 1 of 100

    def validate_architecture(self) -> None:
        """Check the range of each field."""
        sizes = ("head_hidden_size", "head_bottleneck_size", "num_head_layers")
        least = {
            "num_prototypes": 2,
            **dict.fromkeys(sizes, 1),
            "class_loss_weight": 0,
            "patch_loss_weight": 0,
            "koleo_weight": 0,
            "gram_weight": 0,
            "sinkhorn_iterations": 0,
        }
        check_least(self, least)
        if self.class_loss_weight == self.patch_loss_weight == 0:
            raise ValueError(
                f"class_loss_weight ({self.class_loss_weight}) and patch_loss_weight "
                f"({self.patch_loss_weight}) must not both be 0; the paper uses 1 for each."
            )
        check_positive(
            self,
            ("student_temperature", "teacher_temperature", "warmup_teacher_temperature"),
            "the paper uses 0.04 to 0.1",
        )
        fractions = (
            "teacher_temperature_warmup_ratio",
            "teacher_momentum",
            "teacher_momentum_end",
            "center_momentum",
            "freeze_last_layer_ratio",
        )
        check_fractions(self, fractions)


__all__ = ["DINOv2Config"]
