"""Write docs/configuration.md from the dataclasses: `make docs`.

    python docs/write_configuration_reference.py

The meaning of a field is its `help` (training), or its entry in the class' docstring (models).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from inspect import get_annotations
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from transformers import PreTrainedConfig
from transformers.utils.chat_template_utils import parse_google_format_docstring

from selfvit import DINOConfig, MAEConfig, PMSNConfig, SelfViTConfig
from selfvit.training.augmentations.registry import AUGMENTATIONS
from selfvit.training.config.training_config import TrainingConfig
from selfvit.training.recipes import RECIPES

PAGE = Path(__file__).with_name("configuration.md")

INTRODUCTION = """\
# Configuration reference

<!-- Written by `make docs` (docs/write_configuration_reference.py). Edit the dataclasses, not this
page. -->

Every value of a run has a name, a default and one place: the model (`config.json`), the
augmentation or the training (`training.yaml`). On the command line the place does not matter; with
underscores or hyphens is the same:

<!-- test: append --max_steps 2 --batch_size 8 -->
```bash
selfvit train dino_demo --data FOLDER --output first --num_prototypes 256 --epochs 30
```

A recipe changes some defaults, the command line goes before the recipe, and `--init_from` brings
geometry and preprocessing of the checkpoint; a size that its weights do not have is refused. What
came of it stands in `training.yaml`, all values, and runs again:

<!-- test: append --max_steps 2 -->
```bash
selfvit train first/training.yaml --output again --base_learning_rate 0.001
```

`selfvit train --help` lists the recipes, `selfvit train RECIPE --help` the options of one. Lists
are given with spaces (`--local_crop_scale 0.1 0.4`), but for the model's, which are JSON
(`--image_size "[28, 56]"`). Truth values are `true` and `false`. A value that does not fit is
refused before anything is written, with the rule and, where there is one, a value that would do.

In Python, a model's configuration is an object like any of transformers':

```python
from selfvit import DINOConfig, SelfViTConfig, SelfViTForDINO

dino_config = DINOConfig(num_prototypes=4096)
config = SelfViTConfig.from_name("vits16", pooling="cls+mean", dino_config=dino_config)
config.embedding_size  # 768: class token and mean, 384 each

model = SelfViTForDINO(config)
```

Numbers that are a paper's have their source beside them in
[configuration/](../configuration) and [training/recipes/](../training/recipes).
"""


def reference() -> str:
    """Return the page."""
    parts = [INTRODUCTION, "## Model\n"]
    for config in (SelfViTConfig, DINOConfig, MAEConfig, PMSNConfig):
        summary, meanings, _ = parse_google_format_docstring(inspect.getdoc(config) or "")
        parts.append(f"### {config.__name__}\n\n{paragraph(summary)}\n")
        parts.append(table(config, own_fields(config), meanings or {}))
    parts.append(
        "Named sizes, for `SelfViTConfig.from_name`: `vit` + `ti`, `s`, `b` or `l` + patch size 8, "
        "14, 16 or 32, as in `vits16`.\n"
    )
    parts.append(f"## Training\n\n### TrainingConfig\n\n{paragraph(TrainingConfig.__doc__)}\n")
    parts.append(table(TrainingConfig, fields(TrainingConfig)))
    parts.append("## Augmentations\n")
    parts.append(
        "A recipe chooses the kind; its numbers are options. Fractions of an area are of the "
        "image's; crops have the size of the model's images where no other is named.\n"
    )
    for name, kind in AUGMENTATIONS.items():
        parts.append(f"### {kind.__name__}\n\n{paragraph(kind.__doc__)}\n")
        recipes = [
            f"`{recipe}`"
            for recipe, make_run in RECIPES.items()
            if type(make_run(None, None).augmentation) is kind
        ]
        parts.append(f"`kind: {name}` in `training.yaml`. Recipes: {', '.join(recipes)}.\n")
        parts.append(table(kind, fields(kind)))
    return "\n".join(parts)


def own_fields(config: type[PreTrainedConfig]) -> Iterator[Field]:
    """Yield what a configuration adds to those of transformers."""
    inherited = {entry.name for entry in fields(PreTrainedConfig)}
    for entry in fields(config):
        if entry.name not in inherited and not entry.name.startswith("_"):
            yield entry


def table(owner: type, entries: Any, meanings: dict[str, str] | None = None) -> str:
    """Return a row a field: name, type, default, meaning.

    Types are read from the class: HfArgumentParser writes others into the fields of what it parsed.

    Raises:
        ValueError: if a field has no meaning.
    """
    rows = ["| name | type | default | meaning |", "| --- | --- | --- | --- |"]
    annotations = {
        name: kind for base in owner.__mro__[::-1] for name, kind in get_annotations(base).items()
    }
    for entry in entries:
        meaning = entry.metadata.get("help") if meanings is None else meanings.get(entry.name)
        if not meaning:
            raise ValueError(
                f"the field {entry.name} has no text; give it one where it is defined."
            )
        default = entry.default_factory() if entry.default is MISSING else entry.default
        cells = (
            f"`{entry.name}`",
            type_of(entry.name, annotations[entry.name]),
            value(default),
            meaning,
        )
        rows.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def type_of(name: str, kind: Any) -> str:
    """Return a field's type as one would say it."""
    if kind is Any:  # sub-configurations
        objective = SelfViTConfig.sub_configs_defaults[name].config_class
        return f"{objective.__name__} or None"
    if get_origin(kind) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(kind))
    text = kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
    if text.startswith("Literal["):
        return text[8:-1].replace("'", "`").replace(", ", " or ")
    return text.replace("float | int", "float").replace(" | ", " or ")


def value(thing: Any) -> str:
    """Return a value as YAML writes it; None stands for itself."""
    if thing is None:
        return "None"
    if isinstance(thing, bool):
        return f"`{str(thing).lower()}`"
    return f'`"{thing}"`' if isinstance(thing, str) else f"`{thing}`"


def paragraph(docstring: str | None) -> str:
    """Return a docstring in lines as the page's are."""
    return inspect.cleandoc(docstring or "").strip()


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
    print(f"written: {PAGE}")
