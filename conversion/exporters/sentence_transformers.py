"""Export to a folder of sentence-transformers: `SentenceTransformer(folder).encode(images)`.

The first module is the checkpoint as a stock model of transformers. Stock modules of
sentence-transformers follow: Pooling, Dense if the pooling is not the class token, and optionally
Normalize. The folder contains no code of selfvit.
"""

# N patches · D hidden · E embedding

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import BaseImageProcessor
from transformers.utils import CONFIG_NAME

from ...configuration.configuration_selfvit import SelfViTConfig
from ...modeling.checkpoints.loading import quiet_loading
from ...modeling.checkpoints.weight_files import WEIGHTS
from ...modeling.modeling_selfvit import SelfViTModel
from .fidelity import Fidelity, measure_difference
from .transformers import check_transformers, write_transformers

# File, class and field names as in sentence-transformers 6.2.
MODULES_FILE = "modules.json"
TRANSFORMER_FILE = "sentence_bert_config.json"
MODEL_FILE = "config_sentence_transformers.json"
TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
POOLING = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
DENSE = "sentence_transformers.base.modules.dense.Dense"
NORMALIZE = "sentence_transformers.base.modules.normalize.Normalize"


def write_sentence_transformers(
    encoder: SelfViTModel,
    processor: BaseImageProcessor,
    folder: Path,
    *,
    normalize: bool = False,
) -> Fidelity:
    """Write a folder that sentence-transformers loads offline and without remote code.

    Args:
        encoder: Encoder in float32. Its `config.pooling` must be "cls", or "mean" or "cls+mean" if
            it has no register tokens.
        processor: Image processor of the checkpoint.
        folder: Existing, empty folder.
        normalize: Whether to scale vectors to length 1.

    Raises:
        ValueError: If the encoder or its pooling cannot be expressed.
    """
    config = encoder.config
    check_sentence_transformers(config)
    height, width = _output_size(processor)
    pooling = config.pooling
    class_token = copy.copy(encoder)  # shares the weights, but pools by the class token
    class_token.config = copy.deepcopy(config)
    class_token.config.pooling = "cls"
    notes = write_transformers(class_token, processor, folder).notes
    modules = [("", TRANSFORMER), ("1_Pooling", POOLING)]
    if pooling != "cls":
        modules.append((f"{len(modules)}_Dense", DENSE))
        _write_dense(config, (height, width), folder / modules[-1][0])
        notes += (
            f"{pooling} is computed from the class token and the mean of all tokens. This is exact "
            f"only for images of {height} x {width} pixels, the output size of the processor.",
        )
    if normalize:
        modules.append((f"{len(modules)}_Normalize", NORMALIZE))
    _write_modules(config, folder, modules)
    try:
        with _quiet_bitsandbytes():
            from sentence_transformers import SentenceTransformer
    except ImportError:
        unchecked = "sentence-transformers is not installed, so the export was not checked."
        return Fidelity(None, (*notes, unchecked))
    with quiet_loading():
        model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)

    def embed(pixel_values: Tensor) -> Tensor:
        return model({"pixel_values": pixel_values, "modality": "image"})["sentence_embedding"]

    sizes = [(height, width)]
    return Fidelity(measure_difference(encoder, embed, sizes=sizes, normalize=normalize), notes)


@contextmanager
def _quiet_bitsandbytes() -> Iterator[None]:
    """Silence the warning of bitsandbytes about a 4-bit kernel, which an export does not use.

    sentence-transformers imports bitsandbytes where it is installed.
    """
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _output_size(processor: Any) -> tuple[int, int]:
    """Return (height, width) of what a processor gives, which need not be the encoder's size."""
    image = np.zeros((200, 300, 3), dtype=np.uint8)
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    return pixels.shape[-2], pixels.shape[-1]


def check_sentence_transformers(config: SelfViTConfig) -> None:
    """Check that stock modules can express an encoder and its pooling.

    Raises:
        ValueError: If they cannot; the message names alternatives.
    """
    nearest = "Use --pooling cls for the nearest result, or --to onnx for the exact one."
    if config.pooling not in ("cls", "mean", "cls+mean"):
        raise ValueError(
            f"pooling ({config.pooling!r}) cannot be expressed: sentence-transformers has modules "
            f"for cls, mean and cls+mean. {nearest}"
        )
    if config.pooling != "cls" and config.num_register_tokens:
        raise ValueError(
            f"pooling ({config.pooling!r}) cannot be expressed for an encoder with register "
            f"tokens, because the means of sentence-transformers include them. {nearest}"
        )
    if config.num_channels != 3:
        raise ValueError(
            f"num_channels ({config.num_channels}) must be 3, because the image processors that "
            "sentence-transformers loads read RGB images. Use --to onnx or --to transformers."
        )
    as_class_token = copy.deepcopy(config)
    as_class_token.pooling = "cls"
    check_transformers(as_class_token)


def _write_dense(config: SelfViTConfig, image_size: tuple[int, int], folder: Path) -> None:
    """Write the linear layer that removes the class token from the mean of all tokens.

    Its input is (c, m), with class token c and m = (c + sum of patches) / (1 + N). The mean of the
    patches is ((1 + N) m - c) / N.
    """
    height, width = image_size
    num_patches = (height // config.patch_size) * (width // config.patch_size)
    identity = torch.eye(config.hidden_size)
    mean = torch.cat([-identity / num_patches, identity * (1 + num_patches) / num_patches], dim=1)
    class_token = torch.cat([identity, torch.zeros_like(identity)], dim=1)
    weight = mean if config.pooling == "mean" else torch.cat([class_token, mean])  # (E, 2 D)
    folder.mkdir()
    _write_json(
        folder / CONFIG_NAME,
        {
            "in_features": weight.shape[1],
            "out_features": weight.shape[0],
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
    )
    save_file({"linear.weight": weight}, folder / WEIGHTS, metadata={"format": "pt"})


def _write_modules(config: SelfViTConfig, folder: Path, modules: list[tuple[str, str]]) -> None:
    listed = [
        {"idx": index, "name": str(index), "path": path, "type": kind}
        for index, (path, kind) in enumerate(modules)
    ]
    _write_json(folder / MODULES_FILE, listed)
    _write_json(
        folder / TRANSFORMER_FILE,
        {
            "transformer_task": "feature-extraction",
            "modality_config": {
                "image": {"method": "forward", "method_output_name": "last_hidden_state"}
            },
            "module_output_name": "token_embeddings",
        },
    )
    _write_json(
        folder / MODEL_FILE,
        {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"},
    )
    for path, kind in modules:
        (folder / path).mkdir(exist_ok=True)
        if kind == POOLING:
            _write_json(
                folder / path / CONFIG_NAME,
                {
                    "embedding_dimension": config.hidden_size,
                    "pooling_mode": "cls" if config.pooling == "cls" else ["cls", "mean"],
                    "include_prompt": True,
                },
            )


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


__all__ = [
    "MODEL_FILE",
    "MODULES_FILE",
    "TRANSFORMER_FILE",
    "check_sentence_transformers",
    "write_sentence_transformers",
]
