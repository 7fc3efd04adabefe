"""What a conversion did: printed, as JSON, and as the card of its result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..configuration.configuration_selfvit import SelfViTConfig
from .names import listed
from .reading import SourceFile

CREATED_BY = "selfvit convert"


@dataclass(frozen=True)
class Conversion:
    """What was converted, and how.

    Args:
        kind: the source's.
        architecture: class of the result.
        config: of the result.
        fields: configuration by field: value and where it is from.
        preprocessing: where mean, deviation and sizes are from.
        left_out: the source's tensors that are not in the result, and why.
        new: tensors of the result that the source has not, and why.
        differences: what the result does otherwise than the source.
    """

    kind: str
    architecture: str
    config: SelfViTConfig
    fields: dict[str, tuple[Any, str]]
    preprocessing: str
    left_out: dict[str, str]
    new: dict[str, str]
    differences: list[str]

    def __str__(self) -> str:
        rows = [f"source        {self.kind}", f"model         {self.architecture}"]
        for name, (value, origin) in self.fields.items():
            rows.append(f"  {name} = {_short(value)}  [{origin}]")
        rows.append(f"preprocessing {self.preprocessing}")
        for title, entries in (("left out", self.left_out), ("new", self.new)):
            for why in dict.fromkeys(entries.values()):
                names = [name for name, reason in entries.items() if reason == why]
                rows.append(f"{title:13} {listed(names, 4)}: {why}")
        rows += [f"difference    {difference}" for difference in self.differences]
        return "\n".join(rows)


def _short(value: Any, limit: int = 100) -> str:
    text = str(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def describe(conversion: Conversion, file: SourceFile) -> dict[str, Any]:
    """Return what `conversion.json` holds."""
    from .. import __version__

    return {
        "created_by": CREATED_BY,
        "source": Path(file.description).name,
        "sha256": file.sha256,
        "kind": conversion.kind,
        "architecture": conversion.architecture,
        "fields": {
            name: {"value": value, "from": origin}
            for name, (value, origin) in conversion.fields.items()
        },
        "preprocessing": conversion.preprocessing,
        "left_out": conversion.left_out,
        "new": conversion.new,
        "differences": conversion.differences,
        "selfvit_version": __version__,
    }


TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

Weights of `{{ description }}` ({{ conversion.kind }}), converted by
[selfvit](https://pypi.org/project/selfvit). What was left out, is new or differs is named below.

## Use

```python
import selfvit  # pip install selfvit; registers the model with transformers
from transformers import pipeline

extract = pipeline("{{ pipeline_tag }}", model="{{ title }}")
{{ call }}
```

## What it is

| | |
| --- | --- |
| Class | `{{ conversion.architecture }}` |
{% for name, (value, origin) in conversion.fields.items() %}| `{{ name }}` | {{ value }} (from: {{ origin }}) |
{% endfor %}| Preprocessing | {{ conversion.preprocessing }} |
{% if conversion.differences %}
## Differences from the source

{% for difference in conversion.differences %}- {{ difference }}
{% endfor %}{% endif %}{% if notes %}
## Tensors left out, and new ones

{% for note in notes %}- {{ note }}
{% endfor %}{% endif %}
## Licence

The licence of weights travels with them: {{ licence }}.
"""  # noqa: E501 (rows of a table are one line)


def render_card(
    conversion: Conversion, *, name: str, description: str, licence: str, licence_id: str | None
) -> str:
    """Return the text of the card.

    Args:
        conversion: what was converted, and how.
        name: of the result.
        description: of the source.
        licence: what is known of the source's.
        licence_id: as the Hub writes it, or None.
    """
    is_classifier = conversion.architecture == "SelfViTForImageClassification"
    pipeline_tag = "image-classification" if is_classifier else "image-feature-extraction"
    notes = []
    for entries, what in ((conversion.left_out, "left out"), (conversion.new, "new")):
        for why in dict.fromkeys(entries.values()):
            count = sum(reason == why for reason in entries.values())
            notes.append(f"{count} {what}: {why}")
    card = ModelCard.from_template(
        ModelCardData(
            library_name="transformers",
            pipeline_tag=pipeline_tag,
            license=licence_id,
            tags=["selfvit", "vision"],
        ),
        template_str=TEMPLATE,
        title=name,
        description=description,
        conversion=conversion,
        pipeline_tag=pipeline_tag,
        call='extract("image.jpg")' if is_classifier else 'extract("image.jpg", pool=True)',
        notes=notes,
        licence=licence,
    )
    return card.content


__all__ = ["CREATED_BY", "Conversion", "describe", "render_card"]
