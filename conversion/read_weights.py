"""Reading weights of others, without executing anything in them.

A `.pth` is a pickle, which can name any function to be called while it is read. Here it may hold
tensors, containers, numbers, strings and the arguments of a command (`argparse.Namespace`);
anything else is refused before it runs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import re
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

from ..errors import one_line
from ..modeling.checkpoints.weight_files import INDEXES, SINGLE_FILES, shard_names

# In the order in which they are looked for; an index names the shards.
WEIGHTS = tuple(name for pair in zip(SINGLE_FILES, INDEXES, strict=True) for name in pair)
SIDE_FILES = ("config.json", "preprocessor_config.json", "README.md")

# Parts of a training checkpoint that no network needs, by the first part of a tensor's name.
TRAINING_STATE = {
    "optimizer", "optimizers", "optimizer_states", "opt", "lr_scheduler", "lr_schedulers",
    "scheduler", "scaler", "amp_scaler", "fp16_scaler", "loss_scaler", "callbacks", "loops",
}  # fmt: skip
WRAPPERS = ("state_dict", "model", "model_state_dict", "network", "net")  # around a network
INSIDE = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod)\.")  # DistributedDataParallel, compile


@dataclass
class SourceFile:
    """Tensors of a source and what lies beside them.

    Args:
        tensors: by name; parts of a nested file are joined by dots, wrappers removed.
        original_names: as the file has them, by the names above.
        wrappers: what was around the network, from the outside: `model`, `state_dict`.
        training_state: names of tensors that belong to no network: an optimizer's, for instance.
        config: `config.json` beside the weights, or {}.
        arguments: of the command that trained them, where the file holds them, or {}.
        folder: where `preprocessor_config.json` may lie, or None.
        description: what was read.
        repository: of the Hub, that it was read from, or None.
        sha256: of the file, or of the index of the shards.
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
    """Read a file, a folder, a Hub id or the name of a timm model.

    Args:
        source: `.safetensors`, or anything that `torch.save` wrote; a folder with
            `model.safetensors` or `pytorch_model.bin`, whole or in shards, and perhaps
            `config.json`; else a Hub id, or a timm model's name, whose files are taken from the
            cache of the Hub or downloaded.

    Raises:
        FileNotFoundError: if there is no such source, or no weights in it.
        ValueError: if it cannot be read, or holds other objects than tensors and plain values.
    """
    path, repository = Path(source).expanduser(), None
    if not path.exists():
        path, repository = _from_hub(str(source))
    file = _weights_in(path) if path.is_dir() else path
    content, arguments = _read(file)
    folder = path if path.is_dir() else path.parent
    # what lies beside a single file may be another model's
    config = _json(folder / "config.json") if path.is_dir() else {}
    tensors = {name: tensor for name, tensor in _flat(content) if isinstance(tensor, Tensor)}
    if not tensors:
        raise ValueError(f"{str(file)!r} holds no tensors, so there is nothing to convert.")
    plain, original_names, wrappers, training_state = _unwrapped(tensors)
    return SourceFile(
        tensors=plain,
        original_names=original_names,
        wrappers=wrappers,
        training_state=training_state,
        config=config,
        arguments=arguments,
        folder=folder if path.is_dir() else None,
        description=str(source),
        repository=repository,
        sha256=_sha256(file),
    )


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        while block := opened.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _weights_in(folder: Path) -> Path:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    holds = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
    raise FileNotFoundError(
        f"{str(folder)!r} has none of {', '.join(WEIGHTS)}; it holds {holds}. Give the file itself."
    )


def _from_hub(name: str) -> tuple[Path, str]:
    """Return the folder of a repository of the Hub, and its id."""
    if name.startswith((".", "/", "~")) or re.search(r"\.(pth|pt|bin|ckpt|tar|safetensors)$", name):
        raise FileNotFoundError(f"there is no file or folder {name!r}.")
    repository = name if "/" in name else _repository_of_timm_model(name)
    try:
        patterns = [*WEIGHTS, *SIDE_FILES, "*-of-*"]
        return Path(snapshot_download(repository, allow_patterns=patterns)), repository
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"{name!r} is no file or folder here, and the Hub's {repository!r} is neither in the "
            f"cache nor to be had ({type(error).__name__}). Download it, or give a path."
        ) from error


def _repository_of_timm_model(name: str) -> str:
    missing = f"there is no file or folder {name!r}, and no such model in timm"
    try:
        from timm.models import get_pretrained_cfg
    except ImportError as error:
        raise FileNotFoundError(f"{missing}, which is not installed.") from error
    try:
        found = get_pretrained_cfg(name)
    except RuntimeError:
        found = None
    if found is None or not found.hf_hub_id:
        raise FileNotFoundError(f"{missing} with weights on the Hub. Give a path.")
    repository = found.hf_hub_id
    return repository if "/" in repository and repository != "timm/" else f"timm/{name}"


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} should hold an object, not a {type(content).__name__}.")
    return content


def _shards(index: Path) -> list[str]:
    try:
        return shard_names(index)
    except ValueError as error:
        raise ValueError(f"{str(index)!r} cannot be read: {error}.") from error


def _read(file: Path) -> tuple[Any, dict[str, Any]]:
    """Return the content of one file, or of the shards that an index names, and arguments."""
    if file.name.endswith(".index.json"):
        content: dict[str, Any] = {}
        for shard in _shards(file):
            if Path(shard).name != shard or not (file.parent / shard).is_file():
                raise FileNotFoundError(f"{str(file)!r} names {shard!r}, which does not lie there.")
            content.update(_read(file.parent / shard)[0])
        return content, {}
    with open(file, "rb") as opened:
        start = opened.read(16)
    # by content: a safetensors file begins with the length of its header, and "{"
    if start[8:9] == b"{" and start[:2] not in (b"PK", b"\x80\x02"):
        try:
            return load_file(file), {}
        except SafetensorError as error:
            raise ValueError(f"{str(file)!r} is damaged, or not whole: {error}.") from error
    content = _unpickle(file)
    arguments: dict[str, Any] = {}
    for key in ("args", "hyper_parameters"):
        found = content.get(key) if isinstance(content, Mapping) else None
        found = vars(found) if isinstance(found, argparse.Namespace) else found
        arguments.update(found if isinstance(found, Mapping) else {})
    return content, arguments


def _unpickle(file: Path) -> Any:
    try:
        # opened here, for torch.load would go by the name of the file
        with open(file, "rb") as opened, torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(opened, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error)
        other = re.search(r"Unsupported (?:global: GLOBAL|class) ([\w.]+)", reason)
        if other is None:
            other = re.search(r"(?:GLOBAL|global|class) ([\w]+(?:\.[\w]+)+)", reason)
        if other is not None:
            raise ValueError(
                f"{str(file)!r} is refused: besides tensors it holds {other[1]}, which reading it "
                "would call. Nothing was executed. If you trust the file, save its tensors alone, "
                "as .safetensors, where it was made."
            ) from error
        raise ValueError(
            f"{str(file)!r} is refused: it is no safetensors file and no plain pickle of tensors "
            f"({one_line(error)[:200]}). Nothing was executed."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        reason = one_line(error)[:200]
        raise ValueError(f"{str(file)!r} cannot be read as weights: {reason}.") from error


def _flat(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flat(value, f"{prefix}{key}.")
    elif isinstance(content, list | tuple):
        for position, value in enumerate(content):
            yield from _flat(value, f"{prefix}{position}.")
    else:
        yield prefix.removesuffix("."), content


def _unwrapped(
    tensors: dict[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, str], list[str], list[str]]:
    """Remove what is around a network, from names, and the state of its training."""
    training_state = [name for name in tensors if name.split(".")[0] in TRAINING_STATE]
    original_names = {name: name for name in tensors if name not in set(training_state)}
    if "state_dict_ema" in {name.split(".")[0] for name in original_names}:
        # timm's trainer: the average is what its own loader takes
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
        short = INSIDE.sub("", name)
        if short in plain:
            raise ValueError(f"{names[short]} and {original} are the same tensor by their names.")
        plain[short], names[short] = tensors[original], original
    return plain, names, wrappers, training_state


__all__ = ["SourceFile", "read_source"]
