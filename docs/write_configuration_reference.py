"""Write docs/configuration.md from the dataclasses: `make docs`.

    python docs/write_configuration_reference.py

The meaning of a field is its help text (training and augmentations) or its entry in the docstring
of the class (models).
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

from selfvit import (
    DINOConfig,
    DINOv2Config,
    DistillConfig,
    LeJEPAConfig,
    MAEConfig,
    PMSNConfig,
    SelfViTConfig,
)
from selfvit.training.augmentations.registry import AUGMENTATIONS
from selfvit.training.config.training_config import SECTIONS
from selfvit.training.recipes import RECIPES

PAGE = Path(__file__).with_name("configuration.md")

INTRODUCTION = """\
# Configuration reference

<!-- Written by `make docs` (docs/write_configuration_reference.py). Edit the dataclasses, not this
page. -->

Every value of a run has a name, a default and one place: a section of `training.yaml` or, for the
model, also `config.json`. On the command line the place does not matter, and names have hyphens
(underscores work too):

<!-- test: append --max-steps 2 --batch-size 8 --num-workers 0 -->
```bash
selfvit train dino_demo --data FOLDER --output first --num-prototypes 256 --epochs 30
```

A recipe changes some defaults. With `--init-from`, geometry and preprocessing come from the
checkpoint. Options on the command line take precedence over both; a size that the checkpoint's
weights do not have is refused. All resulting values are written to `training.yaml`, which can be
run again:

<!-- test: append --max-steps 2 --num-workers 0 -->
```bash
selfvit train first/training.yaml --output again --base-learning-rate 0.001
```

`selfvit train --help` lists the recipes, `selfvit train RECIPE --help` the options of a recipe.
Flags take no value (`--resume`, `--no-save-code`). Lists are separated by spaces
(`--local-crop-scale 0.1 0.4`), and so are height and width of `--image-size 28 56`. A value that is
not allowed is refused before anything is written; the error states the rule and, if there is one,
the nearest allowed value.

In Python, the configuration of a model is an object as in transformers:

```python
from selfvit import DINOConfig, SelfViTConfig, SelfViTForDINO

dino_config = DINOConfig(num_prototypes=4096)
config = SelfViTConfig.from_name("vits16", pooling="cls+mean", dino_config=dino_config)
config.embedding_size  # 768: class token and mean, 384 each

model = SelfViTForDINO(config)
```

Numbers from papers have their source next to them in [configuration/](../configuration) and
[training/recipes/](../training/recipes).
"""


def reference() -> str:
    """Return the text of the page."""
    parts = [INTRODUCTION, "## Model\n"]
    configs = (
        SelfViTConfig,
        DINOConfig,
        DINOv2Config,
        DistillConfig,
        LeJEPAConfig,
        MAEConfig,
        PMSNConfig,
    )
    for config in configs:
        summary, meanings, _ = parse_google_format_docstring(inspect.getdoc(config) or "")
        parts.append(f"### {config.__name__}\n\n{paragraph(summary)}\n")
        parts.append(table(config, own_fields(config), meanings or {}))
    parts.append(
        "Named sizes, for `SelfViTConfig.from_name`: `vit` + `ti`, `s`, `b` or `l` + patch size 8, "
        "14, 16 or 32, as in `vits16`.\n"
    )
    parts.append("## Training\n")
    for name, section in SECTIONS.items():
        parts.append(f"### {section.__name__}\n\n{paragraph(section.__doc__)}\n")
        if name == "hub":
            parts.append("Not written to `training.yaml`.\n")
        else:
            parts.append(f"Section `{name}` of `training.yaml`.\n")
        parts.append(table(section, fields(section)))
    parts.append("## Augmentations\n")
    parts.append(
        "A recipe chooses the kind of augmentation; its fields are options. Areas are fractions of "
        "the image's area. Crops have the image size of the model unless a field gives another "
        "size.\n"
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
    """Yield the fields that a configuration adds to those of transformers."""
    inherited = {entry.name for entry in fields(PreTrainedConfig)}
    for entry in fields(config):
        if entry.name not in inherited and not entry.name.startswith("_"):
            yield entry


def table(owner: type, entries: Any, meanings: dict[str, str] | None = None) -> str:
    """Return a Markdown table with one row per field: name, type, default, meaning.

    Args:
        owner: Class that declares the fields.
        entries: Fields of the class, in order.
        meanings: Meaning of each field; None to use the help texts of the fields.

    Raises:
        ValueError: If a field has no meaning.
    """
    rows = ["| name | type | default | meaning |", "| --- | --- | --- | --- |"]
    annotations = {
        name: kind for base in owner.__mro__[::-1] for name, kind in get_annotations(base).items()
    }
    for entry in entries:
        meaning = entry.metadata.get("help") if meanings is None else meanings.get(entry.name)
        if not meaning:
            raise ValueError(
                f"the field {entry.name} has no description; add one where it is defined."
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
    """Return the type of a field in readable form."""
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
    """Return a value as YAML writes it, and None as None."""
    if thing is None:
        return "None"
    if isinstance(thing, bool):
        return f"`{str(thing).lower()}`"
    return f'`"{thing}"`' if isinstance(thing, str) else f"`{thing}`"


def paragraph(docstring: str | None) -> str:
    """Return the text of a docstring without its indentation."""
    return inspect.cleandoc(docstring or "").strip()


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
    print(f"written: {PAGE}")
