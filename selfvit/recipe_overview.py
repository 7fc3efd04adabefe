"""List of the recipes, read from their sources without importing them.

Importing a recipe imports torch and transformers, and `selfvit train --help` should not wait for
them. Every folder of the package may import this module.
"""

from __future__ import annotations

import ast
from pathlib import Path

RECIPES = Path(__file__).parent / "training" / "recipes"


def overview() -> str:
    """Return the text of `selfvit train --help`: the grammar and the recipes."""
    lines = [
        "Usage: selfvit train RECIPE --data IMAGES --output RUN "
        "[--init-from CHECKPOINT] [--resume] [OPTIONS]",
        "",
        "Train a model on images without labels, or fine-tune one, with the settings of a recipe.",
        "",
        "Recipes:",
    ]
    summaries = recipe_summaries()
    width = max(map(len, summaries))
    lines += [f"  {name:<{width}}  {summary}" for name, summary in summaries.items()]
    return "\n".join([*lines, "", "selfvit train RECIPE --help lists all options of a recipe."])


def recipe_summaries() -> dict[str, str]:
    """Return the first line of each recipe's docstring by its name, in the order of RECIPES.

    The sources are parsed and not imported: importing a recipe imports torch and transformers.
    """
    tree = ast.parse((RECIPES / "__init__.py").read_text(encoding="utf-8"))
    modules: dict[str, str] = {}
    names: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
            modules |= {alias.name: node.module for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == "RECIPES" for target in targets):
                names = [n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)]
    summaries = {}
    for name in names:
        if name in modules:
            summaries[name] = _summary(RECIPES / f"{modules[name]}.py", name)
    return summaries


def _summary(file: Path, function: str) -> str:
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    return ""


__all__ = ["overview", "recipe_summaries"]
