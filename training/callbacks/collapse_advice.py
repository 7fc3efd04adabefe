"""Suggest which settings to change against representation collapse."""

from __future__ import annotations

from ..config.run_config import RunConfig

SMALL_BATCH = 64  # images; DINO trains with 128 (Table 9), below that it takes more care


WHAT_HAPPENS = {
    "constant": "the outputs no longer depend on the image: constant output",
    "uniform": "every image is assigned to all prototypes alike: uniform output, loss at ln K",
}


def advice_against(kind: str, run: RunConfig) -> list[str]:
    """Return what to turn against a kind of collapse, with the values it has, likeliest first."""
    knobs = [knob for part in run.objectives().values() for knob in part.knobs_against(kind)]
    suspects = [knob.advice for knob in knobs if knob.suspect]
    return suspects + _general_advice(run) + [k.advice for k in knobs if not k.suspect]


def _general_advice(run: RunConfig) -> list[str]:
    advice = []
    if run.schedule.batch_size < SMALL_BATCH:
        advice.append(f"a larger batch_size ({run.schedule.batch_size} now)")
    advice.append(f"a lower base_learning_rate ({run.schedule.base_learning_rate:g} now)")
    if run.schedule.warmup_ratio < 0.1:
        advice.append(f"a longer warmup_ratio ({run.schedule.warmup_ratio:g} now)")
    if run.optimizer.max_gradient_norm is None:
        advice.append("max_gradient_norm 3")
    return advice


def settings_at_risk(run: RunConfig) -> list[str]:
    """Return a sentence for each setting that is known to lead to a collapse."""
    return [
        f"this run risks a {kind} output; the papers have {knob.advice}."
        for part in run.objectives().values()
        for kind in WHAT_HAPPENS
        for knob in part.knobs_against(kind)
        if knob.suspect
    ]


__all__ = ["advice_against", "settings_at_risk"]
