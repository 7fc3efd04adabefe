"""Source files for the tests, made from the reference weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.golden import load_golden, weights_of

SUFFIXES = ("pth", "safetensors")

# Options that no tensor of a reference file determines.
HEADS: dict[str, dict[str, Any]] = {"mae": {"decoder_num_heads": 4}}


def heads_of(file_name: str) -> dict[str, Any]:
    """Return the options that a reference file needs."""
    return {"num_heads": 3, **HEADS.get(file_name.removesuffix("_norm_pix"), {})}


def save_weights(weights: Mapping[str, Tensor], folder: Path, suffix: str = "pth") -> Path:
    """Write a state dict to a file whose name does not reveal its format."""
    path = folder / f"weights.{suffix}"
    if suffix == "safetensors":
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    else:
        torch.save(dict(weights), path)
    return path


def golden_weights(file_name: str) -> dict[str, Tensor]:
    """Return the state dict of a reference file."""
    return weights_of(load_golden(file_name)[0])


def without_prefix(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the weights whose names start with a prefix, without the prefix."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in weights.items()
        if name.startswith(prefix)
    }


def with_prefix(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the weights with a prefix before their names."""
    return {prefix + name: tensor for name, tensor in weights.items()}


def dino_checkpoint() -> dict[str, Any]:
    """Return the reference weights as main_dino.py of facebookresearch/dino saves them."""
    import argparse

    stored = golden_weights("lightly_dino_checkpoint")

    def network(name: str, prefix: str) -> dict[str, Tensor]:
        head = without_prefix(stored, f"{name}_head.")
        head = {key.replace("layers.", "mlp."): tensor for key, tensor in head.items()}
        return {
            **with_prefix(without_prefix(stored, f"{name}_backbone."), f"{prefix}backbone."),
            **with_prefix(head, f"{prefix}head."),
        }

    generator = torch.Generator().manual_seed(0)
    return {
        "student": network("student", "module."),  # wrapped in DistributedDataParallel
        "teacher": network("teacher", ""),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3), "step": 7}}, "param_groups": []},
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_small", patch_size=16),
        "dino_loss": {"center": torch.randn(1, 96, generator=generator)},
        "fp16_scaler": {"scale": 65536.0},
    }
