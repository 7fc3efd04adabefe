"""Suggest which settings to change against representation collapse.

Each objective registers its suggestions for its configuration class. A new objective does so in a
file of its own, for example next to its recipes:

    @collapse_suggestions.register
    def my_suggestions(config: MyConfig, kind: str) -> list[Suggestion]:
        return [Suggestion(f"lower --my-weight (now {config.my_weight})")]
"""

from __future__ import annotations

from functools import singledispatch
from typing import NamedTuple

from transformers import PreTrainedConfig

from ...configuration.configuration_dino import DINOConfig
from ...configuration.configuration_dinov2 import DINOv2Config
from ...configuration.configuration_distill import DistillConfig
from ...configuration.configuration_lejepa import LeJEPAConfig
from ...configuration.configuration_mae import MAEConfig
from ...configuration.configuration_pmsn import PMSNConfig
from ..config.run_config import RunConfig

SMALL_BATCH = 64  # images; DINO trains with 128 (Table 9), smaller batches need more care

WHAT_HAPPENS = {
    "constant": "the outputs no longer depend on the image: constant output",
    "uniform": "every image is assigned to all prototypes equally: uniform output, loss at ln K",
}


class Suggestion(NamedTuple):
    """A change of a setting against a collapse.

    Args:
        advice: Change to make, with the current value.
        suspect: Whether the current value is known to cause the collapse.
    """

    advice: str
    suspect: bool = False


def _lower(option: str, value: float, low: float, high: float, suspect: bool) -> list[Suggestion]:
    """Return the suggestion to lower a value towards its usual range; none if it is there."""
    if value <= low:
        return []
    to = f"to between {low} and {high}" if value > high else f"to {low} at least"
    return [Suggestion(f"lower {option} (now {value}) {to}", suspect)]


def _raise(option: str, value: float, low: float, high: float, suspect: bool) -> list[Suggestion]:
    """Return the suggestion to raise a value towards its usual range; none if it is there."""
    if value >= high:
        return []
    to = f"to between {low} and {high}" if value < low else f"to {high} at most"
    return [Suggestion(f"raise {option} (now {value}) {to}", suspect)]


@singledispatch
def collapse_suggestions(config: PreTrainedConfig, kind: str) -> list[Suggestion]:
    """Return the suggestions of an objective against a collapse, the most likely one first.

    Args:
        config: Configuration of the objective. Its class selects the registered function; the list
            is empty for classes without one.
        kind: "constant" (outputs no longer depend on the image) or "uniform" (every image is
            assigned to all prototypes equally).
    """
    return []


@collapse_suggestions.register(DINOConfig)
@collapse_suggestions.register(DINOv2Config)
def dino_suggestions(config: DINOConfig | DINOv2Config, kind: str) -> list[Suggestion]:
    """Return the suggestions for DINO and DINOv2.

    Centering and sharpening balance each other (DINO, Sec. 5.3).
    """
    first, last = config.warmup_teacher_temperature, config.teacher_temperature
    temperatures = (
        f"--warmup-teacher-temperature and --teacher-temperature (now {first} and {last})"
    )
    if kind == "uniform":
        # Appendix D, "Sharpening": above 0.06, with the student's 0.1, it collapses
        is_hot = first > 0.6 * config.student_temperature
        start = (
            ": start at 0.6 times --student-temperature "
            f"(now {config.student_temperature}) or below"
        )
        return [
            Suggestion(f"lower {temperatures}{start if is_hot else ''}", suspect=is_hot),
            Suggestion(
                f"lower --num-prototypes (now {config.num_prototypes}) if there are few images"
            ),
            Suggestion(f"raise --freeze-last-layer-ratio (now {config.freeze_last_layer_ratio})"),
        ]
    suggestions = []
    if isinstance(config, DINOConfig) or config.sinkhorn_iterations == 0:  # there is a center
        momentum = config.center_momentum
        is_slow = momentum >= 0.999  # Appendix D, "Online centering"
        suggestions += _lower("--center-momentum", momentum, 0.9, 0.99, is_slow)
    momentum = config.teacher_momentum
    is_copy = momentum < 0.9  # Sec. 5.2: a copy of the student collapses
    suggestions += _raise("--teacher-momentum", momentum, 0.99, 0.9995, is_copy)
    suggestions.append(Suggestion(f"raise {temperatures}"))
    if config.koleo_weight < 0.1:
        suggestions.append(Suggestion(f"raise --koleo-weight (now {config.koleo_weight}) to 0.1"))
    return suggestions


@collapse_suggestions.register
def distill_suggestions(config: DistillConfig, kind: str) -> list[Suggestion]:
    """Return the suggestions for distillation, in which the teacher keeps images apart."""
    if kind != "constant":
        return []
    # similarities of at most 1 give almost the same probability to all images
    is_hot = config.temperature >= 1
    return [
        *_lower("--temperature", config.temperature, 0.04, 0.07, is_hot),
        Suggestion(
            f"choose another --teacher (now {config.teacher}) if its vectors of these images are "
            "alike, too"
        ),
    ]


@collapse_suggestions.register
def lejepa_suggestions(config: LeJEPAConfig, kind: str) -> list[Suggestion]:
    """Return the suggestion for LeJEPA and VISReg: the regularizer keeps projections apart."""
    if kind != "constant":
        return []
    # Without it, equal projections of all images have the lowest loss. VISReg with the weight of
    # LeJEPA (0.05) collapsed in the demo.
    low, high, too_low = (0.02, 0.1, 0) if config.regularizer == "sigreg" else (0.6, 0.9, 0.05)
    weight = config.regularizer_weight
    return _raise("--regularization-weight", weight, low, high, weight <= too_low)


@collapse_suggestions.register
def mae_suggestions(config: MAEConfig, kind: str) -> list[Suggestion]:
    """Return the suggestion for MAE if predictions do not depend on the image."""
    if kind != "constant":
        return []
    # Fig. 5: it works from 0.4 to 0.8, and gets worse at 0.9
    return _lower("--mask-ratio", config.mask_ratio, 0.5, 0.8, config.mask_ratio > 0.95)


@collapse_suggestions.register
def pmsn_suggestions(config: PMSNConfig, kind: str) -> list[Suggestion]:
    """Return the suggestions for MSN and PMSN.

    The regularizer spreads the targets over the prototypes; the teacher's temperature sharpens
    them.
    """
    if kind == "uniform":
        suggestions = []
        if config.teacher_temperature > config.student_temperature / 4:
            advice = (
                f"lower --teacher-temperature (now {config.teacher_temperature}) to a quarter of "
                f"--student-temperature (now {config.student_temperature})"
            )
            # Sec. 3: sharper targets are what makes single predictions confident
            is_blunt = config.teacher_temperature >= config.student_temperature
            suggestions.append(Suggestion(advice, suspect=is_blunt))
        return [
            *suggestions,
            Suggestion(f"lower --regularization-weight (now {config.regularization_weight})"),
            Suggestion(
                f"lower --num-prototypes (now {config.num_prototypes}) if there are few images"
            ),
        ]
    weight, momentum = config.regularization_weight, config.teacher_momentum
    # Eq. 1: the regularizer keeps the mean prediction spread; Sinkhorn does so too
    is_free = weight == 0 and config.sinkhorn_iterations == 0
    return [
        *_raise("--regularization-weight", weight, 1, 5, is_free),
        *_raise("--teacher-momentum", momentum, 0.98, 0.9995, momentum < 0.9),
        Suggestion(f"raise --teacher-temperature (now {config.teacher_temperature})"),
    ]


def advice_against(kind: str, run: RunConfig) -> list[str]:
    """Return the changes to make against a kind of collapse, the most likely one first."""
    suggestions = [
        suggestion
        for config in run.objectives().values()
        for suggestion in collapse_suggestions(config, kind)
    ]
    suspects = [suggestion.advice for suggestion in suggestions if suggestion.suspect]
    others = [suggestion.advice for suggestion in suggestions if not suggestion.suspect]
    return suspects + _training_advice(run) + others


def _training_advice(run: RunConfig) -> list[str]:
    advice = []
    if run.schedule.batch_size < SMALL_BATCH:
        advice.append(f"raise --batch-size (now {run.schedule.batch_size})")
    advice.append(f"lower --base-learning-rate (now {run.schedule.base_learning_rate:g})")
    if run.schedule.warmup_ratio < 0.1:
        advice.append(f"raise --warmup-ratio (now {run.schedule.warmup_ratio:g})")
    if run.optimizer.max_gradient_norm is None:
        advice.append("set --max-gradient-norm 3")
    return advice


def settings_at_risk(run: RunConfig) -> list[str]:
    """Return a warning for each setting that is known to cause a collapse."""
    return [
        f"this run risks a {kind} output; to use values from the papers, {suggestion.advice}."
        for config in run.objectives().values()
        for kind in WHAT_HAPPENS
        for suggestion in collapse_suggestions(config, kind)
        if suggestion.suspect
    ]


__all__ = ["Suggestion", "advice_against", "collapse_suggestions", "settings_at_risk"]
