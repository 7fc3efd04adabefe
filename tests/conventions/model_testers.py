"""What transformers' common tests ask of a model: sizes by their names, a configuration, inputs."""

# B batch · C channels · H, W pixels

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from selfvit import SelfViTConfig
from tests.objectives import OBJECTIVES, tiny_config


class ModelTester:
    """The attributes and the methods that the common tests look for, of `tiny_config`'s encoder.

    Args:
        config: makes the configuration, of two blocks: a common test allows no more.
        inputs: makes the arguments of `forward`, for a batch size.
        seq_length: tokens that the encoder sees.
    """

    is_training = True
    batch_size = 4
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 2
    image_size = 32
    patch_size = 8
    num_masks = 6  # patches masked, of
    mask_length = 16

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
        """Return a new configuration, and the same inputs at every call."""
        return self.get_config(), self._inputs(torch.Generator().manual_seed(0), self.batch_size)


def random_images(generator: torch.Generator, batch_size: int) -> dict[str, Tensor]:
    """Return images of 32 pixels."""
    return {"pixel_values": torch.randn(batch_size, 3, 32, 32, generator=generator)}


def encoder_tester() -> ModelTester:
    """Return what tests the encoder, its classifier and its backbone."""
    config = partial(tiny_config, num_hidden_layers=2, num_labels=3)
    return ModelTester(config, random_images, seq_length=1 + 16)


def full_encoder_tester() -> ModelTester:
    """Return what tests them with all that is off by default, but for the mask token.

    (That one gets no gradient from a classifier, and a common test wants one for every parameter.)
    """
    config = partial(
        tiny_config,
        num_hidden_layers=2,
        num_labels=3,
        num_register_tokens=3,
        layerscale_value=0.1,
        drop_path_rate=0.1,
        qkv_bias=False,
        position_embedding_type="sincos",
        pooling="concat:2",
        classifier_batch_norm=True,
    )
    return ModelTester(config, random_images, seq_length=1 + 3 + 16)


def objective_tester(name: str) -> ModelTester:
    """Return what tests an objective's model."""
    (objective,) = (entry for entry in OBJECTIVES if entry.name == name)
    # the encoder of MAE sees a quarter of the patches
    seq_length = 1 + (4 if name == "mae" else 16)
    config = partial(objective.config, num_hidden_layers=2)
    return ModelTester(config, objective.inputs, seq_length)
