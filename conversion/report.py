"""Report of a conversion: as printed text, as JSON, and as a model card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
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
    """Result of a conversion.

    Args:
        kind: Detected format of the source.
        architecture: Class name of the converted model.
        config: Configuration of the converted model.
        fields: Configuration fields that were inferred: value and origin, by name.
        preprocessing: Origin of image size, mean and std.
        left_out: Source tensors that are not in the result, with the reason.
        new: Tensors of the result that the source lacks, with the reason.
        differences: Differences in behavior between the source and the result.
        guesses: Assumption about a field, and the option that corrects it, by field.
    """

    kind: str
    architecture: str
    config: SelfViTConfig
    fields: dict[str, tuple[Any, str]]
    preprocessing: str
    left_out: dict[str, str]
    new: dict[str, str]
    differences: list[str]
    guesses: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = [f"source        {self.kind}", f"model         {self.architecture}"]
        for name, (value, origin) in self.fields.items():
            rows.append(f"  {name} = {_truncate(value)}  [{origin}]")
        rows.append(f"preprocessing {self.preprocessing}")
        for title, entries in (("left out", self.left_out), ("new", self.new)):
            for reason, names in _group_by_reason(entries):
                rows.append(f"{title:13} {shorten(names, 4)}: {reason}")
        rows += [f"difference    {difference}" for difference in self.differences]
        rows += [f"guess         {name}: {text}" for name, text in self.guesses.items()]
        return "\n".join(rows)


def _truncate(value: Any, limit: int = 100) -> str:
    text = str(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _group_by_reason(entries: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Yield (reason, names) for names that map to their reason."""
    for reason in dict.fromkeys(entries.values()):
        yield reason, [name for name, other in entries.items() if other == reason]


def build_report(
    conversion: Conversion, file: SourceFile, license_note: str, provenance: Provenance
) -> dict[str, Any]:
    """Return the content of `conversion.json`."""
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
        "guesses": conversion.guesses,
        "license": provenance.license,
        "license_name": provenance.license_name,
        "license_link": provenance.license_link,
        "license_note": license_note,
        "base_model": provenance.base_model,
        "selfvit_version": __version__,
    }


def build_card_contents(
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
    """Return the contents of the model card.

    Args:
        conversion: Result of the conversion.
        name: Name of the converted checkpoint.
        source: Name of the source, without the folders that contain it.
        model: Converted model.
        processor: Image processor of the converted model.
        license_note: Note on the license of the source.
        provenance: License and base model of the source.
        has_code: Whether the checkpoint includes the model code.
    """
    notes = [
        f"{len(names)} {title}: {reason}"
        for title, entries in (("left out", conversion.left_out), ("new", conversion.new))
        for reason, names in _group_by_reason(entries)
    ]
    notes += [f"guess: {name}: {text}" for name, text in conversion.guesses.items()]
    config = conversion.config
    return CardContents(
        name=name,
        architecture=conversion.architecture,
        config=config,
        num_parameters=sum(parameter.numel() for parameter in model.base_model.parameters()),
        image_mean=processor.image_mean,
        image_std=processor.image_std,
        provenance=provenance,
        pixel_range=getattr(processor, "pixel_range", None),
        has_code=has_code,
        has_teacher=config.dino_config is not None or config.pmsn_config is not None,
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


__all__ = ["CREATED_BY", "Conversion", "build_card_contents", "build_report"]
