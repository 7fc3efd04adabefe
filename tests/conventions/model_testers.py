"""Model testers for transformers' common tests: sizes, configuration and inputs of a model."""

# B batch · C channels · H, W pixels

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from selfvit import SelfViTConfig
from tests.objectives import DINOV3, OBJECTIVES, tiny_config


class ModelTester:
    """Attributes and methods that the common tests need, for the encoder of `tiny_config`.

    Args:
        config: Function that returns a configuration with two blocks, the maximum of a common test.
        inputs: Function that returns the arguments of `forward` for a generator and a batch size.
        seq_length: Number of tokens in the encoder.
    """

    is_training = True
    batch_size = 4
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 2
    image_size = 32
    patch_size = 8
    num_masks = 6  # masked patches
    mask_length = 16  # patches

    def __init__(
        self,
        config: Callable[[], SelfViTConfig],
        inputs: Callable[[torch.Generator, int], dict[str, Tensor]],
        seq_length: int,
    ):
        self.get_config = config
        self._inputs = inputs
        self.seq_length = seq_length

    def prepare_config_and_inputs_for_common(self) -> tuple[SelfViTConfig, dict[str, Any]]:
        """Return a new configuration, and the same inputs in each call."""
        return self.get_config(), self._inputs(torch.Generator().manual_seed(0), self.batch_size)


def random_images(generator: torch.Generator, batch_size: int) -> dict[str, Tensor]:
    """Return images of 32 pixels."""
    return {"pixel_values": torch.randn(batch_size, 3, 32, 32, generator=generator)}


def encoder_tester() -> ModelTester:
    """Return the tester of encoder, classifier and backbone."""
    config = partial(tiny_config, num_hidden_layers=2, num_labels=3)
    return ModelTester(config, random_images, seq_length=1 + 16)


def full_encoder_tester() -> ModelTester:
    """Return the tester of encoder, classifier and backbone with all options enabled.

    The mask token is an exception: it gets no gradient from a classifier, and a common test needs
    a gradient for every parameter.
    """
    config = partial(
        tiny_config,
        num_hidden_layers=2,
        num_labels=3,
        **{**DINOV3, "num_register_tokens": 3},
        drop_path_rate=0.1,
        pooling="concat:2",
        classifier_batch_norm=True,
    )
    return ModelTester(config, random_images, seq_length=1 + 3 + 16)


def objective_tester(name: str) -> ModelTester:
    """Return the tester of an objective's model."""
    (objective,) = (entry for entry in OBJECTIVES if entry.name == name)
    # a quarter of the patches is visible to the encoder of MAE
    seq_length = 1 + (4 if name == "mae" else 16)
    config = partial(objective.config, num_hidden_layers=2)
    return ModelTester(config, objective.inputs, seq_length)
