"""Convert weights of other projects to a selfvit checkpoint.

The format of the source is detected from its tensors, never from its file name. The key mapping of
the format assigns each tensor to one of the model. Every tensor of the source is used or known to
be unnecessary, and every tensor of the model is filled or reported as new. Anything else is an
error, and nothing is written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

from ..atomic_output import atomic_output, check_output
from ..modeling.checkpoints.loading import DTYPES
from ..modeling.checkpoints.pretrained import write_checkpoint
from ..modeling.checkpoints.remote_code import code_files
from ..sharing.model_card import render_model_card
from ..sharing.provenance import (
    CARD,
    CONVERSION,
    EXPORT_FILE,
    OTHER,
    Provenance,
    display_name,
    provenance_of,
    read_exported_provenance,
)
from ..sharing.published_files import WEIGHT_FILES
from .choose_processor import choose_processor
from .match_weights import build_model, match_weights
from .read_weights import read_source
from .report import CREATED_BY, Conversion, build_card_contents, build_report
from .weight_format import STATISTICS, Draft, Options


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
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    dtype: str | None = None,
    save_code: bool = True,
    overwrite: bool = False,
) -> Conversion:
    """Convert weights to a selfvit checkpoint.

    Args:
        source: File (`.pth`, `.pt`, `.ckpt`, `.safetensors`), folder, Hub id or timm model.
        output: Folder to write. It must be missing or empty, or hold an earlier conversion.
        num_heads: Number of attention heads. Default: from the source's config.json, or width / 64.
        decoder_num_heads: Number of attention heads of the MAE decoder. Default: from the source's
            config.json, or 16.
        image_size: Image size in pixels, one number or (height, width), of the stored position
            embeddings. Default: the size that the source states, or else the square that fits.
        pooling: Pooling of the embedding, as for `SelfViTConfig`. Default: the source's.
        norm_pix_loss: Whether the MAE decoder predicts normalized pixels, which no tensor reveals.
            Default: as in the source's configuration, or False.
        statistics: Mean and std of the preprocessing: "imagenet" or "half" (0.5). Default: those
            that the source stores, or the convention of its format. Image size and interpolation
            of a stored image processor are kept.
        image_mean: Mean per channel, for values in [0, 1], instead of `statistics`. `selfvit stats`
            measures it. Default for other numbers of channels than 3: 0.5.
        image_std: Std per channel, likewise.
        dtype: Data type that all weights are cast to: "float32", "float16" or "bfloat16". Default:
            the source's.
        save_code: Whether to add the model code to the checkpoint, so that it opens without
            selfvit.
        overwrite: Whether to replace an earlier conversion, once the new one is complete.

    Returns:
        Result of the conversion. Print it to see the origin of each field.

    Raises:
        FileNotFoundError: If the source does not exist.
        FileExistsError: If `output` must not be replaced.
        ValueError: If the source cannot be read safely, has no known format, or its tensors do not
            match; the message lists them. Nothing is written.
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
        image_mean=None if image_mean is None else tuple(image_mean),
        image_std=None if image_std is None else tuple(image_std),
        dtype=dtype,
    )
    _check_options(options)
    return _convert(match_weights(read_source(source), options), source, output, save_code)


def _convert(draft: Draft, source: str | Path, output: Path, save_code: bool) -> Conversion:
    """Write the checkpoint of a matched draft."""
    _check_decoder_options(draft)
    model, config = build_model(draft)
    processor, processor_origin = choose_processor(draft, config)
    provenance = _find_provenance(draft)
    conversion = Conversion(
        kind=draft.kind,
        architecture=draft.architecture,
        config=config,
        fields={name: (value, draft.field_origins[name]) for name, value in draft.fields.items()},
        preprocessing=processor_origin,
        left_out=draft.left_out,
        new=draft.new,
        differences=draft.differences,
        guesses=draft.guesses,
    )
    report = build_report(conversion, draft.file, draft.license_note, provenance)
    contents = build_card_contents(
        conversion,
        name=output.resolve().name,
        source=display_name(source),
        model=model,
        processor=processor,
        license_note=draft.license_note,
        provenance=provenance,
        has_code=save_code,
    )
    with atomic_output(output) as folder:
        card = render_model_card(contents)
        write_checkpoint(model, folder, processor, card, save_code=save_code)
        (folder / CONVERSION).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return conversion


def _find_provenance(draft: Draft) -> Provenance:
    """Return license and base model; what the source states takes precedence over its format.

    An export of selfvit states the license of its weights, which may be under none.
    """
    file = draft.file
    folder = file.folder
    stored = Provenance() if folder is None else provenance_of(folder, folder)
    base_model = file.repository or stored.base_model
    if stored.license is not None:
        name = display_name(file.repository or file.description)
        return replace(stored, base_model=base_model, origin=f"the card of {name}")
    if file.folder is not None and (file.folder / EXPORT_FILE).is_file():
        exported = read_exported_provenance(file.folder / EXPORT_FILE)
        return replace(exported, base_model=base_model or exported.base_model)
    origin = "" if draft.license_id is None else f"the detected weight format, {draft.kind}"
    is_named = draft.license_id == OTHER
    return Provenance(
        license=draft.license_id,
        license_name=draft.format.license_name if is_named else None,
        license_link=draft.format.license_link if is_named else None,
        base_model=base_model,
        origin=origin,
    )


def _check_options(options: Options) -> None:
    if options.dtype is not None and options.dtype not in DTYPES:
        raise ValueError(f"dtype ({options.dtype!r}) must be one of {', '.join(DTYPES)}.")
    if options.statistics is not None and options.statistics not in STATISTICS:
        raise ValueError(
            f"statistics ({options.statistics!r}) must be one of {', '.join(STATISTICS)}."
        )
    if (options.image_mean is None) != (options.image_std is None):
        raise ValueError(
            "image_mean and image_std belong together: give both, with one value per channel."
        )
    if options.image_mean is not None and options.statistics is not None:
        raise ValueError("statistics and image_mean exclude each other: leave one of them out.")
    if not all(math.isfinite(value) for value in options.image_mean or ()):
        raise ValueError(f"image_mean ({_join(options.image_mean)}) must be finite numbers.")
    if not all(math.isfinite(value) and value > 0 for value in options.image_std or ()):
        raise ValueError(f"image_std ({_join(options.image_std)}) must be numbers above 0.")
    for name in ("num_heads", "decoder_num_heads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} ({value}) must be at least 1.")


def _check_decoder_options(draft: Draft) -> None:
    """Check that there is a decoder if an option is about it."""
    for name in ("decoder_num_heads", "norm_pix_loss"):
        value = getattr(draft.options, name)
        if value is not None and "mae_config" not in draft.fields:
            raise ValueError(
                f"{name} ({value}) belongs to the decoder of MAE, but {draft.file.description!r} "
                f"({draft.kind}) has none; leave it out."
            )


def _check_folder(output: Path, overwrite: bool) -> None:
    """Check that the output folder is new, empty or an earlier conversion that may be replaced."""
    code = [path.name for path in code_files(output)]
    files = [CONVERSION, IMAGE_PROCESSOR_NAME, CONFIG_NAME, CARD, *WEIGHT_FILES, *code]
    check_output(output, CONVERSION, overwrite, files=files, created_by=CREATED_BY)


def _join(values: Sequence[float] | None) -> str:
    return ", ".join(map(str, values or ()))


__all__ = ["convert"]
