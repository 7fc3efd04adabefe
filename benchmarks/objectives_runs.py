"""What the comparison of the objectives trains: one run an objective, the same for both sides."""

from __future__ import annotations

from typing import Any

from selfvit.training.config.run_config import RunConfig
from selfvit.training.recipes import RECIPES

# AdamW's peak rates, tried alike for every objective and both sides
RATES = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)

# By objective, what differs from its demo recipe: four blocks everywhere, and as many steps as take
# 60 to 100 CPU seconds.
CHANGES: dict[str, dict[str, Any]] = {
    "dino": {"num_hidden_layers": 4, "max_steps": 500},
    "mae": {"num_hidden_layers": 4, "max_steps": 1600},
    # Lightly has KL(prior || mean) only, so both sides have it; selfvit's default is the reverse.
    "pmsn": {"num_hidden_layers": 4, "max_steps": 500, "kl_direction": "prior_to_mean"},
}


def run_of(objective: str, seed: int, num_steps: int | None = None) -> RunConfig:
    """Return the run of an objective.

    Args:
        objective: a name of `CHANGES`.
        seed: of weights, order, views and masks.
        num_steps: optimizer steps; None takes the objective's own.
    """
    options = {**CHANGES[objective], "seed": seed}
    if num_steps is not None:
        options["max_steps"] = num_steps
    return RECIPES[f"{objective}_demo"](None, None).with_options(options)


def at_rate(run: RunConfig, rate: float) -> RunConfig:
    """Return the run with another peak learning rate."""
    return run.replace(base_learning_rate=rate * 256 / run.schedule.batch_size)
