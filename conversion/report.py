"""What a conversion did: printed, as JSON, and as the card of its result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..configuration.configuration_selfvit import SelfViTConfig
from ..errors import shorten
from ..sharing.model_card import CardContents, ConversionFacts
from ..sharing.provenance import Provenance
from .read_weights import SourceFile

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
                rows.append(f"{title:13} {shorten(names, 4)}: {why}")
        rows += [f"difference    {difference}" for difference in self.differences]
        return "\n".join(rows)


def _short(value: Any, limit: int = 100) -> str:
    text = str(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def describe(
    conversion: Conversion, file: SourceFile, license_note: str, provenance: Provenance
) -> dict[str, Any]:
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
        "license": provenance.license,
        "license_note": license_note,
        "base_model": provenance.base_model,
        "selfvit_version": __version__,
    }


def card_contents(
    conversion: Conversion,
    *,
    name: str,
    source: str,
    model: PreTrainedModel,
    processor: Any,
    license_note: str,
    provenance: Provenance,
    has_code: bool,
) -> CardContents:
    """Return what the card says.

    Args:
        conversion: what was converted, and how.
        name: of the result.
        source: what was converted, without the folders it lies in.
        model: the result.
        processor: its image processor.
        license_note: what is known of the source's, in words.
        provenance: its license and base model.
        has_code: whether the model's code lies beside the weights.
    """
    notes = []
    for entries, what in ((conversion.left_out, "left out"), (conversion.new, "new")):
        for why in dict.fromkeys(entries.values()):
            count = sum(reason == why for reason in entries.values())
            notes.append(f"{count} {what}: {why}")
    return CardContents(
        name=name,
        architecture=conversion.architecture,
        config=conversion.config,
        num_parameters=sum(parameter.numel() for parameter in model.base_model.parameters()),
        image_mean=processor.image_mean,
        image_std=processor.image_std,
        provenance=provenance,
        has_code=has_code,
        has_teacher=conversion.config.dino_config is not None
        or conversion.config.pmsn_config is not None,
        conversion=ConversionFacts(
            source=source,
            kind=conversion.kind,
            fields=conversion.fields,
            preprocessing=conversion.preprocessing,
            differences=conversion.differences,
            notes=notes,
            license_note=license_note,
        ),
    )


__all__ = ["CREATED_BY", "Conversion", "card_contents", "describe"]
