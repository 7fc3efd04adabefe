"""Runs of the comparison of objectives; both sides use the same run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from selfvit.training.config.run_config import Run
from selfvit.training.config.training_config import TrainingConfig
from selfvit.training.recipes import RECIPES

# Peak learning rates of AdamW, tried for every objective and both sides.
RATES = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)

# Differences from the demo recipe of each objective: four blocks, and a number of steps that takes
# 60 to 100 CPU seconds.
CHANGES: dict[str, dict[str, Any]] = {
    "dino": {"num_hidden_layers": 4, "max_steps": 500},
    "mae": {"num_hidden_layers": 4, "max_steps": 1600},
    # Lightly supports only KL(prior || mean), so both sides use it; selfvit's default is reverse.
    "pmsn": {"num_hidden_layers": 4, "max_steps": 500, "kl_direction": "prior_to_mean"},
}


def run_of(objective: str, seed: int, num_steps: int | None = None) -> Run:
    """Return the run of an objective.

    Args:
        objective: Name of the objective, from `CHANGES`.
        seed: Random seed of the weights, the order, the views and the masks.
        num_steps: Number of optimizer steps; None for the default of the objective.
    """
    options = {**CHANGES[objective], "seed": seed}
    if num_steps is not None:
        options["max_steps"] = num_steps
    return RECIPES[f"{objective}_demo"](None, None).with_options(options)


def at_rate(training: TrainingConfig, rate: float) -> TrainingConfig:
    """Return a copy of the training configuration with another peak learning rate."""
    return replace(training, base_learning_rate=rate * 256 / training.batch_size)
