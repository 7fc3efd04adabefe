"""Checkpoints to export, and images to compare embeddings on."""

import pytest
import torch

from selfvit import SelfViTForDINO, SelfViTModel
from selfvit.embedding.preprocessing import build_processor

from ..image_files import noise
from ..objectives import tiny_config


@pytest.fixture(scope="module")
def make_checkpoint(tmp_path_factory):
    """Return a function that writes an encoder, or a SelfViTForDINO if there is a `dino_config`."""

    def make(config=None, *, resize="shortest_edge", **overrides):
        config = config or tiny_config(**{"initializer_range": 0.2, **overrides})
        torch.manual_seed(0)
        model = SelfViTModel(config) if config.dino_config is None else SelfViTForDINO(config)
        with torch.no_grad():  # biases of 0 and scales of 1 could hide errors
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        folder = tmp_path_factory.mktemp("checkpoint")
        model.save_pretrained(folder)
        build_processor(config, resize=resize).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def photos():
    return [noise(40, 50, 1), noise(60, 33, 2), noise(35, 35, 3)]
