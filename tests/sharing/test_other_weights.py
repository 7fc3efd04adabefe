"""Weights of other projects on the Hub, where a checkpoint is asked for."""

import numpy as np
import torch
from transformers import ViTConfig, ViTModel

from selfvit import Embedder, convert, read_vectors

from . import hub_client


def test_weights_on_the_hub_are_converted_and_used(client, hub, images, tmp_path):
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        image_size=32, patch_size=8,
    )  # fmt: skip
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "converted")
    expected = Embedder.from_pretrained(tmp_path / "converted")(images)
    client(hub_client.upload_to_subfolder, str(tmp_path / "source"), "local-user/vit", "")
    for name in ("local-user/vit", "local-user/vit@main"):
        output = tmp_path / name.replace("/", "_")
        code, text = client.run("embed", name, "--data", *images, "--output", output)
        assert code == 0, text
        assert "transformers ViTModel" in text
        assert np.array_equal(np.stack(read_vectors(output)["embedding"].to_numpy()), expected)
    code, text = client.run(
        "embed", "local-user/nothing", "--data", *images, "--output", tmp_path / "o"
    )
    assert code == 2 and "local-user/nothing" in text and "Traceback" not in text
