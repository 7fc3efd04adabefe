"""Recipes: one function per paper's run or use case, with every number and where it comes from.

A recipe is called with the number of images and the batch size asked for (None where unknown) and
returns a `Run`; most need neither. Every value can be changed on the command line by its name.
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

__all__ = ["RECIPES"]
