"""A selfvit checkpoint for those who have no selfvit: the formats it can be written in."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, BaseImageProcessor

from ...atomic_output import atomic_output, check_output
from ...configuration.configuration_selfvit import SelfViTConfig
from ...embedding.embedder import best_device
from ...modeling.checkpoints.hub_revision import resolve_checkpoint
from ...modeling.checkpoints.loading import load_strictly
from ...modeling.modeling_selfvit import SelfViTModel
from ...sharing.provenance import read_provenance
from .fidelity import Fidelity
from .onnx import Int8, check_onnx, write_onnx
from .sentence_transformers import check_sentence_transformers, write_sentence_transformers
from .timm import check_timm, write_timm
from .transformers import check_transformers, write_transformers

FORMATS = ("transformers", "timm", "onnx", "sentence-transformers")
CAN_NORMALIZE = ("onnx", "sentence-transformers")  # the others have no place for it
FACTS = "selfvit_export.json"
CREATED_BY = "selfvit export"
FILES = (  # names that an export may contain, as patterns
    FACTS,
    "config.json",
    "preprocessor_config.json",
    "model*",
    # sentence-transformers
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "[0-9]_*",
)


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Args:
        output: the folder.
        pooling: what its vectors are, as for `SelfViTConfig`.
        fidelity: how close it is to the encoder.
    """

    output: Path
    pooling: str
    fidelity: Fidelity


def export(
    checkpoint: str | os.PathLike[str],
    output: Path,
    *,
    to: str,
    network: str = "teacher",
    pooling: str | None = None,
    normalize: bool = False,
    int8: Int8 | None = None,
    device: str | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write the encoder of a checkpoint in the format of another project.

    What was written is opened again and compared with the encoder before the folder appears, as a
    whole or not at all. `selfvit_export.json` in it says where it is from, and under which license.
    The weights are float32;
    an objective's head, and a classifier, are left out.

    Args:
        checkpoint: folder, Hub id or USER/NAME@REVISION of any selfvit checkpoint.
        output: folder to write.
        to: one of `FORMATS`.
        network: "teacher" or "student", as for `SelfViTModel.from_pretrained`.
        pooling: what a vector is, as for `SelfViTConfig`; None for the checkpoint's own.
        normalize: whether vectors are scaled to length 1, where the format has a place for it.
        int8: a graph in 8 bits, too (onnx only).
        device: Device of the encoder that the export is compared with; None for the best available.
        overwrite: whether an earlier export in `output` may be replaced.

    Raises:
        FileExistsError: if `output` holds something that may not be replaced.
        FileNotFoundError: if there is no such checkpoint, or it has no image processor.
        ImportError: if the format needs a package that is not installed.
        ValueError: if the checkpoint is unsound, or the format cannot express it; the message says
            what it can.
    """
    _check_arguments(to, normalize, int8)
    check_output(output, FACTS, overwrite, files=FILES, created_by=CREATED_BY)
    overrides: dict[str, Any] = {} if pooling is None else {"pooling": pooling}
    device = best_device(device)
    opened = resolve_checkpoint(checkpoint)
    config = AutoConfig.from_pretrained(opened, **overrides)
    _check_format(to, config)
    encoder = load_strictly(SelfViTModel, opened, network=network, dtype=torch.float32, **overrides)
    encoder = encoder.to(device)  # type: ignore[arg-type]
    processor = _load_processor(opened)
    provenance = read_provenance(checkpoint)
    with atomic_output(output) as folder:
        folder.mkdir()
        fidelity = _write(to, encoder, processor, folder, normalize, int8)
        if "SelfViTForImageClassification" in (config.architectures or ()):
            left_out = "the classifier is left out: an export gives vectors."
            fidelity = replace(fidelity, notes=(*fidelity.notes, left_out))
        report = ExportReport(output, encoder.config.pooling, fidelity)
        facts = {
            **_facts(report, normalize),
            "checkpoint": str(checkpoint),
            "license": provenance.license,
            "base_model": provenance.base_model,
            "network": network,
            "to": to,
        }
        text = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
        (folder / FACTS).write_text(text, encoding="utf-8")
    return report


def _check_arguments(to: str, normalize: bool, int8: Int8 | None) -> None:
    if to not in FORMATS:
        raise ValueError(f"to ({to!r}) must be one of {', '.join(FORMATS)}.")
    if normalize and to not in CAN_NORMALIZE:
        raise ValueError(
            f"normalize cannot be expressed in {to}: its models have no place for it. Normalize "
            f"the vectors yourself, or use {' or '.join(CAN_NORMALIZE)}."
        )
    if int8 is not None and to != "onnx":
        raise ValueError(f"int8 is for --to onnx, not for {to}; leave it out.")


def _check_format(to: str, config: SelfViTConfig) -> None:
    """Refuse what cannot be expressed before weights are read."""
    if config.model_type != SelfViTConfig.model_type:
        return  # `load_strictly` has the words for it
    checks: dict[str, Callable[[SelfViTConfig], None]] = {
        "transformers": check_transformers,
        "timm": check_timm,
        "sentence-transformers": check_sentence_transformers,
        "onnx": lambda config: check_onnx(),
    }
    checks[to](config)


def _load_processor(checkpoint: str | os.PathLike[str]) -> BaseImageProcessor:
    try:
        return AutoImageProcessor.from_pretrained(checkpoint)
    except OSError as error:
        raise FileNotFoundError(
            f"{str(checkpoint)!r} has no image processor, so nobody could know the preprocessing "
            "of an export. Write one: selfvit.embedding.preprocessing.build_processor(config)"
            ".save_pretrained(checkpoint)."
        ) from error


def _write(
    to: str,
    encoder: SelfViTModel,
    processor: BaseImageProcessor,
    folder: Path,
    normalize: bool,
    int8: Int8 | None,
) -> Fidelity:
    if to == "transformers":
        return write_transformers(encoder, processor, folder)
    if to == "timm":
        return write_timm(encoder, processor, folder)
    if to == "onnx":
        return write_onnx(encoder, processor, folder, normalize=normalize, int8=int8)
    return write_sentence_transformers(encoder, processor, folder, normalize=normalize)


def _facts(report: ExportReport, normalize: bool) -> dict[str, Any]:
    from ... import __version__

    return {
        "created_by": CREATED_BY,
        "selfvit_version": __version__,
        "pooling": report.pooling,
        "normalize": normalize,
        "max_difference": report.fidelity.max_difference,
        "notes": report.fidelity.notes,
    }


__all__ = ["FACTS", "FORMATS", "ExportReport", "export"]
