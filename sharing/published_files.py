"""Choose the files of a checkpoint folder to publish, and check that the checkpoint is complete.

Only files listed here are published. Optimizer states, logs, lists of images and other files that a
user keeps in the folder are therefore never sent by accident.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import ModelCard
from safetensors import safe_open
from transformers import AutoImageProcessor
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

from ..configuration.configuration_selfvit import SelfViTConfig
from ..modeling.checkpoints.loading import stored_config
from ..modeling.checkpoints.remote_code import code_files
from ..modeling.checkpoints.validation import check_weights
from ..modeling.checkpoints.weight_files import INDEX, WEIGHTS, weight_files
from ..modeling.registry import MODEL_CLASSES, ModelClass
from .adapter_files import adapter_to_publish
from .provenance import CARD, CONVERSION, display_name, hub_id

RUN_FILE = "training.yaml"
REPORT_FILE = "report.json"
BEST_FILE = "best.json"
ENVIRONMENT_FILE = "environment.json"
STATE_FILE = "trainer_state.json"
# Files of the folder itself, not of subfolders, besides weights, code and pictures of the card.
CHECKPOINT_FILES = (CONFIG_NAME, IMAGE_PROCESSOR_NAME, CONVERSION, CARD)
RUN_FILES = (RUN_FILE, REPORT_FILE, BEST_FILE, ENVIRONMENT_FILE)
PATTERNS = (*CHECKPOINT_FILES, *RUN_FILES, "LICENSE*", "NOTICE*")
# Weights of a checkpoint, in one file or in shards; model_ema.safetensors, for example, is not.
WEIGHT_FILES = (WEIGHTS, INDEX, "model-{0}-of-{0}.safetensors".format("[0-9]" * 5))
NEVER = (STATE_FILE, INDEX)  # STATE_FILE belongs to optimizer states, INDEX to its shards
LOCAL_PATHS = ("data", "output", "init_from", "eval_train", "eval_test")  # keys in RUN_FILE
TEACHER = "teacher"  # key in RUN_FILE and config.json, of a distillation


@dataclass(frozen=True)
class PublishedFiles:
    """Files of a complete checkpoint to publish.

    Args:
        architecture: Class that wrote the checkpoint.
        sent: Files to publish, as paths relative to the folder, with slashes.
        left_out: Files and folders that are not published; names of folders end with a slash.
    """

    architecture: str
    sent: list[str]
    left_out: list[str]


def choose_files(folder: Path, include: Sequence[str] = ()) -> PublishedFiles:
    """Check that a folder holds a complete checkpoint with a card, and choose files to publish.

    Only the headers of the weights are read. They are compared with the model that config.json
    describes.

    Args:
        folder: Checkpoint folder, as written by `selfvit train` or `selfvit convert`.
        include: Patterns of further files to publish, relative to the folder.

    Raises:
        FileNotFoundError: If config.json, weights, image processor or card are missing.
        ValueError: If the weights are truncated or belong to another model, or the metadata of the
            card is invalid.
    """
    _check_finished(folder)
    stored = stored_config(folder)
    architecture = (stored.get("architectures") or ["none"])[0]
    if architecture not in MODEL_CLASSES:
        raise ValueError(
            f"architectures ({architecture}) in {str(folder / CONFIG_NAME)!r} must be one of "
            f"{', '.join(MODEL_CLASSES)}; save the model again."
        )
    check_weights(str(folder), {})
    weights = weight_files(folder)
    _check_weights(folder, weights, MODEL_CLASSES[architecture])
    _check_processor(folder)
    card = read_card(folder)

    paths = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*"))]
    files = [path for path in paths if (folder / path).is_file()]
    code = {path.name for path in code_files(folder)}
    chosen = {*weights, *code, *adapter_to_publish(folder), *_linked_files(card, files)}
    for path in files:
        if _matches(path, include) or ("/" not in path and _matches(path, PATTERNS)):
            chosen.add(path)
    sent = sorted(path for path in chosen if path in weights or path not in NEVER)
    roots = {path.partition("/")[0] for path in sent}
    left_out = sorted(
        entry.name + "/" * entry.is_dir() for entry in folder.iterdir() if entry.name not in roots
    )
    return PublishedFiles(architecture, sent, left_out)


def published_content(file: Path) -> Path | bytes:
    """Return a file to publish, or the text of a training.yaml or config.json without local paths.

    Args:
        file: File of a checkpoint folder or of a subfolder.
    """
    strip = {RUN_FILE: strip_local_paths, CONFIG_NAME: strip_teacher_path}.get(file.name)
    return file if strip is None else strip(file.read_text(encoding="utf-8")).encode()


def strip_local_paths(run: str) -> str:
    """Return the text of a training.yaml with local paths reduced to their last part.

    Hub ids are kept. The keys of `LOCAL_PATHS` are replaced in every section, and the teacher of a
    distillation.

    Args:
        run: Text of training.yaml. Text without sections is returned unchanged.
    """
    content = yaml.safe_load(run)
    if not isinstance(content, dict):
        return run
    sections = [section for section in content.values() if isinstance(section, dict)]
    if not sections:
        return run
    for section in sections:
        _strip(section)
    return yaml.safe_dump(content, sort_keys=False)


def strip_teacher_path(config: str) -> str:
    """Return the text of a config.json with the path of a teacher reduced to its last part."""
    content = json.loads(config)
    if not isinstance(content, dict) or not content.get("distill_config"):
        return config
    _strip(content)
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _strip(section: dict[str, Any]) -> None:
    for name, value in section.items():
        if isinstance(value, dict):
            _strip(value)
        elif name in (*LOCAL_PATHS, TEACHER):
            section[name] = _without_folders(value)


def _without_folders(value: Any) -> Any:
    """Return a path, or a list of paths, reduced to the last part; Hub ids are kept."""
    if isinstance(value, list):
        return [_without_folders(entry) for entry in value]
    is_path = isinstance(value, str) and value and hub_id(value) is None
    return display_name(value) if is_path else value


def is_weight_file(path: str) -> bool:
    """Return whether a file of a repository has the name of weights of a published checkpoint."""
    return _matches(path, WEIGHT_FILES)


def _check_finished(folder: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{str(folder)!r} must be a folder, but does not exist; check the path."
        )
    if (folder / RUN_FILE).is_file() and not (folder / CONFIG_NAME).is_file():
        raise FileNotFoundError(
            f"the run in {str(folder)!r} must be finished, but has no config.json yet; continue it "
            "with `selfvit train ... --resume`."
        )


def _check_weights(folder: Path, weights: list[str], model_class: ModelClass) -> None:
    stored: dict[str, tuple[int, ...]] = {}
    for name in weights:
        if name == INDEX:
            continue
        with safe_open(folder / name, "pt") as file:
            for tensor in file.keys():  # noqa: SIM118 (not a dict)
                stored[tensor] = tuple(file.get_slice(tensor).get_shape())
    with torch.device("meta"):  # only names and shapes are needed
        model = model_class(SelfViTConfig.from_pretrained(folder))
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    different = sorted(
        name for name in wanted.keys() | stored.keys() if wanted.get(name) != stored.get(name)
    )
    if different:
        first = different[0]
        raise ValueError(
            f"the weights in {str(folder)!r} must be those of the {model_class.__name__} in "
            f"config.json, but {len(different)} tensors differ, for example {first} "
            f"({stored.get(first, 'missing')}, expected {wanted.get(first, 'none')}); run "
            f"`selfvit audit {folder}` for the full list."
        )


def _check_processor(folder: Path) -> None:
    try:
        processor: Any = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{str(folder)!r} must have an image processor, but {IMAGE_PROCESSOR_NAME} cannot be "
            "loaded; write it with "
            f"selfvit.build_processor(config).save_pretrained({str(folder)!r})."
        ) from error
    wanted = SelfViTConfig.from_pretrained(folder).num_channels
    given = getattr(processor, "num_channels", None) or 3  # stock classes give RGB
    if given != wanted:
        raise ValueError(
            f"the image processor in {str(folder)!r} must give the {wanted} channels that the "
            f"model reads (num_channels), but {type(processor).__name__} gives {given}; write it "
            f"with selfvit.build_processor(config).save_pretrained({str(folder)!r})."
        )


def read_card(folder: Path) -> ModelCard:
    """Return the model card of a checkpoint.

    Args:
        folder: Checkpoint folder.

    Raises:
        FileNotFoundError: If the folder has no card.
        ValueError: If the metadata of the card is invalid.
    """
    path = folder / CARD
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} must have a model card ({CARD}). `selfvit train` and `selfvit "
            "convert` write one; for a model saved by hand, write a description of the model and "
            "its training data below a block of metadata: ---, library_name: transformers, "
            "license: ..., ---."
        )
    try:
        metadata: Any = yaml.safe_load(_metadata_block(path.read_text(encoding="utf-8")))
        if not isinstance(metadata, dict):
            raise ValueError("there is no mapping between two lines of ---")
        return ModelCard.load(path)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"the metadata of {str(path)!r} must be valid YAML: {error}.") from error


def _metadata_block(text: str) -> str:
    match = re.match(r"\s*---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    return match[1] if match else ""


def _linked_files(card: ModelCard, files: Iterable[str]) -> set[str]:
    """Return the files that the card shows or links to, such as pictures in subfolders."""
    links = re.findall(r"\]\(([^)\s]+)|src=\"([^\"]+)\"", card.text)
    targets = {(markdown or html).removeprefix("./") for markdown, html in links}
    return {path for path in files if path in targets}


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


__all__ = [
    "BEST_FILE",
    "ENVIRONMENT_FILE",
    "REPORT_FILE",
    "RUN_FILE",
    "STATE_FILE",
    "WEIGHT_FILES",
    "PublishedFiles",
    "choose_files",
    "read_card",
    "is_weight_file",
    "published_content",
    "strip_local_paths",
    "strip_teacher_path",
]
