"""Fingerprint of a checkpoint and its options, by which a folder of vectors can be resumed."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn
from transformers import BaseImageProcessor

from ..embedder import Embedder
from .manifest import ENCODER_FIELDS


def checkpoint_fingerprint(embedder: Embedder, vector_dtype: str) -> dict[str, Any]:
    """Return the values that must be the same for all vectors of a folder.

    The batch size and the device are not among them: they change the last bits at most.

    Args:
        embedder: Embedder that computes the vectors, whose engine is chosen.
        vector_dtype: Type of the stored values, "float32" or "float16".
    """
    pixel_range = embedder.pixel_format.pixel_range
    selection = embedder.selection
    rounding = selection.quantization
    weights_dtype = selection.dtype if rounding is None else torch.float32
    return {
        "weights": hash_of_weights(embedder.model, weights_dtype),
        "processor": _hash_of_processor(embedder.processor),
        "pixel_range": None if pixel_range is None else [float(value) for value in pixel_range],
        "pooling": embedder.model.config.pooling,
        **{name: getattr(embedder.model.config, name) for name in ENCODER_FIELDS},
        "normalize": embedder.normalize,
        "dtype": selection.dtype_name,
        "engine": selection.engine,
        "vector_dtype": vector_dtype,
        "embedding_size": embedder.embedding_size,
        "patch_grid": None if embedder.patch_grid is None else list(embedder.patch_grid),
        **({} if rounding is None else {"quantization": rounding.to_dict()}),
    }


def hash_of_weights(model: nn.Module, dtype: torch.dtype) -> str:
    """Return a hash of the names and values of all weights, 16 hexadecimal digits.

    Args:
        model: Model.
        dtype: Precision that the weights are computed with, and rounded to before.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(memoryview(values.view(torch.uint8).numpy()))
    return digest.hexdigest()


def _hash_of_processor(processor: BaseImageProcessor) -> str:
    content = json.dumps(processor.to_dict(), sort_keys=True, default=str)
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


__all__ = ["checkpoint_fingerprint", "hash_of_weights"]
