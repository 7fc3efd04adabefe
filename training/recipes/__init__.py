"""Recipes: one function for each paper's run or use case, with the source of every number.

A recipe takes the number of images and the requested batch size (None where they are unknown) and
returns a `RunConfig`. Every value can be changed on the command line by its name.
"""

from __future__ import annotations

from ..config.run_config import Recipe
from .dino import dino_demo, dino_finetune, dino_lora, dino_vits16_in1k
from .mae import mae_demo, mae_finetune, mae_vitb16_in1k
from .pmsn import msn_vits16_in1k, pmsn_demo, pmsn_finetune, pmsn_vits16_in1k
from .supervised import classify, linear_probe, mae_classify

RECIPES: dict[str, Recipe] = {
    recipe.__name__: recipe
    for recipe in (
        dino_vits16_in1k,
        dino_finetune,
        dino_lora,
        dino_demo,
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


def register_recipe(recipe: Recipe) -> Recipe:
    """Add a recipe under the name of its function, so that `train` finds it; a decorator.

    Raises:
        ValueError: If another recipe has this name.
    """
    name = recipe.__name__
    if RECIPES.setdefault(name, recipe) is not recipe:
        raise ValueError(f"there is a recipe {name!r} already; give the function another name.")
    return recipe


__all__ = ["RECIPES", "register_recipe"]
