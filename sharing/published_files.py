"""What of a checkpoint's folder is published: a whole checkpoint and what tells of it.

Files that are not named here stay at home, so that a run's states, logs and lists of images, or
whatever else a user keeps in the folder, are never sent by accident.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import ModelCard
from safetensors import safe_open
from transformers import AutoImageProcessor

from ..configuration.configuration_selfvit import SelfViTConfig
from ..modeling.checkpoints.loading import stored_config
from ..modeling.checkpoints.remote_code import code_files
from ..modeling.checkpoints.validation import check_weights
from ..modeling.checkpoints.weight_files import INDEX, weight_files
from ..modeling.registry import MODEL_CLASSES, ModelClass
from .adapter_files import adapter_to_publish
from .provenance import CARD, display_name, hub_id

RUN_FILE = "training.yaml"
STATE_FILE = "trainer_state.json"
# Beside weights, code and pictures of the card; of the folder itself, not of those in it.
PATTERNS = ("*.json", CARD, RUN_FILE, "*.png", "*.jpg", "*.svg", "LICENSE*", "NOTICE*")
LOCAL_PATHS = ("data", "output", "init_from", "eval_train", "eval_test")  # in a run's `training`
NEVER = (STATE_FILE, INDEX)  # a resumable state's; the index goes with its shards


@dataclass(frozen=True)
class PublishedFiles:
    """A checkpoint that was checked, and what of its folder goes with it.

    Args:
        architecture: class that wrote it.
        sent: paths of files, relative to the folder, with slashes.
        left_out: names in the folder that stay; a folder's ends with a slash.
    """

    architecture: str
    sent: list[str]
    left_out: list[str]


def choose_files(folder: Path, include: Sequence[str] = ()) -> PublishedFiles:
    """Check that a folder holds a whole checkpoint with its card, and choose what to send.

    Of the weights only the headers are read, and compared with the model that config.json
    describes.

    Args:
        folder: as `selfvit train` and `selfvit convert` write it.
        include: more files to send, as patterns of paths relative to the folder.

    Raises:
        FileNotFoundError: if config.json, weights, preprocessor or card are missing.
        ValueError: if the weights are cut short or not those of the model, or the card's metadata
            cannot be read.
    """
    _check_finished(folder)
    stored = stored_config(folder)
    architecture = (stored.get("architectures") or ["none"])[0]
    if architecture not in MODEL_CLASSES:
        raise ValueError(
            f"architectures ({architecture}) in {str(folder / 'config.json')!r} must name one of "
            f"{', '.join(MODEL_CLASSES)}; save the model again."
        )
    check_weights(str(folder), {})
    weights = weight_files(folder)
    _check_weights(folder, weights, MODEL_CLASSES[architecture])
    _check_processor(folder)
    card = _read_card(folder)

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


def strip_local_paths(run: str) -> str:
    """Return a training.yaml with the last part of each path in it; names on the Hub stay.

    Args:
        run: its text; what is no run's stays as it is.
    """
    content = yaml.safe_load(run)
    training = content.get("training") if isinstance(content, dict) else None
    if not isinstance(training, dict):
        return run
    for name in LOCAL_PATHS:
        place = training.get(name)
        if place and hub_id(place) is None:
            training[name] = display_name(place)
    return yaml.safe_dump(content, sort_keys=False)


def is_weight_file(path: str) -> bool:
    """Return whether transformers could take a file of a repository for weights."""
    return path == INDEX or fnmatch(path, "model*.safetensors")


def _check_finished(folder: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}.")
    if (folder / RUN_FILE).is_file() and not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"the run in {str(folder)!r} is not finished: it has no config.json yet. Go on with it "
            "by `selfvit train ... --resume true`."
        )


def _check_weights(folder: Path, weights: list[str], model_class: ModelClass) -> None:
    stored: dict[str, tuple[int, ...]] = {}
    for name in weights:
        if name == INDEX:
            continue
        with safe_open(folder / name, "pt") as file:
            for tensor in file.keys():  # noqa: SIM118 (no dict)
                stored[tensor] = tuple(file.get_slice(tensor).get_shape())
    with torch.device("meta"):  # names and shapes alone
        model = model_class(SelfViTConfig.from_pretrained(folder))
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    different = sorted(
        name for name in wanted.keys() | stored.keys() if wanted.get(name) != stored.get(name)
    )
    if different:
        first = different[0]
        raise ValueError(
            f"the weights in {str(folder)!r} are not those of the {model_class.__name__} that "
            f"config.json describes: {len(different)} tensors differ, {first} for one "
            f"({stored.get(first, 'missing')}, wanted {wanted.get(first, 'none')}). `selfvit "
            "audit` lists them."
        )


def _check_processor(folder: Path) -> None:
    try:
        AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"no image processor can be opened in {str(folder)!r}, so nobody could tell how to "
            "prepare images. Write preprocessor_config.json: "
            f"selfvit.embedding.preprocessing.build_processor(config).save_pretrained({str(folder)!r})"
        ) from error


def _read_card(folder: Path) -> ModelCard:
    path = folder / CARD
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} has no {CARD}, the model card that the Hub shows. `selfvit train` "
            "and `selfvit convert` write one; for a model saved by hand write what it is and what "
            "it was trained on, below a head of metadata: ---, library_name: transformers, "
            "license: ..., ---."
        )
    try:
        metadata: Any = yaml.safe_load(_head(path.read_text(encoding="utf-8")))
        if not isinstance(metadata, dict):
            raise ValueError("it has no metadata between two lines of ---")
        return ModelCard.load(path)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"the metadata of {str(path)!r} is not valid: {error}.") from error


def _head(text: str) -> str:
    match = re.match(r"\s*---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    return match[1] if match else ""


def _linked_files(card: ModelCard, files: Iterable[str]) -> set[str]:
    """Return the files that the card shows or links to: pictures in folders."""
    links = re.findall(r"\]\(([^)\s]+)|src=\"([^\"]+)\"", card.text)
    targets = {(markdown or html).removeprefix("./") for markdown, html in links}
    return {path for path in files if path in targets}


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(path, pattern) for pattern in patterns)


__all__ = [
    "RUN_FILE",
    "STATE_FILE",
    "PublishedFiles",
    "choose_files",
    "is_weight_file",
    "strip_local_paths",
]
