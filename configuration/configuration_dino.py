"""Configuration of DINO, self-distillation with no labels (arXiv 2104.14294)."""

# No `from __future__ import annotations`: `@strict` cannot check annotations that are strings.

from huggingface_hub.dataclasses import strict

from .field_ranges import check_fractions, check_least, check_positive
from .objective_config import ObjectiveConfig


@strict
class DINOConfig(ObjectiveConfig):
    """Projection head, loss and schedules of DINO.

    Ratios of a schedule are fractions of all training steps, so that a shorter run has the same
    schedule on a smaller scale.

    The head has an output for each prototype. The momentum of the teacher rises along a cosine, its
    temperature linearly over the warm-up.

    Args:
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
        freeze_last_layer_ratio: Fraction of the steps, from the start, in which the last layer is
            frozen.
        koleo_weight: Weight of the KoLeo regularizer on the class tokens of the global views
            (from DINOv2; DINO has none). It compares the images of a micro-batch, so gradient
            accumulation is not exactly equivalent to a larger batch.
    """

    model_type = "selfvit_dino"
    base_config_key = "dino_config"
    weight_fields = (
        "num_prototypes",
        "head_hidden_size",
        "head_bottleneck_size",
        "num_head_layers",
        "normalize_last_layer",
    )

    num_prototypes: int = 65536  # Sec. 3.2, "Implementation details"
    head_hidden_size: int = 2048  # Appendix C, "Projection head"
    head_bottleneck_size: int = 256  # Appendix C
    num_head_layers: int = 3  # Appendix C
    normalize_last_layer: bool = True  # main_dino.py --norm_last_layer
    student_temperature: float | int = 0.1  # Sec. 3.2
    teacher_temperature: float | int = 0.07  # Sec. 3.2
    warmup_teacher_temperature: float | int = 0.04  # Sec. 3.2
    teacher_temperature_warmup_ratio: float | int = 0.3  # Sec. 3.2: 30 epochs; of Table 8's 100
    teacher_momentum: float | int = 0.996  # Sec. 3.1
    teacher_momentum_end: float | int = 1.0  # Sec. 3.1
    center_momentum: float | int = 0.9  # Appendix D
    freeze_last_layer_ratio: float | int = 0.01  # main_dino.py --freeze_last_layer: 1 epoch; of 100
    koleo_weight: float | int = 0.0  # DINO has none; DINOv2: 0.1, of a sum over the views

    def validate_architecture(self) -> None:
        """Check the range of each field."""
        sizes = ("head_hidden_size", "head_bottleneck_size", "num_head_layers")
        check_least(self, {"num_prototypes": 2, **dict.fromkeys(sizes, 1), "koleo_weight": 0})
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


__all__ = ["DINOConfig"]
