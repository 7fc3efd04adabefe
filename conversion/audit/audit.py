"""Find silent faults in a folder of image model weights, and suggest fixes.

Libraries open such folders without an error. Missing tensors are initialized at random, unexpected
ones are dropped, and images are normalized as a file specifies, right or wrong. The effect shows
only in the results.
"""

# B batch · C channels · H, W pixels · T tokens · D hidden

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoConfig, AutoImageProcessor, AutoModel, PreTrainedModel
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

from ...configuration.format_version import check_format
from ...errors import one_line, shorten
from ...modeling.checkpoints.loading import quiet_loading
from ...modeling.checkpoints.weight_files import stored_tensors
from ...modeling.image_processing_selfvit import SelfViTImageProcessor
from ...modeling.registry import MODEL_CLASSES
from ...sharing.provenance import EXPORT_FILE
from ..infer_grid import read_size
from .channels import check_channels
from .finding import Finding
from .image_statistics import are_close, expected_statistics

POSITIONS = re.compile(r"(^|[._])pos(ition)?_embed(ding)?s?(\.weight)?$")


@dataclass(frozen=True)
class Audit:
    """Result of an audit.

    Args:
        checkpoint: Folder of the checkpoint.
        kind: `model_type` of the checkpoint, or "timm".
        findings: Faults of the checkpoint; empty if there are none.
        notes: Checks that could not be made, with the reason.
    """

    checkpoint: str
    kind: str
    findings: list[Finding]
    notes: list[str]


def audit(checkpoint: Path) -> Audit:
    """Find silent faults in a checkpoint of transformers, timm or selfvit.

    No code of the checkpoint is executed; pickles are read with `weights_only`.

    Args:
        checkpoint: Folder with config.json and weights.

    Raises:
        FileNotFoundError: If the folder or its config.json does not exist.
        ValueError: If config.json is not valid JSON, describes a model that no library knows, or
            was written by a newer version of selfvit.
    """
    config = _read_config(checkpoint)
    findings: list[Finding] = []
    notes: list[str] = []
    try:
        findings += _check_finite(stored_tensors(checkpoint))
    except Exception as error:  # damaged files raise errors of any type
        findings.append(_unreadable(error))
    else:
        check = _check_transformers if "model_type" in config else _check_timm
        findings += check(checkpoint, config, notes)
    findings += _check_preprocessing(checkpoint, config, notes)
    return Audit(str(checkpoint), config.get("model_type", "timm"), findings, notes)


def _read_config(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG_NAME).is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} must be a folder with a {CONFIG_NAME}, as transformers, timm and "
            "selfvit write it. To audit a model of the Hub, download it first: hf download NAME "
            "--local-dir FOLDER."
        )
    try:
        config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{CONFIG_NAME} of {str(folder)!r} is not valid JSON ({error}). Copy or download it "
            "again."
        ) from error
    if not isinstance(config, dict):
        raise ValueError(
            f"{CONFIG_NAME} of {str(folder)!r} must hold a JSON object, but it holds a "
            f"{type(config).__name__}. Copy or download it again."
        )
    if "model_type" not in config and "architecture" not in config:
        raise ValueError(
            f"{CONFIG_NAME} of {str(folder)!r} must have model_type (transformers, selfvit) or "
            "architecture (timm), but it has neither. Copy or download it again."
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
            "non-finite values",
            f"{shorten(broken, 6)} contain NaN or infinity",
            "every embedding becomes NaN",
            "use an earlier checkpoint; the training run that wrote this one has diverged",
        )


def _check_transformers(
    folder: Path, config: dict[str, Any], notes: list[str]
) -> Iterator[Finding]:
    if config["model_type"] == "selfvit":
        check_format(config, folder)
    model_class = _find_model_class(config)
    try:
        AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model, info = _load(model_class, folder)
    except Exception as error:  # values of the wrong type raise errors of any type
        yield Finding(
            "invalid configuration",
            f"the model of {CONFIG_NAME} cannot be built: {type(error).__name__}, "
            f"{one_line(error)[:300]}",
            "no library can open the checkpoint",
            f"correct {CONFIG_NAME}, or copy or download it again",
        )
        return
    missing = set(info["missing_keys"])
    pooler = sorted(name for name in missing if "pooler" in name)
    if pooler:
        yield _random_pooler(model, pooler)
    own_class = _saved_class(config) or model_class
    own = info if own_class is model_class else _load(own_class, folder)[1]
    absent = (missing | set(own["missing_keys"])) - set(pooler)
    yield from _check_names(absent, set(own["unexpected_keys"]), own["mismatched_keys"])
    yield from _check_positions(dict(model.state_dict()), absent)
    yield from _check_deterministic(model, notes)


def _find_model_class(config: dict[str, Any]) -> Any:
    """Return the class that AutoModel takes for a checkpoint."""
    model_type = config["model_type"]
    try:
        model_class: Any = AutoModel._model_mapping[CONFIG_MAPPING[model_type]]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"model_type ({model_type!r}) must be one that transformers or selfvit has a "
            "model for. The audit does not run code of a checkpoint, so it cannot open this one."
        ) from error
    return model_class[0] if isinstance(model_class, tuple) else model_class


def _saved_class(config: dict[str, Any]) -> type[PreTrainedModel] | None:
    """Return the class that wrote a checkpoint, or None if it is unknown."""
    name = (config.get("architectures") or ["none"])[0]
    found = MODEL_CLASSES.get(name) or getattr(transformers, name, None)
    is_model = isinstance(found, type) and issubclass(found, PreTrainedModel)
    return found if is_model else None


def _load(model_class: Any, folder: Path) -> tuple[PreTrainedModel, dict[str, Any]]:
    # Missing tensors are initialized at random, which must not change the global random state.
    with quiet_loading(), torch.random.fork_rng(devices=[]):
        return model_class.from_pretrained(
            folder, output_loading_info=True, ignore_mismatched_sizes=True, dtype=torch.float32
        )


def _random_pooler(model: PreTrainedModel, pooler: list[str]) -> Finding:
    return Finding(
        "random pooler",
        f"the file lacks {shorten(pooler, 6)}, which {type(model).__name__} initializes at random",
        "pooler_output, and so pipeline(..., pool=True), is a different random projection each "
        "time the model is loaded",
        "use the class token, last_hidden_state[:, 0], or load the model with "
        "add_pooling_layer=False; `selfvit convert` writes a checkpoint whose pooler_output is the "
        "class token",
    )


def _check_names(missing: set[str], unexpected: set[str], mismatched: Any) -> Iterator[Finding]:
    if unexpected:
        yield Finding(
            "tensors not in the model",
            f"the model lacks {shorten(sorted(unexpected), 6)}, which the file has",
            "they are dropped without an error, so the loaded model is not the trained one",
            "correct architectures and the other fields of config.json, or the names in the file",
        )
    if missing:
        yield Finding(
            "tensors missing in the file",
            f"the file lacks {shorten(sorted(missing), 6)}, which the model has",
            "they are initialized at random each time the model is loaded",
            "correct the fields of config.json, or the names in the file; `selfvit convert` lists "
            "the tensors that do not match",
        )
    if mismatched:
        named = [
            f"{name} {tuple(stored)} instead of {tuple(wanted)}"
            for name, stored, wanted in mismatched
        ]
        yield Finding(
            "tensors with unexpected shapes",
            f"the file has {shorten(sorted(named), 6)}",
            "they are not loaded but initialized at random",
            "correct the sizes in config.json",
        )


def _check_positions(tensors: dict[str, Tensor], missing: set[str]) -> Iterator[Finding]:
    named = sorted(name for name in tensors if POSITIONS.search(name))
    zero = [name for name in named if name not in missing and not tensors[name].any()]
    if zero:
        yield Finding(
            "zero position embeddings",
            f"all values of {shorten(zero, 6)} are zero",
            "the encoder does not know the position of a patch in the image",
            "get the weights from their source again; `selfvit convert` recomputes fixed "
            "sine-cosine positions",
        )


def _check_deterministic(model: PreTrainedModel, notes: list[str]) -> Iterator[Finding]:
    if model.main_input_name != "pixel_values":
        notes.append(f"{type(model).__name__} needs inputs other than images, so it was not run.")
        return
    height, width = read_size(getattr(model.config, "image_size", None)) or (224, 224)
    channels = getattr(model.config, "num_channels", 3)
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(1, channels, height, width, generator=generator)
    try:
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            first, second = (model.eval()(pixel_values)[0] for _ in range(2))  # (B, T, D)
    except (RuntimeError, TypeError, ValueError) as error:
        notes.append(
            f"the model could not be run on {height} x {width} pixels ({_first_sentence(error)})."
        )
        return
    first, second = first.mean(dim=1), second.mean(dim=1)  # independent of the order of the patches
    if torch.allclose(first, second, atol=1e-4) or first.isnan().any():
        return
    ratio = getattr(model.config, "mask_ratio", None)
    name = type(model).__name__
    if ratio:
        yield Finding(
            "masking encoder",
            f"{name} masks patches at random (mask_ratio {ratio}), so its output differs between "
            "two runs on the same image",
            "embeddings are random and describe only a part of the image",
            "use `selfvit convert`, which writes an encoder without random masking, or set "
            "mask_ratio to 0 in config.json: class token and mean are correct then, but the order "
            "of the patches is random",
        )
    else:
        yield Finding(
            "random outputs",
            f"the output of {name} differs between two runs on the same image",
            "embeddings are random",
            "find the layer that is random in evaluation mode, and disable it",
        )


def _check_timm(folder: Path, config: dict[str, Any], notes: list[str]) -> Iterator[Finding]:
    try:
        import timm
    except ImportError:
        notes.append("timm is not installed, so the tensor names were not checked.")
        return
    try:
        model = timm.create_model(f"local-dir:{folder}", num_classes=config.get("num_classes", 0))
    except Exception as error:  # values of the wrong type raise errors of any type
        raise ValueError(
            f"architecture ({config['architecture']!r}) must be one that timm {timm.__version__} "
            f"can build ({one_line(error)}). Correct {CONFIG_NAME}."
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
        processor: Any = _load_processor(folder)
    except Exception as error:  # values of the wrong type raise errors of any type
        yield Finding(
            "missing image processor",
            f"no image processor can be loaded ({_first_sentence(error)})",
            "users of the model have to guess its image size, mean and std",
            f"write {IMAGE_PROCESSOR_NAME} with the values that the model was trained with",
        )
        return
    yield from check_channels(config, processor)
    expectation = expected_statistics(folder, config)
    if config.get("model_type") == "selfvit" or (folder / EXPORT_FILE).is_file():
        return  # a model of the user may have been trained with any statistics
    if expectation is None:
        notes.append("the model family is unknown, so mean and std were not checked.")
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
        f"{what}, but {expectation.family} was trained with {right} (identified by: "
        f"{expectation.evidence})",
        "the model was trained on other pixel values, so its embeddings get worse without an error",
        f"set image_mean to {list(right.mean)} and image_std to {list(right.std)}",
    )


def _load_processor(folder: Path) -> Any:
    """Load an image processor without executing code of the checkpoint."""
    file = folder / IMAGE_PROCESSOR_NAME
    if file.is_file():
        stored = json.loads(file.read_text(encoding="utf-8"))
        if stored.get("image_processor_type") == SelfViTImageProcessor.__name__:
            return SelfViTImageProcessor.from_pretrained(folder)
    return AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)


def _statistics_of(processor: Any) -> tuple[list[float], list[float]] | None:
    data_config = getattr(processor, "data_config", None)  # timm
    if data_config is not None:
        return list(data_config["mean"]), list(data_config["std"])
    if not processor.do_normalize:
        return None
    return list(processor.image_mean), list(processor.image_std)


def _unreadable(error: Exception) -> Finding:
    return Finding(
        "unreadable weights",
        f"{type(error).__name__}: {_first_sentence(error)}",
        "the model cannot be loaded; a pickle that holds more than tensors was not executed",
        "copy or download the file again, if possible as model.safetensors from a source you trust",
    )


def _first_sentence(error: Exception) -> str:
    return one_line(error).split(". ")[0]


__all__ = ["Audit", "Finding", "audit"]
