"""Export the encoder of a checkpoint to the format of another library."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, BaseImageProcessor
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

from ...atomic_output import atomic_output, check_output
from ...configuration.configuration_selfvit import SelfViTConfig
from ...embedding.embedder import best_device
from ...modeling.checkpoints.loading import load_strictly
from ...modeling.checkpoints.processor_code import PROCESSING
from ...modeling.checkpoints.resolve import resolve_checkpoint
from ...modeling.image_processing_selfvit import SelfViTImageProcessor
from ...modeling.modeling_selfvit import SelfViTModel
from ...sharing.provenance import EXPORT_FILE, display_name, hub_id, read_provenance
from ...sharing.published_files import WEIGHT_FILES
from .fidelity import Fidelity
from .onnx import INT8_MODEL, MODEL, Int8, check_onnx, write_onnx
from .sentence_transformers import (
    MODEL_FILE,
    MODULES_FILE,
    TRANSFORMER_FILE,
    check_sentence_transformers,
    write_sentence_transformers,
)
from .timm import check_timm, write_timm
from .transformers import check_transformers, write_transformers

FORMATS = ("transformers", "timm", "onnx", "sentence-transformers")
CAN_NORMALIZE = ("onnx", "sentence-transformers")  # the others cannot store normalization
# On images that stock processors cannot read: other channels than RGB, or a declared range.
PROCESSOR_NOTES = {
    "transformers": "the model opens with stock transformers; its image processor "
    "(num_channels {channels}) needs the code in the folder: "
    "AutoImageProcessor.from_pretrained(FOLDER, trust_remote_code=True).",
    "onnx": "the image processor (num_channels {channels}) needs the code in the folder: "
    "AutoImageProcessor.from_pretrained(FOLDER, trust_remote_code=True).",
    "timm": "timm's transforms read RGB images of eight bits. Images for this "
    "encoder (num_channels {channels}) are resized, scaled to 0 to 1 and normalized by mean and "
    "std of config.json in your own code.",
}
CREATED_BY = "selfvit export"
FILES = (  # names that an export may contain, as patterns; those of folders end with a slash
    EXPORT_FILE,
    CONFIG_NAME,
    IMAGE_PROCESSOR_NAME,
    f"{PROCESSING}.py",
    *WEIGHT_FILES,
    MODEL,
    f"{MODEL}.data",  # weights of a graph above 2 GB
    INT8_MODEL,
    # sentence-transformers
    MODULES_FILE,
    TRANSFORMER_FILE,
    MODEL_FILE,
    "1_Pooling/",
    "2_Dense/",
    "[23]_Normalize/",
)


@dataclass(frozen=True)
class ExportReport:
    """Result of an export.

    Args:
        output: Folder of the export.
        pooling: Pooling of its vectors, as for `SelfViTConfig`.
        fidelity: Comparison with the encoder.
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
    """Export the encoder of a checkpoint to the format of another library.

    The export is opened and compared with the encoder before the output folder appears; if it
    differs, nothing is written. Weights are float32. The head of an objective and the classifier
    are left out. `selfvit_export.json` in the folder records the checkpoint and its license.

    Args:
        checkpoint: Folder, Hub id or USER/NAME@REVISION of a selfvit checkpoint.
        output: Folder to write.
        to: One of `FORMATS`.
        network: "teacher" or "student", as for `SelfViTModel.from_pretrained`.
        pooling: Pooling of the vectors, as for `SelfViTConfig`. Default: the checkpoint's.
        normalize: Whether to scale vectors to length 1 (onnx and sentence-transformers only).
        int8: Settings of an additional 8-bit graph (onnx only), or None.
        device: Device of the encoder that the export is compared with. Default: the best one.
        overwrite: Whether to replace an earlier export in `output`.

    Raises:
        FileExistsError: If `output` must not be replaced.
        FileNotFoundError: If there is no such checkpoint, or it has no image processor.
        ImportError: If the format needs a package that is not installed.
        ValueError: If the checkpoint is invalid, or the format cannot express it; the message names
            alternatives.
    """
    _check_arguments(to, normalize, int8)
    check_output(output, EXPORT_FILE, overwrite, files=FILES, created_by=CREATED_BY)
    overrides: dict[str, Any] = {} if pooling is None else {"pooling": pooling}
    device = best_device(device)
    opened = resolve_checkpoint(checkpoint)
    config = AutoConfig.from_pretrained(opened, **overrides)
    _check_format(to, config)
    encoder = load_strictly(SelfViTModel, opened, network=network, dtype=torch.float32, **overrides)
    encoder = encoder.to(device)  # type: ignore[arg-type]
    processor = _load_processor(opened)
    _check_processor(to, processor, encoder.config)
    provenance = read_provenance(checkpoint)
    with atomic_output(output) as folder:
        folder.mkdir()
        fidelity = _write(to, encoder, processor, folder, normalize, int8)
        if isinstance(processor, SelfViTImageProcessor):
            note = PROCESSOR_NOTES[to].format(channels=processor.num_channels)
            fidelity = replace(fidelity, notes=(*fidelity.notes, note))
        if "SelfViTForImageClassification" in (config.architectures or ()):
            left_out = "the classifier is left out, because an export computes embeddings."
            fidelity = replace(fidelity, notes=(*fidelity.notes, left_out))
        report = ExportReport(output, encoder.config.pooling, fidelity)
        content = {
            **_describe(report, normalize),
            "checkpoint": str(checkpoint) if hub_id(checkpoint) else display_name(checkpoint),
            "license": provenance.license,
            "license_name": provenance.license_name,
            "license_link": provenance.license_link,
            "base_model": provenance.base_model,
            "network": network,
            "to": to,
        }
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / EXPORT_FILE).write_text(text, encoding="utf-8")
    return report


def _check_arguments(to: str, normalize: bool, int8: Int8 | None) -> None:
    if to not in FORMATS:
        raise ValueError(f"to ({to!r}) must be one of {', '.join(FORMATS)}.")
    if normalize and to not in CAN_NORMALIZE:
        raise ValueError(
            f"normalize cannot be expressed in {to}: its models cannot store it. Normalize the "
            f"vectors after embedding, or use --to {' or --to '.join(CAN_NORMALIZE)}."
        )
    if int8 is not None and to != "onnx":
        raise ValueError(f"int8 is for --to onnx, not for --to {to}. Leave --int8 out.")


def _check_format(to: str, config: SelfViTConfig) -> None:
    """Check that a format can express a checkpoint, before its weights are read."""
    if config.model_type != SelfViTConfig.model_type:
        return  # `load_strictly` raises the error
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
            f"{str(checkpoint)!r} has no image processor, so the export would have no "
            "preprocessing. Write one: selfvit.build_processor(config)"
            ".save_pretrained(checkpoint)."
        ) from error


def _check_processor(to: str, processor: BaseImageProcessor, config: SelfViTConfig) -> None:
    """Check that the export can hold the image processor, and that it feeds the encoder."""
    fields: Any = processor
    own = isinstance(processor, SelfViTImageProcessor)
    channels = fields.num_channels if own else 3
    if channels != config.num_channels:
        raise ValueError(
            f"the image processor gives {channels} channels, but the encoder reads "
            f"{config.num_channels} (num_channels). Write a new one: "
            "selfvit.build_processor(config).save_pretrained(checkpoint)."
        )
    if own and to == "sentence-transformers":
        raise ValueError(
            f"the image processor ({type(processor).__name__}, {channels} channels, pixel_range "
            f"{fields.pixel_range}) cannot be expressed: sentence-transformers loads stock "
            "processors only, which read RGB images of eight bits. Use --to onnx or --to "
            "transformers."
        )


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


def _describe(report: ExportReport, normalize: bool) -> dict[str, Any]:
    from ... import __version__

    return {
        "created_by": CREATED_BY,
        "selfvit_version": __version__,
        "pooling": report.pooling,
        "normalize": normalize,
        "max_difference": report.fidelity.max_difference,
        "notes": report.fidelity.notes,
    }


__all__ = ["FORMATS", "ExportReport", "export"]
