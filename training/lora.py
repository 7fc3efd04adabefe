"""Low-rank adapters that train in place of the encoder (LoRA, arXiv 2106.09685), through PEFT.

The encoder's own weights stand still. Beside each chosen linear layer, W x, trains a product of two
thin matrices, alpha / rank * B A x. B starts at zero, so a run starts as the encoder that it was
given. Heads, decoders and classifiers, which are new, train whole.

A momentum teacher has adapters of its own, the average of the student's (A and B each). All else of
the two encoders is one set of tensors: `vit` and `student.vit` hold the same parameters, once in
memory.

What is written for others is merged, W + alpha / rank * B A, under the names of any checkpoint. The
sum is made of copies: a merge in place, as PEFT offers, could not be undone to the last bit, and
would change the other network too.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_file, save_model
from torch import Tensor, nn

from ..file_modes import apply_umask
from ..modeling.checkpoints.hub_revision import split_revision
from ..modeling.modeling_selfvit import SelfViTPreTrainedModel
from ..modeling.momentum_teacher import copy_student
from ..sharing.adapter_files import ADAPTER_WEIGHTS
from ..sharing.provenance import hub_id
from .config.training_config import LoRAConfig

# In a checkpoint that a run resumes from: the model as it trains, its base once. The merged weights
# would not give back their parts exactly.
UNMERGED = "unmerged.safetensors"
NAME = "default"  # PEFT's, of the only adapter of a model
IS_ADAPTER = ".lora_"  # in the names of its parameters


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of an encoder.

    Args:
        own: parameters without adapters, as of any such encoder.
        adapters: those of the adapters; 0 without.
    """

    own: int
    adapters: int


def check_adapters(config: LoRAConfig, *, sharded: bool) -> None:
    """Refuse adapters where they would not train rightly, before anything is written.

    Raises:
        ValueError: if the model is divided over processes: two encoders that share tensors cannot
            be taken apart one by one.
    """
    if config.lora_rank is not None and sharded:
        raise ValueError(
            f"lora_rank ({config.lora_rank}): student and teacher share the encoder, which FSDP "
            "would divide twice; use DDP (accelerate launch --multi_gpu), as adapters need little "
            "memory, or leave lora_rank out."
        )


def add_adapters(model: Any, config: LoRAConfig, base: str) -> None:
    """Put adapters into the encoder that is trained, and into its teacher; in place.

    With `init_scope="all"` both start from the teacher's encoder: only one can be the base, and
    that is the one which AutoModel opens. Heads are left as they are.

    Args:
        model: with its pretrained weights.
        config: Rank, alpha and targets.
        base: Checkpoint that the weights are from: a folder, a Hub id or USER/NAME@REVISION.

    Raises:
        ImportError: if PEFT is not installed.
    """
    inject, adapter = _peft().inject_adapter_in_model, _adapter_config(config, base)
    encoder, teacher = model.trained_encoder, model.vit
    if encoder is teacher:
        inject(adapter, encoder)  # which leaves only the adapters asking for gradients
        return
    copy_student(teacher, encoder)
    for network in (encoder, teacher):
        inject(copy.deepcopy(adapter), network)
    copy_student(encoder, teacher)
    _share_base(encoder, teacher)
    model.train(model.training)  # the teacher asks for none at all


def _adapter_config(config: LoRAConfig, started_from: str) -> Any:
    base, revision = split_revision(started_from)
    if hub_id(started_from) is None:  # a folder, which is found from elsewhere, too
        base = str(Path(base).expanduser().absolute())
    adapter = _peft().LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha or config.lora_rank,
        target_modules=list(config.lora_targets),
        base_model_name_or_path=base,
        revision=revision,
        auto_mapping={"base_model_class": "SelfViTModel", "parent_library": "selfvit"},
    )
    adapter.target_modules = sorted(config.lora_targets)  # PEFT's set has no order to write
    return adapter


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError(
            "lora_rank asks for adapters of PEFT, which is not installed: "
            "pip install 'selfvit[lora]'."
        ) from error
    return peft


def _share_base(encoder: nn.Module, teacher: nn.Module) -> None:
    """Make all but the teacher's adapters the very parameters of the other encoder."""
    for name, parameter in encoder.named_parameters():
        if IS_ADAPTER not in name:
            owner, _, attribute = name.rpartition(".")
            setattr(teacher.get_submodule(owner), attribute, parameter)


def has_adapters(model: Any) -> bool:
    """Whether `add_adapters` was here."""
    return hasattr(model.vit, "peft_config")


def count_parameters(encoder: nn.Module) -> ParameterCounts:
    """Count an encoder's parameters."""
    sizes = {name: parameter.numel() for name, parameter in encoder.named_parameters()}
    adapters = sum(size for name, size in sizes.items() if IS_ADAPTER in name)
    return ParameterCounts(own=sum(sizes.values()) - adapters, adapters=adapters)


def describe_adapters(config: LoRAConfig, model: Any) -> str:
    """Say what adapts the encoder, and how large it is."""
    size = count_parameters(model.vit).adapters
    return (
        f"LoRA of rank {config.lora_rank}, alpha {config.lora_alpha or config.lora_rank}, on "
        f"{', '.join(config.lora_targets)}: {size:,} parameters ({4 * size / 2**20:,.1f} MiB)"
    )


@torch.no_grad()
def merged_weights(model: SelfViTPreTrainedModel) -> dict[str, Tensor]:
    """Return the weights of a model with its adapters merged, on the CPU; the model stays.

    Names and shapes are those of the model without adapters. No two tensors share memory.
    """
    merged: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if IS_ADAPTER not in name:
            own_name = name.replace(".base_layer.", ".")
            merged[own_name] = tensor.detach().to("cpu", copy=True)
            if name.endswith(".base_layer.weight"):
                layer: Any = model.get_submodule(own_name.removesuffix(".weight"))
                merged[own_name] += layer.get_delta_weight(NAME).cpu()
    return merged


def result_bytes(model: SelfViTPreTrainedModel) -> int:
    """Return the bytes of a trained model's tensors as they are written, with `adapter/`."""
    return sum(
        tensor.nbytes
        for name, tensor in model.state_dict().items()
        if IS_ADAPTER not in name or name.startswith("vit.")
    )


def save_adapter(encoder: Any, folder: Path) -> None:
    """Write an encoder's adapters alone, as `PeftModel.from_pretrained` reads them.

    Args:
        encoder: with adapters.
        folder: made if it is not there.
    """
    config = copy.copy(encoder.peft_config[NAME])
    config.inference_mode = True
    folder.mkdir(exist_ok=True)
    config.save_pretrained(str(folder))
    tensors = _peft().get_peft_model_state_dict(
        encoder,
        adapter_name=NAME,
        save_embedding_layers=False,  # it would ask the Hub whether there are any
    )
    save_file(
        {f"base_model.model.{name}": tensor.cpu().contiguous() for name, tensor in tensors.items()},
        folder / ADAPTER_WEIGHTS,
        metadata={"format": "pt"},
    )
    apply_umask([folder / ADAPTER_WEIGHTS])


def save_unmerged(model: nn.Module, folder: Path) -> None:
    """Write a model with its adapters as they are, and what is shared once."""
    save_model(model, str(folder / UNMERGED))
    apply_umask([folder / UNMERGED])


def load_unmerged(model: nn.Module, folder: Path) -> None:
    """Read what `save_unmerged` wrote into the parameters of a model; all of it must fit."""
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
]
