"""Compilation of the encoders by torch.compile."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ...modeling.modeling_selfvit import SelfViTModel
from .fsdp import is_sharded

# Entry points of an encoder that objectives call in a step.
ENTRIES = ("forward", "class_tokens")


def check_compile(accelerator: Accelerator) -> None:
    """Check that encoders can be compiled.

    Raises:
        ValueError: If the model is sharded, where gathering the weights of a block would break the
            graph of an encoder.
    """
    if is_sharded(accelerator):
        raise ValueError(
            "--compile captures an encoder as one graph, but FSDP2 gathers the weights of each "
            "block; leave out --compile, or train without FSDP2."
        )


def compile_encoders(model: nn.Module, **options: Any) -> None:
    """Compile the encoders of a model, each as one graph per shape of its inputs.

    Heads and losses are not compiled: they take a small part of a step, and change with the step.
    Names and weights of the model stay the same. Random numbers of drop path differ from those
    without compilation.

    Args:
        model: Model to train, changed in place.
        options: Options of `torch.compile`.
    """
    for module in model.modules():
        if isinstance(module, SelfViTModel):
            for name in ENTRIES:
                function = torch.compile(getattr(type(module), name), **options)
                # a method, so that it belongs to the copy in a deep copy of the model
                setattr(module, name, MethodType(function, module))


__all__ = ["check_compile", "compile_encoders"]
