"""Configuration of MSN and PMSN, masked siamese networks (arXiv 2204.07141, 2210.07277)."""

# No `from __future__ import annotations`: `@strict` cannot check annotations that are strings.

from typing import Literal

from huggingface_hub.dataclasses import strict

from .field_ranges import check_fractions, check_least, check_positive
from .objective_config import ObjectiveConfig


@strict
class PMSNConfig(ObjectiveConfig):
    """Projection head, prototypes, loss and momentum teacher of MSN and PMSN.

    MSN is PMSN with `prior="uniform"`. Sections refer to MSN (arXiv 2204.07141) unless another
    paper is named.

    The student predicts the anchors and the teacher the targets, by a softmax over cosines. A
    prediction at temperature t that is sharpened by s, as in the reference code, equals a
    prediction at temperature t * s. The momentum of the teacher rises linearly.

    Sinkhorn iterations make the targets uniform on average, which contradicts a power-law prior; a
    run with both prints a warning.

    Args:
        prior: Distribution that the mean prediction is drawn toward. "uniform": all prototypes
            are used equally. "power_law": prototype k is used in proportion to 1 / k^exponent (few
            common prototypes, many rare ones).
        power_law_exponent: Exponent of the power law; unitless. 0 is uniform.
        kl_direction: Direction of the Kullback-Leibler divergence between mean prediction and
            prior. "mean_to_prior" is KL(mean || prior); with a uniform prior it equals MSN's
            ln K - H(mean). "prior_to_mean" is KL(prior || mean), as Lightly computes it for a power
            law.
        regularization_weight: Weight of the regularizer in the loss (lambda).
        entropy_weight: Weight of the mean entropy of the individual predictions in the loss; 0
            disables the term.
        num_prototypes: Number of prototypes (K), which an image is assigned to.
        freeze_prototypes: Whether to keep the prototypes at their initial values.
        head_hidden_size: Width of the head's hidden layers.
        head_output_size: Width of the output of the head (E).
        student_temperature: Temperature of the student's softmax; unitless.
        teacher_temperature: Temperature of the teacher's softmax; unitless.
        sinkhorn_iterations: Number of Sinkhorn iterations that balance the targets of a batch over
            the prototypes; 0 disables it.
        patch_drop_ratio: Fraction of the patches that are dropped from each random view.
        teacher_momentum: EMA momentum of the teacher at the first step.
        teacher_momentum_end: EMA momentum of the teacher at the last step.
    """

    model_type = "selfvit_pmsn"
    base_config_key = "pmsn_config"
    weight_fields = (
        "num_prototypes",
        "head_hidden_size",
        "head_output_size",
    )

    prior: Literal["uniform", "power_law"] = "power_law"
    power_law_exponent: float | int = 0.25  # PMSN, arXiv 2210.07277
    kl_direction: Literal["mean_to_prior", "prior_to_mean"] = "mean_to_prior"
    regularization_weight: float | int = 5.0  # Table 11: best without Sinkhorn; 1 with it
    entropy_weight: float | int = 0.0  # configs/pretrain/msn_vits16.yaml: ent_weight
    num_prototypes: int = 1024  # Appendix A.1
    freeze_prototypes: bool = False  # Sec. 3, Eq. 1: they are trained
    head_hidden_size: int = 2048  # configs/pretrain/msn_vits16.yaml: hidden_dim
    head_output_size: int = 256  # Appendix A.1
    student_temperature: float | int = 0.1  # Appendix A.1
    teacher_temperature: float | int = 0.025  # Appendix A.1; the code: 0.1 sharpened by 0.25
    sinkhorn_iterations: int = 0  # Appendix A.1: better without; the code has 3
    patch_drop_ratio: float | int = 0.15  # Appendix A.1, ViT-S/16
    teacher_momentum: float | int = 0.996  # Appendix A.1
    teacher_momentum_end: float | int = 1.0  # Appendix A.1

    def contradictions(self) -> list[str]:
        """Return a sentence if Sinkhorn iterations work against a power-law prior."""
        is_uniform = self.prior == "uniform" or self.power_law_exponent == 0
        if is_uniform or self.sinkhorn_iterations == 0 or self.regularization_weight == 0:
            return []
        return [
            f"sinkhorn_iterations ({self.sinkhorn_iterations}) makes the targets uniform over the "
            "prototypes, and the prior (power_law) draws the predictions away from uniform; use "
            "--prior uniform or --sinkhorn-iterations 0."
        ]

    def validate_architecture(self) -> None:
        """Check the range of each field."""
        least = {
            "num_prototypes": 2,
            "head_hidden_size": 1,
            "head_output_size": 1,
            "sinkhorn_iterations": 0,
            "regularization_weight": 0,
            "entropy_weight": 0,
            "power_law_exponent": 0,
        }
        check_least(self, least)
        check_positive(
            self,
            ("student_temperature", "teacher_temperature"),
            "the paper uses 0.1 for the student and 0.025 for the teacher",
        )
        check_fractions(self, ("teacher_momentum", "teacher_momentum_end"))
        if not 0 <= self.patch_drop_ratio < 1:
            raise ValueError(
                f"patch_drop_ratio ({self.patch_drop_ratio}) must be at least 0 and below 1, so "
                "that at least one patch is left; the paper uses 0.15 to 0.7."
            )


__all__ = ["PMSNConfig"]
