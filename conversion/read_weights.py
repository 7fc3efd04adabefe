"""Read weight files of other projects without executing code in them.

A `.pth` file is a pickle, which can name any function to be called while it is read. Only tensors,
containers, numbers, strings and command-line arguments (`argparse.Namespace`) are accepted; a file
with anything else is refused before it runs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

from ..errors import one_line, shorten
from ..modeling.checkpoints.hub_revision import split_revision
from ..modeling.checkpoints.resolve import check_no_url
from ..modeling.checkpoints.weight_files import INDEXES, SINGLE_FILES, shard_names
from ..sharing.provenance import CARD
from .file_contents import find_problem
from .suggestions import suggestion

# In search order; an index lists the shards.
WEIGHTS = tuple(name for pair in zip(SINGLE_FILES, INDEXES, strict=True) for name in pair)
SIDE_FILES = (CONFIG_NAME, IMAGE_PROCESSOR_NAME, CARD)

# Parts of a training checkpoint that belong to no network: the first part of a tensor's name.
TRAINING_STATE = {
    "optimizer", "optimizers", "optimizer_states", "opt", "lr_scheduler", "lr_schedulers",
    "scheduler", "scaler", "amp_scaler", "fp16_scaler", "loss_scaler", "callbacks", "loops",
}  # fmt: skip
MAX_DEPTH = 32  # of nested dicts and lists in a file
WRAPPERS = ("state_dict", "model", "model_state_dict", "network", "net")  # keys around a network
# Prefixes that DistributedDataParallel and torch.compile add anywhere in a name.
# DINOv2's trainer stores blocks in chunks: blocks.CHUNK.BLOCK, with the index of the block in all.
CHUNK = re.compile(r"(^|\.)blocks\.[0-9]+\.(?=[0-9]+\.)")
MODULE_PREFIX = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod)\.")


@dataclass
class SourceFile:
    """Tensors of a source, and the files that accompany them.

    Args:
        tensors: Tensors by name. Nested names are joined by dots, and wrappers are removed.
        original_names: Name in the file, by the names in `tensors`.
        wrappers: Keys around the network, outermost first, such as `model` or `state_dict`.
        training_state: Names of tensors that belong to no network, such as optimizer state.
        config: Content of the `config.json` next to the weights, or {}.
        arguments: Command-line arguments of the training run, if the file stores them, or {}.
        folder: Folder that may hold `preprocessor_config.json`, or None.
        description: Source as the user named it.
        repository: Hub repository that the source was read from, or None.
        sha256: SHA-256 of the file, or of the index of the shards.
    """

    tensors: dict[str, Tensor]
    original_names: dict[str, str] = field(default_factory=dict)
    wrappers: list[str] = field(default_factory=list)
    training_state: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    description: str = ""
    repository: str | None = None
    sha256: str = ""


def read_source(source: str | Path) -> SourceFile:
    """Read a file, a folder, a Hub repository or the weights of a timm model.

    Args:
        source: File (`.safetensors`, or any file that `torch.save` wrote); folder with
            `model.safetensors` or `pytorch_model.bin`, in one piece or in shards, and optionally
            `config.json`; Hub id or USER/NAME@REVISION; or name of a timm model. Files from the Hub
            are taken from the cache or downloaded.

    Raises:
        FileNotFoundError: If the source does not exist or has no weights.
        ValueError: If the source cannot be read, or holds objects other than tensors and plain
            values.
    """
    path, repository = find_source(source)
    file = _find_weights(path) if path.is_dir() else path
    content, arguments = _read_weights(file)
    # The config.json next to a single file may belong to another model.
    config = _read_json(path / CONFIG_NAME) if path.is_dir() else {}
    if isinstance(content, Tensor):
        raise ValueError(
            f"{str(file)!r} must hold a state dict, but it holds one tensor {tuple(content.shape)}."
        )
    try:
        tensors = {name: value for name, value in _flatten(content) if isinstance(value, Tensor)}
    except ValueError as error:
        raise ValueError(
            f"{str(file)!r} cannot be used: {error}. Save the state dict of the encoder alone."
        ) from error
    if not tensors:
        raise ValueError(
            f"{str(file)!r} must hold tensors, but it has none. Save the state dict of the encoder "
            "with torch.save."
        )
    plain, original_names, wrappers, training_state = _unwrap(tensors)
    return SourceFile(
        tensors=plain,
        original_names=original_names,
        wrappers=wrappers,
        training_state=training_state,
        config=config,
        arguments=arguments,
        folder=path if path.is_dir() else None,
        description=str(source),
        repository=repository,
        sha256=sha256_of(file),
    )


def find_source(source: str | Path) -> tuple[Path, str | None]:
    """Return the local file or folder of a source, and the Hub repository that it is from.

    Raises:
        FileNotFoundError: If the source does not exist.
    """
    path = Path(source).expanduser()
    return (path, None) if path.exists() else _download(str(source))


def source_files(path: Path) -> list[Path]:
    """Return the files that the conversion of a local file or folder depends on.

    Raises:
        FileNotFoundError: If a folder has no weights.
        ValueError: If its index of shards cannot be read.
    """
    if not path.is_dir():
        return [path]
    weights = _find_weights(path)
    shards = _shards_of(weights) if weights.name.endswith(".index.json") else []
    beside = [path / name for name in SIDE_FILES if (path / name).is_file()]
    return [weights, *(path / shard for shard in shards), *beside]


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of the content of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        while block := opened.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _find_weights(folder: Path) -> Path:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    held = shorten(sorted(entry.name for entry in folder.iterdir())) or "nothing"
    raise FileNotFoundError(
        f"{str(folder)!r} must hold {' or '.join(WEIGHTS)}; it holds {held}. Give the path of the "
        "weight file instead."
    )


def _download(name: str) -> tuple[Path, str]:
    """Return the local folder of a Hub repository, and its id."""
    check_no_url(name)
    if name.startswith((".", "/", "~")) or re.search(r"\.(pth|pt|bin|ckpt|tar|safetensors)$", name):
        raise FileNotFoundError(f"there is no file or folder {name!r}.")
    repository, revision = split_revision(name if "/" in name else _timm_repository(name))
    try:
        patterns = [*WEIGHTS, *SIDE_FILES, "*-of-*"]
        folder = snapshot_download(repository, revision=revision, allow_patterns=patterns)
        return Path(folder), repository
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"{name!r} is not a local file or folder, and the Hub repository {repository!r} is "
            f"neither in the cache nor could it be downloaded ({type(error).__name__}). Check the "
            "name, or give the path of a file or folder."
        ) from error


def _timm_repository(name: str) -> str:
    missing = f"there is no file or folder {name!r}, and no such model in timm"
    try:
        from timm.models import get_pretrained_cfg
    except ImportError as error:
        reason = f"{missing}, which is not installed. {suggestion(name)}"
        raise FileNotFoundError(reason.rstrip()) from error
    try:
        found = get_pretrained_cfg(name)
    except RuntimeError:
        found = None
    if found is None or not found.hf_hub_id:
        reason = suggestion(name) or "Give a path."
        raise FileNotFoundError(f"{missing} that has weights on the Hub. {reason}")
    repository = found.hf_hub_id
    return repository if "/" in repository and repository != "timm/" else f"timm/{name}"


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{str(path)!r} must hold a JSON object, but it holds a {type(content).__name__}."
        )
    return content


def _read_weights(file: Path) -> tuple[Any, dict[str, Any]]:
    """Return the content of a file, or of the shards that an index lists, and its arguments."""
    if file.name.endswith(".index.json"):
        return _read_shards(file), {}
    with open(file, "rb") as opened:
        start = opened.read(16)
    # Detected by content: a safetensors file starts with 8 bytes for the header size, then "{".
    # The size may look like the start of a zip file or pickle, whose 8 bytes are a larger number.
    end_of_header = 8 + int.from_bytes(start[:8], "little")
    fits = end_of_header <= file.stat().st_size
    if start[8:9] == b"{" and (fits or start[:2] not in (b"PK", b"\x80\x02")):
        try:
            return load_file(file), {}
        except SafetensorError as error:
            raise ValueError(f"{str(file)!r} is damaged or incomplete: {error}.") from error
    problem = find_problem(file)
    if problem:
        raise ValueError(f"{str(file)!r} {problem}.")
    if file.suffix == ".safetensors" and not start.startswith((b"PK", b"\x80")):
        raise ValueError(
            f"{str(file)!r} is damaged: it has no header of safetensors. Copy or download it again."
        )
    content = _unpickle(file)
    arguments: dict[str, Any] = {}
    for key in ("args", "hyper_parameters"):
        found = content.get(key) if isinstance(content, Mapping) else None
        found = vars(found) if isinstance(found, argparse.Namespace) else found
        arguments.update(found if isinstance(found, Mapping) else {})
    return content, arguments


def _read_shards(index: Path) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for shard in _shards_of(index):
        content.update(_read_weights(index.parent / shard)[0])
    return content


def _shards_of(index: Path) -> list[str]:
    """Return the names of the files that an index lists, which are all in its folder."""
    try:
        shards = shard_names(index)
    except ValueError as error:
        raise ValueError(f"{str(index)!r} cannot be read: {error}.") from error
    for shard in shards:
        if Path(shard).name != shard or not (index.parent / shard).is_file():
            raise FileNotFoundError(
                f"{str(index)!r} lists {shard!r}, which is not in its folder. Copy or download the "
                "missing file."
            )
    return shards


def _unpickle(file: Path) -> Any:
    try:
        # An open file, because torch.load would choose the reader by the file name.
        with (
            open(file, "rb") as opened,
            torch.serialization.safe_globals([argparse.Namespace]),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # about unusual pickles, which may be refused below
            return torch.load(opened, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(_explain_refusal(file, one_line(error))) from error
    except Exception as error:  # damaged pickles raise errors of any type
        reason = f"{type(error).__name__}: {one_line(error)[:200]}".rstrip(".")
        raise ValueError(
            f"{str(file)!r} cannot be read as weights ({reason}); it is damaged, or no file of "
            "torch.save. Copy or download it again."
        ) from error


def _explain_refusal(file: Path, reason: str) -> str:
    other = re.search(r"Unsupported (?:global: GLOBAL|class) ([\w.]+)", reason)
    if other is None:
        other = re.search(r"(?:GLOBAL|global|class) ([\w]+(?:\.[\w]+)+)", reason)
    if other is not None:
        return (
            f"{str(file)!r} is refused: besides tensors it holds {other[1]}, which would be "
            "called while the file is read. Nothing was executed. If you trust the file, save "
            "only its tensors as .safetensors, in the environment that wrote it."
        )
    reason = reason.rpartition("WeightsUnpickler error: ")[2].partition(" Check the doc")[0]
    return (
        f"{str(file)!r} is refused: it must be a safetensors file or a pickle that holds only "
        f"tensors and plain values ({reason[:200]}). Nothing was executed."
    )


def _flatten(content: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield the values of nested dicts and lists, with their keys joined by dots.

    Raises:
        ValueError: If they are nested too deeply, or without end because one contains itself.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"dicts and lists are nested more than {MAX_DEPTH} levels deep")
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flatten(value, f"{prefix}{key}.", depth + 1)
    elif isinstance(content, list | tuple):
        for position, value in enumerate(content):
            yield from _flatten(value, f"{prefix}{position}.", depth + 1)
    else:
        yield prefix.removesuffix("."), content


def _unwrap(
    tensors: dict[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, str], list[str], list[str]]:
    """Remove wrappers from the names, and separate the training state from the network.

    Returns:
        Tensors of the network; their names in the file; removed wrappers; names of the training
        state.

    Raises:
        ValueError: If two tensors have the same name without their wrappers.
    """
    training_state = [name for name in tensors if name.split(".")[0] in TRAINING_STATE]
    original_names = {name: name for name in tensors if name not in set(training_state)}
    if "state_dict_ema" in {name.split(".")[0] for name in original_names}:
        # Files of timm's training script: timm loads the averaged weights, too.
        for name in [name for name in original_names if name.startswith("state_dict.")]:
            training_state.append(original_names.pop(name))
        original_names = {name.removeprefix("state_dict_ema."): name for name in original_names}
    wrappers = []
    for wrapper in WRAPPERS:
        inside = [name for name in original_names if name.startswith(f"{wrapper}.")]
        if 2 * len(inside) > len(original_names):
            wrappers.append(wrapper)
            original_names = {
                name.removeprefix(f"{wrapper}."): original
                for name, original in original_names.items()
            }
    plain: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    for name, original in original_names.items():
        short = CHUNK.sub(r"\1blocks.", MODULE_PREFIX.sub("", name))
        if short in plain:
            raise ValueError(f"{names[short]} and {original} are both named {short}.")
        plain[short], names[short] = tensors[original], original
    return plain, names, wrappers, training_state


__all__ = ["SourceFile", "find_source", "read_source", "sha256_of", "source_files"]
