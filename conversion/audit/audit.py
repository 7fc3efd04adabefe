"""What is silently wrong with a folder of image model weights, and what to do about it.

Libraries open such folders without an error: what is missing is drawn at random, what is left over
is dropped, and images are normalized as a file says. All of that shows only in the results.
"""

# B batch · C channels · H, W pixels · T tokens · D hidden

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedModel

from ...configuration.format_version import check_format
from ...errors import one_line, shorten
from ...modeling.checkpoints.loading import quiet_loading
from ...modeling.checkpoints.weight_files import stored_tensors
from ...modeling.registry import MODEL_CLASSES
from ..exporters.export import FACTS
from .image_statistics import are_close, expected_statistics

POSITIONS = re.compile(r"(^|[._])pos(ition)?_embed(ding)?s?(\.weight)?$")


@dataclass(frozen=True)
class Finding:
    """One fault.

    Args:
        fault: its kind, a word or two.
        what: was found.
        why: it matters.
        fix: what to do.
    """

    fault: str
    what: str
    why: str
    fix: str


@dataclass(frozen=True)
class Audit:
    """What is known of a checkpoint.

    Args:
        checkpoint: the folder.
        kind: its model_type, or "timm".
        findings: its faults; none if it is sound.
        notes: what could not be checked, and why.
    """

    checkpoint: str
    kind: str
    findings: list[Finding]
    notes: list[str]


def audit(checkpoint: Path) -> Audit:
    """Look for silent faults in a folder of transformers, timm or selfvit.

    No code that comes with the checkpoint is executed: pickles are read with `weights_only`.

    Args:
        checkpoint: a folder with config.json and weights.

    Raises:
        FileNotFoundError: if it is no such folder.
        ValueError: if config.json is no JSON, of a model that neither library knows, or of a
            selfvit newer than this one.
    """
    config = _read_config(checkpoint)
    findings: list[Finding] = []
    notes: list[str] = []
    try:
        findings += _check_finite(stored_tensors(checkpoint))
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        findings.append(_unreadable(error))
    else:
        check = _check_transformers if "model_type" in config else _check_timm
        findings += check(checkpoint, config, notes)
    findings += _check_preprocessing(checkpoint, config, notes)
    return Audit(str(checkpoint), config.get("model_type", "timm"), findings, notes)


def _read_config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} is no folder with a config.json, as transformers, timm and selfvit "
            "write them. A model on the Hub: hf download NAME --local-dir FOLDER first."
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"config.json of {str(folder)!r} is not JSON ({error}); copy or download it again."
        ) from error
    if "model_type" not in config and "architecture" not in config:
        raise ValueError(
            f"config.json of {str(folder)!r} has neither model_type (transformers, selfvit) nor "
            "architecture (timm), so the model is not known."
        )
    return config


def _check_finite(tensors: Iterator[tuple[str, Tensor]]) -> Iterator[Finding]:
    broken = [
        name
        for name, tensor in tensors
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not tensor.isfinite().all()
    ]
    if broken:
        yield Finding(
            "values that are not finite",
            f"NaN or infinity in {shorten(broken, 6)}",
            "every vector that passes through them is NaN",
            "take an earlier checkpoint; a training that diverged wrote this one",
        )


def _check_transformers(
    folder: Path, config: dict[str, Any], notes: list[str]
) -> Iterator[Finding]:
    if config["model_type"] == "selfvit":
        check_format(config, folder)
    try:
        known = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model_class: Any = AutoModel._model_mapping[type(known)]
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"model_type ({config['model_type']!r}) is not one that transformers or selfvit has a "
            "model for; code that comes with a checkpoint is not run, so this one is not audited."
        ) from error
    if isinstance(model_class, tuple):
        model_class = model_class[0]
    model, info = _load(model_class, folder)
    missing = set(info["missing_keys"])
    pooler = sorted(name for name in missing if "pooler" in name)
    if pooler:
        yield _random_pooler(model, pooler)
    own_class = _class_named(config) or model_class
    own = info if own_class is model_class else _load(own_class, folder)[1]
    absent = (missing | set(own["missing_keys"])) - set(pooler)
    yield from _check_names(absent, set(own["unexpected_keys"]), own["mismatched_keys"])
    yield from _check_positions(dict(model.state_dict()), absent)
    yield from _check_deterministic(model, notes)


def _class_named(config: dict[str, Any]) -> type[PreTrainedModel] | None:
    """Return the class that wrote a checkpoint; None if it isn't known."""
    name = (config.get("architectures") or ["none"])[0]
    found = MODEL_CLASSES.get(name) or getattr(transformers, name, None)
    is_model = isinstance(found, type) and issubclass(found, PreTrainedModel)
    return found if is_model else None


def _load(model_class: Any, folder: Path) -> tuple[PreTrainedModel, dict[str, Any]]:
    # Drawing what is missing at random is what is audited; it leaves the global state as it was.
    with quiet_loading(), torch.random.fork_rng(devices=[]):
        return model_class.from_pretrained(
            folder, output_loading_info=True, ignore_mismatched_sizes=True, dtype=torch.float32
        )


def _random_pooler(model: PreTrainedModel, pooler: list[str]) -> Finding:
    return Finding(
        "random pooler",
        f"the file has no {shorten(pooler, 6)}, which {type(model).__name__} draws at random",
        "pooler_output, which is what pipeline(..., pool=True) gives, is another random projection "
        "each time the model is opened",
        "take last_hidden_state[:, 0], the class token, or open it with add_pooling_layer=False; "
        "`selfvit convert` writes a checkpoint whose pooler_output is the class token",
    )


def _check_names(missing: set[str], unexpected: set[str], mismatched: Any) -> Iterator[Finding]:
    if unexpected:
        yield Finding(
            "tensors not in the model",
            f"{shorten(sorted(unexpected), 6)}: in the file and not in the model",
            "they are dropped without an error, so the model is not the one that was trained",
            "correct architectures and the fields of config.json, or the names in the file",
        )
    if missing:
        yield Finding(
            "tensors missing in the file",
            f"{shorten(sorted(missing), 6)}: in the model and not in the file",
            "they are drawn at random each time the model is opened",
            "correct the fields of config.json, or the names in the file; `selfvit convert` lists "
            "what fits and what does not",
        )
    if mismatched:
        named = [
            f"{name} {tuple(stored)} for {tuple(wanted)}" for name, stored, wanted in mismatched
        ]
        yield Finding(
            "tensors of another shape",
            shorten(sorted(named), 6),
            "they are not loaded",
            "correct the sizes in config.json",
        )


def _check_positions(tensors: dict[str, Tensor], missing: set[str]) -> Iterator[Finding]:
    named = sorted(name for name in tensors if POSITIONS.search(name))
    zero = [name for name in named if name not in missing and not tensors[name].any()]
    if zero:
        yield Finding(
            "positions that are all zero",
            f"{shorten(zero, 6)} {'is' if len(zero) == 1 else 'are'} zero throughout",
            "the encoder cannot tell where in the image a patch is",
            "take the weights from their source again; `selfvit convert` computes fixed "
            "sine-cosine positions anew",
        )


def _check_deterministic(model: PreTrainedModel, notes: list[str]) -> Iterator[Finding]:
    if model.main_input_name != "pixel_values":
        notes.append(f"{type(model).__name__} takes more than images, so it was not run.")
        return
    size = getattr(model.config, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else size
    channels = getattr(model.config, "num_channels", 3)
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(1, channels, height, width, generator=generator)
    try:
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            first, second = (model.eval()(pixel_values)[0] for _ in range(2))  # (B, T, D)
    except (RuntimeError, TypeError, ValueError) as error:
        notes.append(
            f"it could not be run on {height} x {width} pixels ({_first_sentence(error)})."
        )
        return
    first, second = first.mean(dim=1), second.mean(dim=1)  # whatever the order of the patches
    if torch.allclose(first, second, atol=1e-4) or first.isnan().any():
        return
    ratio = getattr(model.config, "mask_ratio", None)
    hides = f", mask_ratio {ratio}: it hides so much of every image at random" if ratio else ""
    yield Finding(
        "masking encoder",
        f"{type(model).__name__} gives two different outputs for one image{hides}",
        "vectors are random, and of a part of the image",
        "`selfvit convert` it to an encoder that masks only what it is told to, or set mask_ratio "
        "to 0 in config.json: class token and mean are right then, the patches' order is random"
        if ratio
        else "find out which of its layers draws at random outside of training",
    )


def _check_timm(folder: Path, config: dict[str, Any], notes: list[str]) -> Iterator[Finding]:
    try:
        import timm
    except ImportError:
        notes.append("timm is not installed, so the names of the tensors were not checked.")
        return
    try:
        model = timm.create_model(f"local-dir:{folder}", num_classes=config.get("num_classes", 0))
    except RuntimeError as error:
        raise ValueError(
            f"architecture ({config['architecture']!r}) is not one that timm {timm.__version__} "
            f"can make ({error})."
        ) from error
    wanted = model.state_dict()
    stored = dict(stored_tensors(folder))
    mismatched = [
        (name, stored[name].shape, wanted[name].shape)
        for name in wanted.keys() & stored.keys()
        if stored[name].shape != wanted[name].shape and not POSITIONS.search(name)
    ]  # timm interpolates positions of another grid
    missing = wanted.keys() - stored.keys()
    yield from _check_names(missing, stored.keys() - wanted.keys(), mismatched)
    yield from _check_positions(stored, missing)


def _check_preprocessing(
    folder: Path, config: dict[str, Any], notes: list[str]
) -> Iterator[Finding]:
    try:
        processor: Any = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        yield Finding(
            "no preprocessor",
            f"no image processor can be opened ({_first_sentence(error)})",
            "whoever uses the model has to guess its size, mean and standard deviation",
            "write preprocessor_config.json with the numbers the model was trained with",
        )
        return
    expectation = expected_statistics(folder, config)
    if config.get("model_type") == "selfvit" or (folder / FACTS).is_file():
        return  # whoever trained it chose them
    if expectation is None:
        notes.append("nothing tells the family of the weights, so mean and std were not checked.")
        return
    found = _statistics_of(processor)
    if found is None:
        what = "images are not normalized (do_normalize is false)"
    elif any(
        are_close(found[0], right.mean) and are_close(found[1], right.std)
        for right in expectation.statistics
    ):
        return
    else:
        what = f"images are normalized with mean {found[0]} and std {found[1]}"
    right = expectation.statistics[0]
    yield Finding(
        "wrong mean and std",
        f"{what}; {expectation.family} was trained with {right} (known from: "
        f"{expectation.evidence})",
        "the colors are not those the weights know: vectors are worse, and no error says so",
        f"set image_mean to {list(right.mean)} and image_std to {list(right.std)}",
    )


def _statistics_of(processor: Any) -> tuple[list[float], list[float]] | None:
    data_config = getattr(processor, "data_config", None)  # of timm
    if data_config is not None:
        return list(data_config["mean"]), list(data_config["std"])
    if not processor.do_normalize:
        return None
    return list(processor.image_mean), list(processor.image_std)


def _unreadable(error: Exception) -> Finding:
    return Finding(
        "weights that cannot be read",
        f"{type(error).__name__}: {_first_sentence(error)}",
        "nothing can be loaded; a pickle with other content than tensors was not executed",
        "copy or download the file again, as model.safetensors from a source you trust",
    )


def _first_sentence(error: Exception) -> str:
    return one_line(error).split(". ")[0]


__all__ = ["Audit", "Finding", "audit"]
