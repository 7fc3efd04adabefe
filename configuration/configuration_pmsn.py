"""MSN and PMSN: masked siamese networks, a prior on clusters (arXiv 2204.07141, 2210.07277)."""

# No `from __future__ import annotations` here: `@strict` checks types, not strings of them.

from typing import Literal

from huggingface_hub.dataclasses import strict

from .objective_config import ObjectiveConfig


@strict
class PMSNConfig(ObjectiveConfig):
    """What MSN and PMSN add to an encoder: projection head, prototypes, loss, momentum teacher.

    MSN is `prior="uniform"`. The sections are those of MSN (arXiv 2204.07141) where no other paper
    is named.

    Args:
        prior: what the mean prediction is drawn towards: "uniform" (all prototypes are used alike)
            or "power_law" (prototype k in proportion to 1 / k^exponent: few common, many rare).
        power_law_exponent: unitless; 0 is uniform.
        kl_direction: which Kullback-Leibler divergence draws it there. "mean_to_prior" is
            KL(mean || prior): with a uniform prior it is MSN's ln K - H(mean). "prior_to_mean" is
            KL(prior || mean), what Lightly computes for a power law.
        regularization_weight: factor of that divergence (lambda).
        entropy_weight: factor of the mean entropy of the single predictions, which is added to the
            loss; 0 leaves it out.
        num_prototypes: clusters (K).
        freeze_prototypes: keep the prototypes as they were initialized.
        head_hidden_size: width of the head's two hidden layers.
        head_output_size: width of the head's output and of the prototypes.
        student_temperature: unitless; divides the cosines of the anchors.
        teacher_temperature: unitless; divides the cosines of the targets. A prediction at
            temperature t, sharpened by s as the reference code does, is one at t * s.
        sinkhorn_iterations: how often the targets of a batch are balanced over the prototypes; 0
            is never. It makes them uniform, so it speaks against a power-law prior.
        patch_drop_ratio: fraction of the patches that each random view loses.
        teacher_momentum: EMA momentum of the teacher at the first step; grows linearly.
        teacher_momentum_end: EMA momentum of the teacher at the end.
    """

    model_type = "selfvit_pmsn"
    base_config_key = "pmsn_config"

    prior: Literal["uniform", "power_law"] = "power_law"
    power_law_exponent: float | int = 0.25  # PMSN, arXiv 2210.07277
    kl_direction: Literal["mean_to_prior", "prior_to_mean"] = "mean_to_prior"
    regularization_weight: float | int = 5.0  # Table 11: the best without Sinkhorn; with it 1
    entropy_weight: float | int = 0.0  # configs/pretrain/msn_vits16.yaml: ent_weight
    num_prototypes: int = 1024  # Appendix A.1
    freeze_prototypes: bool = False  # Sec. 3, Eq. 1: they are trained
    head_hidden_size: int = 2048  # configs/pretrain/msn_vits16.yaml: hidden_dim
    head_output_size: int = 256  # Appendix A.1
    student_temperature: float | int = 0.1  # Appendix A.1
    teacher_temperature: float | int = 0.025  # Appendix A.1; the code: 0.1 sharpened by 0.25
    sinkhorn_iterations: int = 0  # Appendix A.1: stronger without; the code's number is 3
    patch_drop_ratio: float | int = 0.15  # Appendix A.1, ViT-S/16
    teacher_momentum: float | int = 0.996  # Appendix A.1
    teacher_momentum_end: float | int = 1.0  # Appendix A.1

    def validate_architecture(self) -> None:
        """Check the ranges that the maths needs."""
        for name, least in (
            ("num_prototypes", 2),
            ("head_hidden_size", 1),
            ("head_output_size", 1),
            ("sinkhorn_iterations", 0),
            ("regularization_weight", 0),
            ("entropy_weight", 0),
            ("power_law_exponent", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least {least}.")
        for name in ("student_temperature", "teacher_temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(
                    f"{name} ({getattr(self, name)}) must be above 0; "
                    "the paper uses 0.1 and, for the teacher, 0.025."
                )
        for name in ("teacher_momentum", "teacher_momentum_end"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be between 0 and 1.")
        if not 0 <= self.patch_drop_ratio < 1:
            raise ValueError(
                f"patch_drop_ratio ({self.patch_drop_ratio}) must be at least 0 and below 1, as a "
                "patch has to be left; the paper uses 0.15 to 0.7."
            )


__all__ = ["PMSNConfig"]
