"""Recipes: one function for each run of a paper or use case, with the source of every number.

A recipe takes the number of images and the requested batch size (None if unknown) and returns a
`RunConfig`. Every value is an option of `selfvit train`. The first line of a recipe's docstring is
its summary in `selfvit train --help`; the other lines give command, time, quality and status.
"""

from __future__ import annotations

from ..config.run_config import Recipe, RunConfig
from .dino import dino_demo, dino_finetune, dino_lora, dino_vits16_in1k
from .dinov2 import (
    dinov2_demo,
    dinov2_finetune,
    dinov2_high_resolution,
    dinov2_vits16_in1k,
)
from .distill import distill_demo, distill_finetune, distill_vits16
from .lejepa import lejepa_demo, lejepa_finetune, lejepa_vits16_in1k
from .mae import mae_demo, mae_finetune, mae_vitb16_in1k
from .pmsn import msn_vits16_in1k, pmsn_demo, pmsn_finetune, pmsn_vits16_in1k
from .small_folder import SMALL_FOLDER, dino, dinov2, distill, lejepa, mae, pmsn
from .supervised import classify, linear_probe, mae_classify

RECIPES: dict[str, Recipe] = {
    recipe.__name__: recipe
    for recipe in (
        dino,
        dinov2,
        distill,
        lejepa,
        mae,
        pmsn,
        dino_vits16_in1k,
        dino_finetune,
        dino_lora,
        dino_demo,
        dinov2_vits16_in1k,
        dinov2_high_resolution,
        dinov2_finetune,
        dinov2_demo,
        distill_vits16,
        distill_finetune,
        distill_demo,
        lejepa_vits16_in1k,
        lejepa_finetune,
        lejepa_demo,
        mae_vitb16_in1k,
        mae_finetune,
        mae_demo,
        msn_vits16_in1k,
        pmsn_vits16_in1k,
        pmsn_finetune,
        pmsn_demo,
        classify,
        mae_classify,
        linear_probe,
    )
}


# Recipes that presuppose a pretrained encoder: the recipe that starts from random weights instead.
FROM_CHECKPOINT = {
    "dino_finetune": "dino_vits16_in1k or dino",
    "dino_lora": "dino_vits16_in1k or dino",
    "dinov2_finetune": "dinov2_vits16_in1k or dinov2",
    "dinov2_high_resolution": "dinov2_vits16_in1k or dinov2",
    "distill_finetune": "distill_vits16 or distill",
    "lejepa_finetune": "lejepa_vits16_in1k or lejepa",
    "mae_finetune": "mae_vitb16_in1k or mae",
    "pmsn_finetune": "pmsn_vits16_in1k, msn_vits16_in1k or pmsn",
    "linear_probe": "classify, which also trains the encoder",
}
FINETUNING = "_finetune"  # end of the names of recipes that fine-tune, also of registered ones


def check_start(run: RunConfig) -> None:
    """Check that a run starts from the weights that its recipe is for: pretrained or random ones.

    Learning rates and frozen first steps of a recipe for pretrained encoders would make a bad
    encoder from random weights, and those of a recipe for random weights would ruin a good one.

    Raises:
        ValueError: If the run starts from other weights.
    """
    name = run.recipe
    if run.start.init_from is not None:
        from_scratch_only = {recipe.__name__: start for recipe, start in SMALL_FOLDER.items()}
        if name in from_scratch_only:
            start = from_scratch_only[name]
            instead = "distill_finetune" if start is None else start[0]
            raise ValueError(
                f"{name} starts from random weights, and --init-from ({run.start.init_from}) names "
                f"others; use {instead} --init-from {run.start.init_from}."
            )
        return
    if name in FROM_CHECKPOINT or name.endswith(FINETUNING):
        from_scratch = FROM_CHECKPOINT.get(name, "a recipe of pretraining")
        raise ValueError(
            f"{name} trains a pretrained encoder further, so it needs --init-from CHECKPOINT; to "
            f"start from random weights, use {from_scratch}."
        )


def register_recipe(recipe: Recipe) -> Recipe:
    """Register a recipe for `train` under the name of its function; usable as a decorator.

    Args:
        recipe: Function that returns the configuration of a run.

    Returns:
        The recipe itself.

    Raises:
        ValueError: If another recipe has this name.
    """
    name = recipe.__name__
    if RECIPES.setdefault(name, recipe) is not recipe:
        raise ValueError(f"a recipe named {name!r} exists already; rename the function.")
    return recipe


__all__ = ["RECIPES", "check_start", "register_recipe"]
