"""Low-rank adapters that are trained instead of the encoder (LoRA, arXiv 2106.09685), with PEFT.

The encoder's own weights are frozen. Each chosen linear layer W x gets an adapter, the product of
two low-rank matrices: W x + alpha / rank * B A x. B starts at zero, so the initial outputs are
those of the pretrained encoder. Heads, decoders and classifiers are new and trained in full.

A momentum teacher has its own adapters, whose A and B are moving averages of the student's. All
other parameters of the two encoders are shared: `vit` and `student.vit` hold the same tensors,
which are in memory once.

Saved weights have the adapters merged, W + alpha / rank * B A, under the usual parameter names.
They are merged in a copy, because PEFT's in-place merge cannot be undone bit for bit and would
change the other network, which shares W.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_file, save_model
from torch import Tensor, nn

from ..configuration.configuration_selfvit import SelfViTConfig
from ..file_modes import apply_umask
from ..modeling.checkpoints.hub_revision import split_revision
from ..modeling.modeling_selfvit import SelfViTPreTrainedModel
from ..modeling.momentum_teacher import copy_student
from ..sharing.adapter_files import ADAPTER_WEIGHTS
from ..sharing.provenance import hub_id
from .config.training_config import LoRAConfig

# File of the unmerged model in a checkpoint to resume from. It is needed because base and adapters
# cannot be recovered exactly from the merged weights. Shared parameters are stored once.
UNMERGED = "unmerged.safetensors"
NAME = "default"  # PEFT's name for the only adapter of a model
GATED_MLP = {"fc1": ("gate_proj", "up_proj"), "fc2": ("down_proj",)}  # target -> modules
ADAPTER_INFIX = ".lora_"  # part of the names of adapter parameters


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters of an encoder.

    Args:
        own: Number of parameters without adapters.
        adapters: Number of adapter parameters; 0 without adapters.
    """

    own: int
    adapters: int


def check_adapters(config: LoRAConfig, *, sharded: bool) -> None:
    """Check that adapters can be trained, before anything is written.

    Args:
        config: Rank, alpha and targets.
        sharded: Whether FSDP shards the model. FSDP shards one module after the other, which fails
            for two encoders that share parameters.

    Raises:
        ValueError: If adapters are to be trained and the model is sharded.
    """
    if config.lora_rank is not None and sharded:
        raise ValueError(
            f"--lora-rank ({config.lora_rank}) cannot be used with FSDP, which would shard the "
            "encoder that student and teacher share twice; use DDP (accelerate launch "
            "--multi_gpu), as adapters need little memory, or leave out --lora-rank."
        )


def add_adapters(model: Any, config: LoRAConfig, base: str) -> None:
    """Add adapters to the student's encoder and to the teacher's, in place.

    Both encoders start from the teacher's weights, even with `init_scope="all"`: they share one
    base, and the teacher is the network that AutoModel opens. Heads do not change. A mask token
    that the objective uses is trained as well, since that of a checkpoint may be new.

    Args:
        model: Model with pretrained weights.
        config: Rank, alpha and targets.
        base: Checkpoint that the weights are from: a folder, a Hub id or USER/NAME@REVISION.

    Raises:
        ImportError: If PEFT is not installed.
    """
    inject, adapter = _peft().inject_adapter_in_model, _adapter_config(config, model.config, base)
    encoder, teacher = model.trained_encoder, model.vit
    if encoder is teacher:
        inject(adapter, encoder)  # sets requires_grad=False for all but the adapters
        _train_mask_token(model)
        return
    copy_student(teacher, encoder)
    for network in (encoder, teacher):
        inject(copy.deepcopy(adapter), network)
    copy_student(encoder, teacher)
    _share_base(encoder, teacher)
    _train_mask_token(model)
    model.train(model.training)  # sets requires_grad=False for the teacher, adapters included


def target_modules(config: LoRAConfig, encoder: SelfViTConfig) -> list[str]:
    """Return the names of the modules that get adapters.

    Args:
        config: Rank, alpha and targets.
        encoder: Configuration of the encoder. If its MLP is gated, fc1 stands for the gate and the
            hidden layer, and fc2 for the last layer.
    """
    names = GATED_MLP if encoder.use_gated_mlp else {}
    return [name for target in config.lora_targets for name in names.get(target, (target,))]


def _adapter_config(config: LoRAConfig, encoder: SelfViTConfig, started_from: str) -> Any:
    base, revision = split_revision(started_from)
    if hub_id(started_from) is None:  # a folder; absolute, to be found from any working directory
        base = str(Path(base).expanduser().absolute())
    targets = target_modules(config, encoder)
    adapter = _peft().LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha or config.lora_rank,
        target_modules=targets,
        base_model_name_or_path=base,
        revision=revision,
        auto_mapping={"base_model_class": "SelfViTModel", "parent_library": "selfvit"},
    )
    adapter.target_modules = sorted(targets)  # a set would be saved in no fixed order
    return adapter


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError(
            "--lora-rank needs PEFT, which is not installed; use: pip install 'selfvit[lora]'."
        ) from error
    return peft


def _share_base(encoder: nn.Module, teacher: nn.Module) -> None:
    """Replace the teacher's parameters by those of the other encoder.

    Adapters and the mask token stay its own.
    """
    for name, parameter in encoder.named_parameters():
        if ADAPTER_INFIX not in name and not name.endswith("mask_token"):
            owner, _, attribute = name.rpartition(".")
            setattr(teacher.get_submodule(owner), attribute, parameter)


def _train_mask_token(model: Any) -> None:
    if model.uses_mask_token:
        model.trained_encoder.embeddings.mask_token.requires_grad_(True)


def has_adapters(model: Any) -> bool:
    """Return whether a model has adapters."""
    return hasattr(model.vit, "peft_config")


def count_parameters(encoder: nn.Module) -> ParameterCounts:
    """Count the parameters of an encoder."""
    sizes = {name: parameter.numel() for name, parameter in encoder.named_parameters()}
    adapters = sum(size for name, size in sizes.items() if ADAPTER_INFIX in name)
    return ParameterCounts(own=sum(sizes.values()) - adapters, adapters=adapters)


def describe_adapters(config: LoRAConfig, model: Any) -> str:
    """Describe the adapters of an encoder and their size, for plans and cards."""
    size = count_parameters(model.vit).adapters
    targets = ", ".join(target_modules(config, model.config))
    return (
        f"LoRA of rank {config.lora_rank}, alpha {config.lora_alpha or config.lora_rank}, on "
        f"{targets}: {size:,} parameters ({4 * size / 2**20:,.1f} MiB)"
    )


@torch.no_grad()
def merged_weights(model: SelfViTPreTrainedModel) -> dict[str, Tensor]:
    """Return copies of a model's weights, on the CPU, with the adapters merged.

    Names and shapes are those of the model without adapters. No two tensors share memory.
    """
    merged: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if ADAPTER_INFIX not in name:
            own_name = name.replace(".base_layer.", ".")
            merged[own_name] = tensor.detach().to("cpu", copy=True)
            if name.endswith(".base_layer.weight"):
                layer: Any = model.get_submodule(own_name.removesuffix(".weight"))
                merged[own_name] += layer.get_delta_weight(NAME).cpu()
    return merged


def result_bytes(model: SelfViTPreTrainedModel) -> int:
    """Return the bytes of a trained model's saved tensors: merged weights and `adapter/`."""
    return sum(
        tensor.nbytes
        for name, tensor in model.state_dict().items()
        if ADAPTER_INFIX not in name or name.startswith("vit.")
    )


def save_adapter(encoder: Any, folder: Path) -> None:
    """Write the adapters of an encoder in the format that `PeftModel.from_pretrained` reads.

    Args:
        encoder: Encoder with adapters.
        folder: Folder to write to; created if missing.
    """
    config = copy.copy(encoder.peft_config[NAME])
    config.inference_mode = True
    folder.mkdir(exist_ok=True)
    config.save_pretrained(str(folder))
    tensors = _peft().get_peft_model_state_dict(
        encoder,
        adapter_name=NAME,
        save_embedding_layers=False,  # the default queries the Hub
    )
    save_file(
        {f"base_model.model.{name}": tensor.cpu().contiguous() for name, tensor in tensors.items()},
        folder / ADAPTER_WEIGHTS,
        metadata={"format": "pt"},
    )
    apply_umask([folder / ADAPTER_WEIGHTS])


def save_unmerged(model: nn.Module, folder: Path) -> None:
    """Write a model with unmerged adapters; shared parameters are stored once."""
    save_model(model, str(folder / UNMERGED))
    apply_umask([folder / UNMERGED])


def load_unmerged(model: nn.Module, folder: Path) -> None:
    """Load the weights that `save_unmerged` wrote into a model, strictly."""
    load_model(model, folder / UNMERGED)


__all__ = [
    "UNMERGED",
    "ParameterCounts",
    "add_adapters",
    "check_adapters",
    "count_parameters",
    "has_adapters",
    "load_unmerged",
    "merged_weights",
    "result_bytes",
    "save_adapter",
    "save_unmerged",
    "target_modules",
]
