"""Weights in: `selfvit convert SOURCE OUT`.

The kind of the source is detected from its tensors, never from a file's name; its table names what
becomes of each. Every tensor of the source is used or a known extra, every tensor of the model is
filled or named as new; anything else is an error, and nothing is written.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AutoImageProcessor, BaseImageProcessor

from ..atomic_output import atomic_output, check_output
from ..configuration.configuration_selfvit import SelfViTConfig
from ..embedding.preprocessing import build_processor
from ..modeling.checkpoints.loading import DTYPES
from ..modeling.checkpoints.remote_code import code_files
from ..sharing.model_card import render_model_card
from ..sharing.provenance import CARD, Provenance, read_provenance, shown_name
from .match_weights import build_model, draft_model
from .read_weights import read_source
from .report import CREATED_BY, Conversion, card_contents, describe
from .weight_format import STATISTICS, Draft, Options

REPORT, PROCESSOR = "conversion.json", "preprocessor_config.json"


def convert(
    source: str | Path,
    output: str | Path,
    *,
    num_heads: int | None = None,
    decoder_num_heads: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    pooling: str | None = None,
    norm_pix_loss: bool | None = None,
    statistics: str | None = None,
    dtype: str | None = None,
    save_code: bool = True,
    overwrite: bool = False,
) -> Conversion:
    """Convert a source of weights to a selfvit checkpoint.

    Args:
        source: file (`.pth`, `.pt`, `.ckpt`, `.safetensors`), folder, Hub id or timm model.
        output: the folder; must not exist, or be empty, or hold an earlier conversion.
        num_heads: attention heads; from the source's config.json or width / 64 if None.
        decoder_num_heads: attention heads of MAE's decoder; 16 if None.
        image_size: pixels, one number or (height, width), whose positions the source stores; a
            square if None.
        pooling: as for `SelfViTConfig`; the source's own if None.
        norm_pix_loss: whether MAE's decoder predicts normalized pixels, which no tensor tells.
        statistics: "imagenet" or "half" (0.5), mean and deviation of the preprocessing; what the
            source stores, or its convention, if None.
        dtype: "float32", "float16" or "bfloat16", to which all weights are cast; the source's if
            None.
        save_code: whether the model's code lies beside the weights, so that they open without
            selfvit, too.
        overwrite: whether an earlier conversion is replaced, once the new one is whole.

    Returns:
        What was done; `print` it.

    Raises:
        FileNotFoundError: if there is no such source.
        FileExistsError: if `output` is in the way.
        ValueError: if the source cannot be read safely, is of no known kind, or its tensors do not
            fit; the message names them. Nothing is written.
    """
    output = Path(output)
    _check_folder(output, overwrite)
    options = Options(
        num_heads=num_heads,
        decoder_num_heads=decoder_num_heads,
        image_size=(image_size, image_size) if isinstance(image_size, int) else image_size,
        pooling=pooling,
        norm_pix_loss=norm_pix_loss,
        statistics=statistics,
        dtype=dtype,
    )
    _check_options(options)
    file = read_source(source)
    draft = draft_model(file, options)
    model, config = build_model(draft)
    processor, processed_by = _processor(draft, config)
    provenance = _provenance(draft)
    conversion = Conversion(
        kind=draft.kind,
        architecture=draft.architecture,
        config=config,
        fields={name: (value, draft.where_from[name]) for name, value in draft.fields.items()},
        preprocessing=processed_by,
        left_out=draft.left_out,
        new=draft.new,
        differences=draft.differences,
    )
    with atomic_output(output) as folder:
        folder.mkdir()
        model.save_pretrained(folder, save_code=save_code)
        processor.save_pretrained(folder)
        report = describe(conversion, file, draft.license_note, provenance)
        (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        card = render_model_card(
            card_contents(
                conversion,
                name=output.resolve().name,
                source=shown_name(source),
                model=model,
                processor=processor,
                license_note=draft.license_note,
                provenance=provenance,
                has_code=save_code,
            )
        )
        (folder / CARD).write_text(card, encoding="utf-8")
    return conversion


def _provenance(draft: Draft) -> Provenance:
    """Return license and base model: the source's own card goes before what its kind tells."""
    file = draft.file
    stored = Provenance() if file.folder is None else read_provenance(file.folder)
    base_model = file.repository or stored.base_model
    where = shown_name(file.repository or file.description)
    if stored.license is not None:
        return replace(stored, base_model=base_model, origin=f"the card of {where}")
    kind = "" if draft.license_id is None else f"the kind of the source, {draft.kind}"
    return Provenance(draft.license_id, base_model=base_model, origin=kind)


def _check_options(options: Options) -> None:
    if options.dtype is not None and options.dtype not in DTYPES:
        raise ValueError(f"dtype ({options.dtype!r}) must be one of {', '.join(DTYPES)}.")
    if options.statistics is not None and options.statistics not in STATISTICS:
        raise ValueError(
            f"statistics ({options.statistics!r}) must be one of {', '.join(STATISTICS)}."
        )
    for name in ("num_heads", "decoder_num_heads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} ({value}) must be at least 1.")


def _check_folder(output: Path, overwrite: bool) -> None:
    """Check that the output folder is new, empty or an earlier conversion that may be replaced."""
    code = [path.name for path in code_files(output)]
    files = [REPORT, PROCESSOR, "config.json", CARD, "model*", *code]
    check_output(output, REPORT, overwrite, files=files, created_by=CREATED_BY)


def _processor(draft: Draft, config: SelfViTConfig) -> tuple[BaseImageProcessor, str]:
    """Return the source's own image processor, or one by its convention; and which."""
    folder = draft.file.folder
    statistics = draft.options.statistics
    if folder is not None and (folder / PROCESSOR).is_file() and statistics is None:
        stored = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
        _check_processor(stored, config)
        return stored, f"{PROCESSOR} of the source"
    wanted = draft.preprocessing
    mean, std = STATISTICS[statistics] if statistics else (wanted.mean, wanted.std)
    processor: Any = build_processor(
        config, resize=wanted.resize, mean=mean, std=std, crop_ratio=wanted.crop_ratio
    )
    processor.resample = wanted.resample
    return processor, "option: statistics" if statistics else wanted.origin


def _check_processor(processor: BaseImageProcessor, config: SelfViTConfig) -> None:
    image = Image.new("RGB", (300, 200))
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    if any(size % config.patch_size for size in pixels.shape[-2:]):
        raise ValueError(
            f"{PROCESSOR} of the source makes images of {pixels.shape[-2]} x {pixels.shape[-1]} "
            f"pixels, which the patch size ({config.patch_size}) does not divide; correct its "
            "size, or take the file away for the convention."
        )


__all__ = ["convert"]
