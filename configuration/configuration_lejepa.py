"""Configuration of LeJEPA and VISReg (arXiv 2511.08544, 2606.02572)."""

# No `from __future__ import annotations`: `@strict` cannot check annotations that are strings.

from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from .field_ranges import check_least, check_positive
from .objective_config import ObjectiveConfig

# LeJEPA, lambda; VISReg, small datasets. VISReg with LeJEPA's weight collapses.
USUAL_WEIGHTS = {"sigreg": 0.05, "visreg": 0.6}


@strict
class LeJEPAConfig(ObjectiveConfig):
    """Projection head, regularizer and weights of LeJEPA and VISReg.

    The loss is (1 - weight) times the invariance of an image's views plus weight times a
    regularizer, which keeps the projections of different images apart. Defaults are those of LeJEPA
    (arXiv 2511.08544). VISReg (arXiv 2606.02572) has `regularizer="visreg"`, 2,048 slices or more,
    and a head with GELU and 256 outputs. The default weight, None, is 0.05 with "sigreg" and 0.6
    with "visreg"; VISReg has 0.9 on large datasets.

    Args:
        regularizer: Regularizer of the projections. "sigreg" compares their characteristic function
            with that of a standard normal distribution; "visreg" their center, scale and sorted
            values.
        regularization_weight: Weight of the regularizer in the loss (lambda).
        num_slices: Number of random directions (K) that projections are compared along. They are
            drawn for each step.
        sigreg_num_knots: Number of frequencies, from 0 to `sigreg_max_frequency`, at which SIGReg
            compares the characteristic functions.
        sigreg_max_frequency: Largest of these frequencies; unitless.
        visreg_center_weight: Weight of VISReg's center term (mean 0).
        visreg_scale_weight: Weight of VISReg's scale term (std 1).
        visreg_shape_weight: Weight of VISReg's shape term (normal quantiles).
        head_input: Features that the head projects: "cls" is the class token, "pooled" the
            embedding, as defined by `pooling`.
        head_hidden_size: Width of the head's hidden layers.
        head_output_size: Width of the output of the head (E).
        head_activation: Activation function of the head.
    """

    model_type = "selfvit_lejepa"
    base_config_key = "lejepa_config"
    weight_fields = (
        "head_input",
        "head_hidden_size",
        "head_output_size",
        "head_activation",
    )

    regularizer: Literal["sigreg", "visreg"] = "sigreg"
    regularization_weight: float | int | None = None
    num_slices: int = 1024  # LeJEPA; VISReg: 2,048 to 4,096
    sigreg_num_knots: int = 17  # LeJEPA
    sigreg_max_frequency: float | int = 3.0  # LeJEPA
    visreg_center_weight: float | int = 1.0  # VISReg
    visreg_scale_weight: float | int = 1.0  # VISReg
    visreg_shape_weight: float | int = 1.0  # VISReg
    head_input: Literal["cls", "pooled"] = "cls"  # VISReg, Appendix A.1
    head_hidden_size: int = 2048  # Lightly's LeJEPA; VISReg, Appendix A.1
    head_output_size: int = 64  # Lightly's LeJEPA; VISReg: 256
    head_activation: Literal["relu", "gelu"] = "relu"  # Lightly's LeJEPA; VISReg: GELU

    def validate_architecture(self) -> None:
        """Check the range of each field."""
        least = {
            "num_slices": 1,
            "sigreg_num_knots": 2,
            "head_hidden_size": 1,
            "head_output_size": 1,
            "visreg_center_weight": 0,
            "visreg_scale_weight": 0,
            "visreg_shape_weight": 0,
        }
        check_least(self, least)
        check_positive(self, ("sigreg_max_frequency",), "the paper uses 3")
        if not 0 <= self.regularizer_weight <= 1:
            raise ValueError(
                f"regularization_weight ({self.regularization_weight}) must be between 0 and 1; "
                "LeJEPA uses 0.01 to 0.1, VISReg 0.6 to 0.9."
            )

    @property
    def regularizer_weight(self) -> float:
        """Weight of the regularizer in the loss, also where `regularization_weight` is None."""
        if self.regularization_weight is None:
            return USUAL_WEIGHTS[self.regularizer]
        return self.regularization_weight

    def resolved_fields(self) -> dict[str, Any]:
        """Return the weight that is in use."""
        return {"regularization_weight": self.regularizer_weight}


__all__ = ["LeJEPAConfig"]
